#!/usr/bin/env bash
# Trainer on an NVIDIA GPU: builds the CUDA binaries, or runs what was built on a machine that has only the driver.
#
#   benches/gpu/run.sh build        on a machine with nvcc: the stripped binaries and test programs go to benches/gpu/bin/
#   benches/gpu/run.sh run [OUT]    on the machine with the GPU: CUDA tests, then pretraining throughput, one table
#
# `run` finds the CUDA 13 libraries in the machine's PyTorch, so that no CUDA toolkit is needed there.
# Not run yet, and without PyTorch's own figures beside it: no figure of this project was measured on a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=benches/gpu/bin

build() {
  mkdir -p "$bin"
  cargo build --release -p nadir-trainer --features cuda
  cp target/release/trainer "$bin/trainer"
  # The test programs, by the paths that cargo reports.
  cargo test --release -p nadir-trainer --features cuda --no-run --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("profile", {}).get("test") and message.get("executable"):
        print(message["executable"])' |
    while read -r program; do cp "$program" "$bin/test-$(basename "$program")"; done
  strip "$bin"/*
  du -sh "$bin"
}

run() {
  local out=${1:-target/gpu}
  mkdir -p "$out"
  command -v nvidia-smi >/dev/null || { echo "no NVIDIA driver here" >&2; exit 3; }
  [ -x "$bin/trainer" ] || { echo "$bin/trainer is missing: benches/gpu/run.sh build" >&2; exit 2; }
  local libraries
  libraries=$(python3 -c 'import glob, os, torch
site = os.path.dirname(os.path.dirname(torch.__file__))
print(":".join(sorted({os.path.dirname(p) for p in glob.glob(site + "/nvidia/**/lib*.so*", recursive=True)})))')
  export LD_LIBRARY_PATH="$libraries:${LD_LIBRARY_PATH:-}"

  for program in "$bin"/test-*; do
    [ -x "$program" ] || continue
    "$program" cuda 2>&1 | tee -a "$out/tests.log"
  done

  local tiles=samples/eurosat-rgb/tiles.npy size
  printf '%-10s %-8s %12s\n' size device tiles/s | tee "$out/table.txt"
  for size in yocto zepto atto; do
    rm -rf "$out/run-$size"
    "$bin/trainer" pretrain --tiles "$tiles" --bands B4,B3,B2 --size "$size" --patch 16 --epochs 20 --batch 64 --seed 1 \
      --out "$out/run-$size" >"$out/$size.log" 2>&1
    python3 -c 'import json, sys
rates = [json.loads(line).get("tiles_per_second") for line in open(sys.argv[1])]
rates = sorted(rate for rate in rates if rate)
print("%-10s %-8s %12.0f" % (sys.argv[2], "cuda", rates[len(rates) // 2]))' "$out/run-$size/metrics.jsonl" "$size" | tee -a "$out/table.txt"
  done
}

case ${1:-} in
build) build ;;
run) shift && run "$@" ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

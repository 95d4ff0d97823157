#!/usr/bin/env bash
# The trainer on an NVIDIA GPU: builds the CUDA binaries, or runs what was built on a machine that has only the driver
# and PyTorch.
#
#   benches/gpu/run.sh build        on a machine with nvcc: stripped binaries and test programs go to benches/gpu/bin/
#   benches/gpu/run.sh run [OUT]    on the machine with the GPU: every kernel against its CPU twin, then training steps
#                                   of atto 56/8 with twelve tasks against dense PyTorch, eager and compiled; one table
#
# `run` finds the CUDA libraries in the machine's PyTorch, so that no CUDA toolkit is needed there. Rows alternate between
# the programs, so that all see the same state of the machine. BATCHES="128 512" chooses other batch sizes.
# Not run yet: no figure of this project was measured on a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=benches/gpu/bin

build() {
  mkdir -p "$bin"
  cargo build --release -p nadir-trainer --features cuda --bin trainer --example gpu_step
  local target=${CARGO_TARGET_DIR:-target}
  cp "$target/release/trainer" "$target/release/examples/gpu_step" "$bin/"
  # The test programs, by the paths that cargo reports.
  cargo test --release -p nadir-trainer --features cuda --lib --test cuda --no-run --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("profile", {}).get("test") and message.get("executable"):
        print(message["executable"])' |
    while read -r program; do cp "$program" "$bin/test-$(basename "$program")"; done
  strip "$bin"/*
  du -sh "$bin"
}

# rate COMMAND...: its number, or "failed" with the reason in the log.
rate() { "$@" 2>>"$out/steps.log" | tail -n 1 || echo failed; }

run() {
  out=${1:-${OUT:-target}/gpu}
  mkdir -p "$out"
  command -v nvidia-smi >/dev/null || { echo "no NVIDIA driver here" >&2; exit 3; }
  [ -x "$bin/gpu_step" ] || { echo "$bin/gpu_step is missing: benches/gpu/run.sh build" >&2; exit 2; }
  local libraries
  libraries=$(python3 -c 'import glob, os, torch
site = os.path.dirname(os.path.dirname(torch.__file__))
print(":".join(sorted({os.path.dirname(p) for p in glob.glob(site + "/nvidia/**/lib*.so*", recursive=True)})))')

  local program failed=0
  for program in "$bin"/test-*; do
    LD_LIBRARY_PATH="$libraries:${LD_LIBRARY_PATH:-}" "$program" cuda --nocapture 2>&1 | tee -a "$out/tests.log" || failed=1
  done

  {
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    python3 -c 'import torch; print("PyTorch", torch.__version__, "CUDA", torch.version.cuda)'
    git rev-parse --short HEAD 2>/dev/null || true
    echo "tiles a second in training steps of atto 56/8, twelve bands, twelve tasks"
    printf '%-6s %-5s %10s %14s %16s\n' batch kind nadir "PyTorch eager" "PyTorch compiled"
  } | tee "$out/table.txt"
  local batch kind own eager compiled
  for batch in ${BATCHES:-64 256 1024}; do
    for kind in bf16 f32; do
      own=$(LD_LIBRARY_PATH="$libraries:${LD_LIBRARY_PATH:-}" rate "$bin/gpu_step" "$batch" "$kind")
      eager=$(rate python3 benches/gpu/dense.py --batch "$batch" --precision "$kind")
      compiled=$(rate python3 benches/gpu/dense.py --batch "$batch" --precision "$kind" --compile)
      printf '%-6s %-5s %10s %14s %16s\n' "$batch" "$kind" "$own" "$eager" "$compiled" | tee -a "$out/table.txt"
    done
  done
  [ "$failed" = 0 ] || { echo "tests failed: $out/tests.log" >&2; exit 1; }
}

case ${1:-} in
build) build ;;
run) shift && run "$@" ;;
*) sed -n '2,13s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

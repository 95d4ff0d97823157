#!/usr/bin/env bash
# This runtime among the peers of ../shared/peers, interleaved in one run; the last lines are one a precision.
#
#   benches/peers.sh [p8_56|p16_112] [THREADS] [BATCH]      (p8_56 1 1)
#   benches/peers.sh all                                    both sizes on one thread; then 2 threads, and batches of 8
#   benches/peers.sh own                                    the smaller comparison that needs no ../shared: benches/peers/own.sh
#
# PEERS_DIR (../shared/peers) holds the peers; without it `own` runs. p8_56 with a batch of 1 uses the prepared files of PEERS_DIR. Anything
# else makes them once, which installs PyTorch: 6 GB, some minutes; LiteRT is not among them (its converter is 6 GB more).
# PEERS_CACHE (~/.cache/nadir-peers): environments, models, results. PEERS_ROUNDS (11), PEERS_SLICE_MS (220): how long.
# PEERS_CPU (1): the core measured. PEERS_RUNS (benches/runs): where the table goes.
set -euo pipefail
cd "$(dirname "$0")/.."
command="benches/peers.sh $*"
key=${1:-p8_56} threads=${2:-1} batch=${3:-1}
peers=${PEERS_DIR:-../shared/peers}

if [ "$key" = own ] || [ ! -d "$peers" ]; then
  [ "$key" = own ] || echo "*** $peers is not there: only the peers of benches/peers/own.sh are measured" >&2
  exec benches/peers/own.sh
fi
if [ "$key" = all ]; then
  results=${PEERS_CACHE:-$HOME/.cache/nadir-peers}/results-nadir
  for which in "p8_56 1 1" "p16_112 1 1" "p8_56 2 1" "p16_112 2 1" "p8_56 1 8" "p16_112 1 8"; do
    read -r key threads batch <<<"$which"
    benches/peers.sh "$key" "$threads" "$batch"
  done
  echo
  for which in p8_56-t1-b1 p16_112-t1-b1 p8_56-t2-b1 p16_112-t2-b1 p8_56-t1-b8 p16_112-t1-b8; do
    sed "s/^/$which /" "$results/$which/lines.txt"
  done
  exit
fi
case $key in p8_56 | p16_112) ;; *) echo "no size $key; there are: p8_56 p16_112" >&2 && exit 2 ;; esac

peers=$(cd "$peers" && pwd)
export PEERS_CACHE=${PEERS_CACHE:-$HOME/.cache/nadir-peers} PYTHONDONTWRITEBYTECODE=1
ours=$PEERS_CACHE/nadir
export PEERS_RESULTS=$PEERS_CACHE/results-nadir/$key-t$threads-b$batch
mkdir -p "$ours" "$PEERS_RESULTS"
rm -f "$PEERS_RESULTS"/*.json

cargo build --release --quiet --package nadir-benches --bin nadir-peer
cargo build --release --quiet --package nadir-quantize
target=$(realpath "${CARGO_TARGET_DIR:-target}")/release

# The environments and models of the peers.
if [ "$key" = p8_56 ] && [ "$batch" = 1 ]; then
  lite=1 venv=$PEERS_CACHE/venv-lite weights=$peers/models/weights_p8.safetensors
  if [ ! -x "$venv/bin/python" ]; then # as run.sh does
    python3 -m venv "$venv"
    grep -E '^(numpy|onnxruntime|openvino|ncnn|ai-edge-litert)==' "$peers/requirements.txt" | "$venv/bin/pip" install -q -r /dev/stdin
  fi
else
  lite= venv=$PEERS_CACHE/venv
  export PEERS_WORK=$PEERS_CACHE/work PEERS_OUT=$PEERS_CACHE/out PEERS_PY=$venv/bin/python PEERS_CEIL=$PEERS_CACHE/ceil
  weights=$PEERS_OUT/weights_${key%_*}.safetensors
  mkdir -p "$PEERS_WORK" "$PEERS_OUT"
  if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -r "$peers/requirements.txt"
  fi
  # Each skips what is there already.
  [ -f "$weights" ] && [ -f "$PEERS_WORK/y_$key.npy" ] || PEERS_CONFIGS=$key "$venv/bin/python" "$peers/export.py" >"$PEERS_CACHE/export.log" 2>&1 ||
    { tail -n 5 "$PEERS_CACHE/export.log" >&2 && exit 1; }
  "$venv/bin/python" "$peers/make_models.py" "$key" >"$PEERS_CACHE/make.log" 2>&1 || { tail -n 5 "$PEERS_CACHE/make.log" >&2 && exit 1; }
  ! grep FAILED "$PEERS_CACHE/make.log" >&2
  gcc -O3 -march=native -o "$PEERS_CEIL" "$peers/ceil.c"
fi

# Our models: from the same weights, calibrated on tiles that are none of those measured.
"$venv/bin/python" benches/peers/weights.py "$weights" "$key" "$ours/$key.safetensors"
"$venv/bin/python" benches/peers/tiles.py "${key#*_}" 32 20261122 "$ours/$key-calibration.npy"
for precision in int8 f16 f32; do
  "$target/quantize" convert --model "$ours/$key.safetensors" --calibrate "$ours/$key-calibration.npy" --precision $precision \
    --out "$ours/$key-$precision.nadir" >&2
done

# NAME | KIND | COMMAND a line: see bench.py. f16 is stored so and computed in f32.
extra() {
  local precision kind
  for precision in int8 f32 f16; do
    kind=$precision
    [ $precision = f16 ] && kind=f32
    echo "nadir $precision | $kind | $target/nadir-peer $ours/$key-$precision.nadir"
    # What a processor without AVX-512 would run.
    if [ $precision = int8 ] && "$target/nadir-peer" --list-kernels | grep -qx avx2; then
      echo "nadir $precision avx2 | $kind | $target/nadir-peer $ours/$key-$precision.nadir --kernels avx2"
    fi
  done
  # The one int8 peer that can be told to do without AVX-512 as well.
  if [ "$batch" = 1 ]; then
    echo "OpenVINO int8 AVX2 | int8 | env ONEDNN_MAX_CPU_ISA=AVX2 $venv/bin/python $peers/worker.py ov {W}/{k}_ovq_ln_T_b1.xml"
  fi
}
PEERS_EXTRA=$(extra)
export PEERS_EXTRA
"$target/nadir-peer" --list-kernels | grep -qx avx2 || echo "*** NOT MEASURED: int8 with forced AVX2 kernels, they cannot be chosen by name here" >&2

if [ -n "$lite" ]; then
  PEERS_THREADS=$threads bash "$peers/run.sh" lite >"$PEERS_RESULTS/table.md"
elif [ "$batch" = 1 ]; then
  # Lite here: the peers whose files are there, not the crates and PyTorch.
  PEERS_LITE=1 "$PEERS_PY" "$peers/bench.py" run "$key" "$threads" 1 >&2
else
  "$PEERS_PY" "$peers/bench.py" run "$key" "$threads" "$batch" >&2
fi

suffix=
[ "$threads $batch" = "1 1" ] || suffix=-t$threads-b$batch
"$venv/bin/python" benches/peers/report.py "$peers" "$PEERS_RESULTS" "$key" "$threads" "$batch" \
  "${PEERS_RUNS:-benches/runs}/$(date +%F)-peers-$key$suffix.md" "$command"

#!/usr/bin/env bash
# The smaller comparison, which needs this repository only: onnxruntime, tract and this runtime on the shipped models.
#
#   benches/peers/own.sh [NAME...]      models of models/ (yocto-rgb zepto-rgb); table to benches/runs/
#
# Installs numpy, onnx and onnxruntime into a virtual environment (100 MB) and builds tract (5 to 15 minutes), both once. OWN_TRACT=0: without
# tract. PEERS_CACHE (~/.cache/nadir-peers), PEERS_ROUNDS (11), PEERS_SLICE_MS (220), PEERS_CPU (1), PEERS_RUNS (benches/runs): as in
# benches/peers.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${PEERS_CACHE:-$HOME/.cache/nadir-peers}/own
export PYTHONDONTWRITEBYTECODE=1
mkdir -p "$cache"
if [ ! -x "$cache/venv/bin/python" ]; then
  python3 -m venv "$cache/venv"
  "$cache/venv/bin/pip" install -q -r benches/peers/requirements.txt
fi
cargo build --release --quiet --package nadir-benches --bin nadir-peer
cargo build --release --quiet --package nadir-quantize
target=$(realpath "${CARGO_TARGET_DIR:-target}")
tract=-
if [ "${OWN_TRACT:-1}" = 1 ]; then
  # For this CPU, in its favour; elsewhere than the rest, whose flags are others.
  (cd benches/peers/tract && RUSTFLAGS="-C target-cpu=native" cargo build --release --quiet --target-dir "$target/peer-tract")
  tract=$target/peer-tract/release/nadir-peer-tract
fi
[ $# -gt 0 ] || set -- yocto-rgb zepto-rgb
for name in "$@"; do
  "$cache/venv/bin/python" benches/peers/own.py "$name" "$cache" "$target/release" "$tract" \
    "${PEERS_RUNS:-benches/runs}/$(date +%F)-own-peers-$name.md"
done

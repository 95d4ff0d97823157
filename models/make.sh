#!/usr/bin/env bash
# Makes the .nadir files of this folder from its .safetensors: calibrated on the train rows of samples/eurosat-rgb.
#
#   models/make.sh          (QUANTIZE: the quantize program; built if not given)
set -euo pipefail
cd "$(dirname "$0")/.."
quantize=${QUANTIZE:-}
if [ -z "$quantize" ]; then
  cargo build --release --quiet --package nadir-quantize
  quantize=${CARGO_TARGET_DIR:-target}/release/quantize
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# The held-out rows must not calibrate.
python3 - "$folder/train.npy" <<'PY'
import sys
import numpy
tiles, split = (numpy.load(f"samples/eurosat-rgb/{name}.npy") for name in ("tiles", "split"))
numpy.save(sys.argv[1], tiles[split == 0])
PY
for size in zepto yocto; do
  for precision in int8 f16 f32; do
    "$quantize" convert --model "models/$size-rgb.safetensors" --calibrate "$folder/train.npy" --precision "$precision" \
      --out "models/$size-rgb-$precision.nadir"
  done
done
# The test of signatures compares with openssl's signature of the yocto.
python3 tests/reference/make_signature.py

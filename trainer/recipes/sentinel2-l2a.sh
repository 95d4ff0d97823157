#!/usr/bin/env bash
# An encoder of twelve Sentinel-2 bands from level 2A tiles without labels, and a first look at it on EuroSAT's level 1C tiles.
#
#   trainer/recipes/sentinel2-l2a.sh DATA OUT
#
# DATA is the folder that tools/prepare_sentinel2.py writes. The encoder is OUT/whole/encoder.safetensors. Runs that are there are resumed.
# EPOCHS (40) and WHOLE_EPOCHS (20) set the lengths. The labelled tiles are 232, 45 of them in the test part: enough to see
# whether the encoder reads such tiles by band names, too few for claims about accuracy.
set -euo pipefail
data=${1:?folder of the unpacked tiles} out=${2:?folder for the runs}
trainer=${TRAINER:-trainer}
described="Sentinel-2 level 2A, 1500 tiles without labels"
bands=B1,B2,B3,B4,B5,B6,B7,B8,B8A,B9,B11,B12
mkdir -p "$out"
resume() { [ ! -d "$1" ] || echo --resume; }

# shellcheck disable=SC2046
"$trainer" pretrain \
  --tiles "$data/l2a-tiles.npy" --split "$data/l2a-split.npy" --use 0,1 --bands $bands --unit "reflectance x 10000" --no-data 0 \
  --data-name "$described" \
  --name zepto-s2 --size zepto --patch 16 \
  --epochs "${EPOCHS:-40}" --batch 64 --lr 2e-3 --warmup 2 --decoder-dim 128 --flips --seed 1 \
  --contrast 1 --jitter 0.3 \
  --out "$out/masked" $(resume "$out/masked")

# shellcheck disable=SC2046
"$trainer" distill \
  --teacher "$out/masked/encoder.safetensors" --init "$out/masked/encoder.safetensors" --teacher-views 8 --random-features 64 \
  --tiles "$data/l2a-tiles.npy" --split "$data/l2a-split.npy" --use 0,1 --bands $bands --data-name "$described" --name zepto-s2 \
  --epochs "${WHOLE_EPOCHS:-20}" --batch 64 --lr 2e-3 --warmup 1 --relation-weight 1 --flips --seed 1 \
  --out "$out/whole" $(resume "$out/whole")

"$trainer" probe --model masked="$out/masked/encoder.safetensors" --model whole="$out/whole/encoder.safetensors" \
  --tiles "$data/l1c-tiles.npy" --bands B1,B2,B3,B4,B5,B6,B7,B8,B9,B10,B11,B12,B8A --normalise data \
  --labels "$data/l1c-labels.npy" --split "$data/l1c-split.npy" --k 5 --out "$out/probes"

#!/usr/bin/env bash
# The teacher of the EuroSAT RGB models: atto, pretrained without labels, then distilled from itself and random features on whole tiles.
#
#   trainer/recipes/eurosat-atto.sh DATA OUT
#
# DATA is the folder that tools/prepare_eurosat.py writes. The teacher is OUT/whole/encoder.safetensors. Runs that are there are
# resumed. EPOCHS (8) and WHOLE_EPOCHS (8) set the lengths. The rows of the spatial split's training and validation part are used; the
# test part stays unseen.
set -euo pipefail
data=${1:?folder of the unpacked EuroSAT} out=${2:?folder for the runs}
trainer=${TRAINER:-trainer}
described="EuroSAT RGB, train and validation rows of the spatial split"
mkdir -p "$out"
resume() { [ ! -d "$1" ] || echo --resume; }

# shellcheck disable=SC2046
"$trainer" pretrain \
  --tiles "$data/tiles.npy" --bands B4,B3,B2 --unit "grey level" --no-data 0 --saturation 255 \
  --table "$data/table.csv" --geolocation lat,lon \
  --regress elevation_m,slope_deg,temperature_c,humidity_pct,soil_moisture,ndvi,log1p:night_lights,log1p:pop_density \
  --classify country_id \
  --split "$data/split.npy" --use 0,1 --data-name "$described" \
  --name atto-rgb --size atto --patch 16 \
  --epochs "${EPOCHS:-8}" --batch 64 --lr 1.5e-3 --warmup 1 --decoder-dim 128 --flips --seed 1 \
  --contrast 1 --jitter 0.5 \
  --out "$out/masked" $(resume "$out/masked")

# shellcheck disable=SC2046
"$trainer" distill \
  --teacher "$out/masked/encoder.safetensors" --init "$out/masked/encoder.safetensors" --teacher-views 8 --random-features 64 \
  --tiles "$data/tiles.npy" --split "$data/split.npy" --use 0,1 --data-name "$described" \
  --name atto-rgb \
  --epochs "${WHOLE_EPOCHS:-8}" --batch 64 --lr 2e-3 --warmup 0.5 --relation-weight 1 --flips --seed 1 \
  --out "$out/whole" $(resume "$out/whole")

#!/usr/bin/env bash
# Pretrains the teacher models/zepto-rgb.safetensors on EuroSAT RGB, without labels.
#
#   trainer/recipes/teacher-zepto-rgb.sh DATA OUT [--resume]
#
# DATA is the folder that tools/prepare_eurosat.py writes, OUT the run folder. The rows of the spatial split's training and
# validation part are used; the test part stays unseen.
set -euo pipefail
data=${1:?folder of the unpacked EuroSAT} out=${2:?run folder}
shift 2
exec "${TRAINER:-trainer}" pretrain \
    --tiles "$data/tiles.npy" --bands B4,B3,B2 --unit "grey level" --no-data 0 --saturation 255 \
    --table "$data/table.csv" --geolocation lat,lon \
    --regress elevation_m,slope_deg,temperature_c,humidity_pct,soil_moisture,ndvi,log1p:night_lights,log1p:pop_density \
    --classify country_id \
    --split "$data/split.npy" --use 0,1 \
    --name zepto-rgb --size zepto --patch 16 \
    --epochs 24 --batch 64 --lr 1e-3 --warmup 1 --decoder-dim 256 --flips --seed 1 \
    --data-name "EuroSAT RGB, train and validation rows of the spatial split" \
    --out "$out" "$@"

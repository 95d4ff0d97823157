#!/usr/bin/env bash
# What pretexts bring: encoders pretrained on EuroSAT RGB by pixels alone, by several modalities, and with contrast, three
# seeds each, probed on the spatial split beside random weights, band statistics and random features.
#
#   trainer/recipes/eurosat-pretexts.sh DATA OUT
#
# DATA is the folder that tools/prepare_eurosat.py writes. Runs that are there are resumed. SIZE (yocto), EPOCHS (10) and SEEDS
# ("1 2 3") may be set. The rows of the spatial split's training and validation part are used; the test part stays unseen.
set -euo pipefail
data=${1:?folder of the unpacked EuroSAT} out=${2:?folder for the runs}
trainer=${TRAINER:-trainer} size=${SIZE:-yocto} epochs=${EPOCHS:-10}
targets=(--table "$data/table.csv" --geolocation lat,lon --classify country_id
  --regress elevation_m,slope_deg,temperature_c,humidity_pct,soil_moisture,ndvi,log1p:night_lights,log1p:pop_density)
mkdir -p "$out"

# pretrain NAME OPTIONS...
pretrain() {
  local name=$1 resume=()
  shift
  [ -d "$out/$name" ] && resume=(--resume)
  "$trainer" pretrain --tiles "$data/tiles.npy" --bands B4,B3,B2 --unit "grey level" --no-data 0 --saturation 255 \
    --split "$data/split.npy" --use 0,1 --name "$name" --size "$size" --patch 16 --epochs "$epochs" --batch 64 --lr 2e-3 \
    --warmup 1 --decoder-dim 128 --flips --out "$out/$name" "$@" ${resume[@]+"${resume[@]}"}
}

models=()
for seed in ${SEEDS:-1 2 3}; do
  pretrain "pixels-$seed" --seed "$seed"
  pretrain "modalities-$seed" --seed "$seed" "${targets[@]}"
  pretrain "contrast-$seed" --seed "$seed" "${targets[@]}" --contrast 1 --jitter 0.5
  for name in pixels modalities contrast; do models+=(--model "$out/$name-$seed/encoder.safetensors"); done
done
"$trainer" probe "${models[@]}" --tiles "$data/tiles.npy" --labels "$data/labels.npy" --split "$data/split.npy" \
  --few-shot 1,10,100 --baselines random,statistics,random-features --out "$out/probes"

#!/usr/bin/env bash
# Embeds EuroSAT with a model and probes the embeddings on the spatial split.
#
#   trainer/recipes/probe.sh DATA MODEL [--json]
set -euo pipefail
data=${1:?folder of the unpacked EuroSAT} model=${2:?model.safetensors}
shift 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
names=AnnualCrop,Forest,HerbaceousVegetation,Highway,Industrial,Pasture,PermanentCrop,Residential,River,SeaLake
"${TRAINER:-trainer}" embed --model "$model" --tiles "$data/tiles.npy" --out "$folder/embeddings.npy" >&2
"${TRAINER:-trainer}" probe --embeddings "$folder/embeddings.npy" --labels "$data/labels.npy" --split "$data/split.npy" \
    --names "$names" "$@"

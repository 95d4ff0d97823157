#!/usr/bin/env bash
# Distils the student models/yocto-rgb.safetensors from a teacher, on the tiles that the teacher was pretrained on.
#
#   trainer/recipes/student-yocto-rgb.sh DATA TEACHER OUT [--resume]
#
# DATA is the folder that tools/prepare_eurosat.py writes, TEACHER the teacher's .safetensors, OUT the run folder.
# EPOCHS (default 24) sets the length.
set -euo pipefail
data=${1:?folder of the unpacked EuroSAT} teacher=${2:?teacher.safetensors} out=${3:?run folder}
shift 3
exec "${TRAINER:-trainer}" distill \
    --teacher "$teacher" \
    --tiles "$data/tiles.npy" --split "$data/split.npy" --use 0,1 \
    --name yocto-rgb --student yocto \
    --epochs "${EPOCHS:-24}" --batch 64 --lr 2e-3 --warmup 1 --flips --seed 1 --teacher-views 8 \
    --data-name "EuroSAT RGB, train and validation rows of the spatial split" \
    --out "$out" "$@"

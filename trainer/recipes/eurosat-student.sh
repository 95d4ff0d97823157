#!/usr/bin/env bash
# Distils a student of the EuroSAT RGB teacher, on the tiles that the teacher was pretrained on.
#
#   trainer/recipes/eurosat-student.sh DATA TEACHER SIZE OUT
#
# DATA is the folder that tools/prepare_eurosat.py writes, TEACHER the teacher's .safetensors, SIZE yocto or zepto, OUT the run folder; a
# run that is there is resumed. EPOCHS sets the length (yocto 40, zepto 20).
set -euo pipefail
data=${1:?folder of the unpacked EuroSAT} teacher=${2:?teacher.safetensors} size=${3:?yocto or zepto} out=${4:?run folder}
resume=() epochs=20
[ "$size" = yocto ] && epochs=40
[ -d "$out" ] && resume=(--resume)
exec "${TRAINER:-trainer}" distill \
  --teacher "$teacher" --teacher-views 2 --random-features 64 \
  --tiles "$data/tiles.npy" --split "$data/split.npy" --use 0,1 \
  --data-name "EuroSAT RGB, train and validation rows of the spatial split" \
  --name "$size-rgb" --student "$size" \
  --epochs "${EPOCHS:-$epochs}" --batch 64 --lr 5e-3 --warmup 1 --relation-weight 1 --flips --seed 1 \
  --out "$out" ${resume[@]+"${resume[@]}"}

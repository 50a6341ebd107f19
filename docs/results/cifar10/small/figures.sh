#!/bin/bash
# Makes every figure of this page, in 18 minutes on two cores:
#
#     docs/results/cifar10/small/figures.sh MODEL FOLDER CLASSIFIER OUT
#
# from the root of the checkout. MODEL is the packaged model's folder (ddpm_jax/pretrained/cifar10-small) or a run's, FOLDER that of
# CIFAR-10's binary version, CLASSIFIER what `ddpm-jax train classifier` wrote, and OUT a new folder.
set -e
MODEL=$1 FOLDER=$2 CLASSIFIER=$3 OUT=$4

study() {
  local name=$1 study=$2
  shift 2
  echo "$name, $(date +%T)"
  python "experiments/$study.py" --run-dir "$MODEL" --data-path "$FOLDER" --out "$OUT/$name" "$@"
}

study likelihood likelihood --count 10000 --batch-size 100 --steps-per-image 5 --train-split --no-analytic --no-flow
study flow likelihood --count 80 --batch-size 80 --steps-per-image 25 --no-analytic --flow-count 20 --tolerance 1e-3
study guidance guidance --classifier "$CLASSIFIER" --num-steps 25 --count 100 --batch-size 100
study steps steps_vs_quality --classifier "$CLASSIFIER" --steps 5 10 20 50 --no-all-steps --no-analytic --count 100 --batch-size 100
study neighbours neighbours --sampler ddim --num-steps 25 --count 100 --guidance 2 --batch-size 100 --rows 6
study interpolate interpolate --pairs 3 --num-steps 50 --points 9 --depths 0.25 0.5 0.75 1
study inpaint inpaint --sampler ancestral --num-steps 50 --count 4 --completions 5 --num-resamples 3
study progressive progressive --count 16 --num-steps 100 --batch-size 16 --rows 6
echo "cost, $(date +%T)"
python docs/results/cifar10/small/cost.py "$MODEL" "$OUT/cost.json"
python docs/results/cifar10/small/collect.py "$OUT" "$CLASSIFIER"

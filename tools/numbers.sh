#!/usr/bin/env bash
# Measures again what numerics.yaml and the READMEs of all models with weights state: tools/numbers.sh IMAGES
#
# IMAGES holds the test sets, set5/image_SRF_2 with NAME_SRF_2_HR.png and NAME_SRF_2_LR.png and so on, and, for the
# pictures that training held out, bsds400_train and kodak24. runs/ablation.json keeps what the ablation has finished;
# after a kill the same command continues there. $PYTHON is the interpreter. Ends with the exit code of what fails first.
set -euo pipefail
images=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
held=()
if [ -d "$images/bsds400_train" ] && [ -d "$images/kodak24" ]; then
  # In the order of the training runs, or other pictures would be held out.
  held=(--train-data "$images/bsds400_train" --train-data "$images/kodak24" --holdout 8)
else
  echo "no ablation on held-out pictures: $images lacks bsds400_train or kodak24"
fi
commands=()
for weights in models/*/weights.safetensors; do
  model=$(basename "$(dirname "$weights")")
  readme=models/$model/README.md
  sets=(--data calibration=calibration/images)
  for name in set5 set14; do
    pictures=$images/$name/image_SRF_${model##*_x}
    if [ ! -d "$pictures" ]; then
      echo "$pictures is missing" >&2
      exit 2
    fi
    commands+=("$(printf '%q ' -m ppexport evaluate "$model" --hr "$pictures" --lr "$pictures" --record "$name")")
    sets+=(--data "$name=$pictures:$pictures")
  done
  if grep -qs '<!-- ablation -->' "$readme"; then
    options=(--state runs/ablation.json --out "$readme" ${held[@]+"${held[@]}"} "${sets[@]}")
    commands+=("$(printf '%q ' tools/ablation.py "$model" "${options[@]}")")
  fi
done
mkdir -p runs
for command in "${commands[@]}"; do
  echo "python $command"
  eval "\"\$python\" $command"
done

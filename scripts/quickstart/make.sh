#!/usr/bin/env bash
# Makes the quickstart from nothing: data and tokenizer (seconds), then the base (minutes).
# Usage: scripts/quickstart/make.sh [SEED]       another seed makes other people, messages and texts. LORA_TRAINER: the program, if it is built already.
set -euo pipefail
cd "$(dirname "$0")/../.."
seed=${1:-1}
work=artifacts/quickstart
read -ra trainer <<< "${LORA_TRAINER:-dotnet run -c Release --project src/LoraTrainer.Cli --}"

python3 scripts/quickstart/make.py --seed "$seed" --corpus "$work/corpus.jsonl"
rm -rf "$work/random" "$work/trained"
"${trainer[@]}" random-model scripts/quickstart/base.json "$work/random" --seed "$seed" --tokenizer quickstart/base
"${trainer[@]}" train configs/quickstart-base.yaml --set "output_dir=$work/trained" --set "seed=$seed"
cp "$work/trained/config.json" "$work/trained/model.safetensors" quickstart/base/

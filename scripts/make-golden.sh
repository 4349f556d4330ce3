#!/usr/bin/env bash
# Copies the subset of the reference fixtures that is committed as tests/Golden. tests/Golden/README.md says what they are.
# Usage: scripts/make-golden.sh FIXTURE_ROOT [TARGET]        (TARGET: tests/Golden)
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
root=$(cd "$1" && pwd)
target=${2:-$(dirname "$0")/../tests/Golden}
mkdir -p "$target"
target=$(cd "$target" && pwd)

entries=(
  versions.json
  models/llama31/{config.json,config.old-style.json,generation_config.json,expected.safetensors,expected_packed.safetensors,expected_greedy.json}
  models/llama31/model{-000{01..12}-of-00012.safetensors,.safetensors.index.json}
  models/llama32_tied
  peft/lora_qkv_r8
  peft/qlora_nf4_double_quant
  full/llama32_tied
  bitsandbytes/{nf4,nf4_double}_tail_{float32,bfloat16,float16}.safetensors
  bitsandbytes/{blockwise8_tail,int8_rowwise_tail,dynamic_maps,linear4bit_state_dict,linear4bit_io}.safetensors
  optim
  plan/{llama-3.1-8b,smollm2-135m}
  tokenizers/llama3_style
)

for entry in "${entries[@]}"; do
  rm -rf "${target:?}/$entry"
  mkdir -p "$(dirname "$target/$entry")"
  cp -r "$root/$entry" "$target/$entry"
done
chmod -R u+w "$target"
find "$target" -type f -exec chmod 644 {} +
du -sh "$target"

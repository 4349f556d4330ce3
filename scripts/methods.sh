#!/usr/bin/env bash
# Trains the quickstart's task with every method, three seeds each, and prints one JSON object a run: method, seed, held-out exact match and loss,
# tokens/s, peak memory. About 45 minutes on two idle cores. docs/methods.md is made from its rows.
#   scripts/methods.sh [METHOD ...]          MAX_STEPS=60 for speed and memory alone
set -euo pipefail
cd "$(dirname "$0")/.."

program=${LORA_TRAINER:-}
if [[ -z $program ]]; then
  dotnet build src/LoraTrainer.Cli -c Release -v q --nologo >&2
  program="dotnet src/LoraTrainer.Cli/bin/Release/net10.0/lora-trainer.dll"
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

settings() {
  case $1 in
    full) echo "adapter=null lora_r=null lora_alpha=null lora_target_linear=null learning_rate=1e-3" ;;
    lora) echo "adapter=lora" ;;
    rslora) echo "adapter=lora peft_use_rslora=true learning_rate=2e-3" ;;
    dora) echo "adapter=lora peft_use_dora=true" ;;
    pissa) echo "adapter=lora peft_init_lora_weights=pissa" ;;
    qlora-nf4) echo "adapter=qlora" ;;
    qlora-fp4) echo "adapter=qlora bnb_config_kwargs={bnb_4bit_quant_type: fp4}" ;;
    lora-int8) echo "adapter=lora load_in_8bit=true" ;;
    qdora-nf4) echo "adapter=qlora peft_use_dora=true" ;;
    *) echo "scripts/methods.sh: no method is called $1" >&2; exit 2 ;;
  esac
}

methods=("$@")
(( ${#methods[@]} )) || methods=(full lora rslora dora pissa qlora-nf4 qlora-fp4 lora-int8 qdora-nf4)
for method in "${methods[@]}"; do
  for seed in ${SEEDS:-42 43 44}; do
    arguments=()
    while read -r setting; do
      arguments+=(--set "$setting")
    done < <(settings "$method" | sed 's/ \([a-z_0-9]*=\)/\n\1/g')
    run="$out/$method-$seed"
    $program train configs/quickstart.yaml --quiet --ledger "$out/ledger.db" "${arguments[@]}" --set "seed=$seed" --set "run_name=$method-$seed" --set "output_dir=$run" \
      --set evaluate_before=false ${MAX_STEPS:+--set max_steps=$MAX_STEPS --set evaluate_after=false} > /dev/null
    python3 - "$method" "$seed" "$run/summary.json" <<'PYTHON'
import json, sys
method, seed, path = sys.argv[1:]
summary = json.load(open(path))
after = summary["evaluation"]["after"] or {}
print(json.dumps({
    "method": method, "seed": int(seed), "steps": summary["steps"], "loss": summary["loss"]["last"],
    "held_out_exact_match": after.get("exact_match"), "held_out_loss": after.get("loss"), "tokens_per_second": summary["tokens_per_second"],
    "peak_bytes": summary["memory"]["peak_bytes"], "arena_bytes": summary["memory"]["arena_bytes"], "trainable_parameters": summary["adapter"]["trainable_parameters"]}), flush=True)
PYTHON
  done
done

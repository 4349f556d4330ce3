#!/usr/bin/env bash
# How far is the time that `plan` tells from the time that `train` takes, on this machine's CPU?
# Usage: scripts/plan-validation.sh [ROUNDS]
#
# Trains five configurations (the shape of the model, lengths, micro-batches, rank, 4 bits or bf16, recomputation all differ), whose measured rows calibrate
# the plan; then plans five others, trains them too, and prints planned and measured seconds per step, and the same for the whole process.
# All ten are trained once in each of ROUNDS rounds (default 3), so that what disturbs the machine for a while meets both sets, and the fastest row of each
# counts: a busy neighbour makes a step slower, nothing makes it faster. The plans see the rows of the first five only.
# Takes about a minute and a half a round on a quiet machine with two cores. Writes below a temporary folder and removes it; LT_PLAN_ROWS names a file that
# the ten rows are kept in.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
rounds=${1:-3}
dotnet build -c Release -v quiet -nologo src/LoraTrainer.Cli >&2
orders=$PWD/quickstart/task/train.jsonl tokenizer=$PWD/quickstart/base
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r src/LoraTrainer.Cli/bin/Release/net10.0 "$work/program"
program=(dotnet exec "$work/program/lora-trainer.dll")
cd "$work"
export LT_LEDGER=$work/ledger.db

# Long documents: the messages of the quickstart, forty at a time.
sed 's/.*"message": *"\(\([^"\\]\|\\.\)*\)".*/\1/' "$orders" | awk '{ text = text " " $0; if (NR % 40 == 0) { print "{\"text\":\"" text "\"}"; text = "" } }' > long.jsonl
vocabulary=$(sed -n 's/.*"vocab_size": *\([0-9]*\).*/\1/p' "$tokenizer/config.json" | head -1)

# NAME hidden layers heads sequence_len micro_batch_size accumulation rank 4bit|bf16 recompute(true|false) short|long
calibration='
a 256  6 4  256 4 1  8 4bit false short
b 512  4 8  128 8 2 16 bf16 false long
c 384  8 6  512 2 1  4 4bit true  long
d 640  3 5 1024 1 2  8 bf16 false long
e 256 12 4   64 8 4 32 4bit false short'
held_out='
f 512  6 8  256 2 2  8 4bit false long
g 384  4 6 1024 1 2 16 bf16 true  long
h 768  2 6  128 16 1 4 4bit false short
i 320 10 5  512 1 3  8 bf16 false long
j 448  5 7  192 6 1 32 4bit true  short'

configure() { # the fields of a row
    local name=$1 hidden=$2 layers=$3 heads=$4 length=$5 micro=$6 accumulation=$7 rank=$8 format=$9 recompute=${10} documents=${11}
    cat > "$name.json" <<JSON
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": $hidden, "intermediate_size": $((hidden * 11 / 4)), "num_hidden_layers": $layers,
 "num_attention_heads": $heads, "num_key_value_heads": $heads, "vocab_size": $vocabulary, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
 "tie_word_embeddings": true, "torch_dtype": "bfloat16"}
JSON
    "${program[@]}" random-model "$name.json" "base-$name" --tokenizer "$tokenizer" --quiet
    {
        echo "base_model: base-$name"
        echo "output_dir: out-$name"
        [ "$format" = 4bit ] && echo "adapter: qlora" || echo "adapter: lora"
        printf 'load_in_4bit: %s\nlora_r: %s\nlora_alpha: 16\nlora_target_linear: true\n' "$([ "$format" = 4bit ] && echo true || echo false)" "$rank"
        if [ "$documents" = long ]; then
            echo "datasets: [{path: long.jsonl, type: completion, field: text}]"
        else
            echo "datasets: [{path: $orders, type: {field_instruction: message, field_output: record, format: \"Message: {instruction} Record: \"}}]"
            echo "sample_packing: true"
        fi
        printf 'sequence_len: %s\nexcess_length_strategy: truncate\nmicro_batch_size: %s\ngradient_accumulation_steps: %s\ngradient_checkpointing: %s\n' "$length" "$micro" "$accumulation" "$recompute"
        printf 'max_steps: 12\nlearning_rate: 1e-4\ndevice: cpu\nevaluate_before: false\nevaluate_after: false\n'
    } > "$name.yaml"
}

field() { # NAME of the first number after "NAME":, of standard input
    sed -n 's/.*"'"$1"'": *\([0-9.eE+-]*\).*/\1/p' | head -1
}

train() { # NAME: trains it once; its row becomes NAME.row if it is the fastest so far, and the seconds of its process NAME.total
    local name=$1
    rm -rf "out-$name" row.jsonl
    LT_CALIBRATION=$work/row.jsonl "${program[@]}" train "$name.yaml" --json > summary.json 2> train.log || { cat train.log >&2; exit 1; }
    if [ ! -f "$name.row" ] || awk "BEGIN { exit !($(field step_seconds < row.jsonl) < $(field step_seconds < "$name.row")) }"; then
        mv row.jsonl "$name.row"
        sed -n '/"seconds": {/,/}/p' summary.json | field total > "$name.total"
    fi
}

rows() { grep -v '^$' <<< "$1"; }

while read -r name rest; do configure "$name" $rest; done < <(rows "$calibration$held_out")
for ((round = 1; round <= rounds; round++)); do
    # Calibration and held-out configurations in turns.
    while read -r name _; do train "$name"; done < <(paste -d '\n' <(rows "$calibration") <(rows "$held_out"))
    echo "round $round of $rounds: load average $(cut -d ' ' -f 1 /proc/loadavg)" >&2
done

while read -r name _; do cat "$name.row"; done < <(rows "$calibration") > calibration.jsonl
printf '%-4s %-38s %12s %12s %8s %12s %12s %8s\n' "" "hidden layers heads length micro ..." "planned s" "measured s" "error" "planned all" "measured all" "error"
while read -r name rest; do
    "${program[@]}" plan "$name.yaml" --json --calibration calibration.jsonl --gpu none > plan.json 2> plan.log || { cat plan.log >&2; exit 1; }
    planned=$(sed -n '/"time": {/,/"check"/p' plan.json | field steps)
    whole=$(sed -n '/"time": {/,/"check"/p' plan.json | field hours)
    awk -v name="$name" -v rest="$rest" -v p="$planned" -v m="$(field step_seconds < "$name.row")" -v w="$whole" -v t="$(cat "$name.total")" 'BEGIN {
        p = p / 12; w = w * 3600; printf "%-4s %-38s %12.4f %12.4f %+7.1f%% %12.1f %12.1f %+7.1f%%\n", name, rest, p, m, 100 * (p / m - 1), w, t, 100 * (w / t - 1) }'
done < <(rows "$held_out")
sed -n 's/.*"basis": "\(.*\)",\{0,1\}/\1/p' plan.json
if [ -n "${LT_PLAN_ROWS:-}" ]; then cat ./?.row > "$LT_PLAN_ROWS"; fi

#!/usr/bin/env bash
# Runs the quickstart and puts what it printed into README.md, between the two marks of the sample. Run it after a change that shows.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
dotnet run --project src/LoraTrainer.Cli -c Release -- train configs/quickstart.yaml --set "output_dir=$folder/quickstart" > "$folder/all"
machine="$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) processors"
{
  printf '```text\n'
  grep -vE '^(loading|quantizing): ' "$folder/all" | sed "s|$folder/|outputs/|g" | head -c 4000
  printf '```\n\nMeasured on %s, at commit %s.\n' "$machine" "$(git rev-parse --short=12 HEAD)"
} > "$folder/sample"
awk -v sample="$folder/sample" '
  /<!-- sample ends -->/ { inside = 0 }
  !inside { print }
  /<!-- sample begins/ { inside = 1; while ((getline line < sample) > 0) print line }' README.md > "$folder/readme"
cp "$folder/readme" README.md

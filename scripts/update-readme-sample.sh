#!/usr/bin/env bash
# Runs the quickstart and puts what it printed into README.md, between the two marks of the sample. Run it after a change that shows.
# Of the lines of the steps it keeps the first three and the last two, whole, with "..." between; every other line stays.
# Usage: scripts/update-readme-sample.sh [RECORDED]        (RECORDED: the output of such a run, instead of a new run)
set -euo pipefail
recorded=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
[ "$(grep -c '^<!-- sample begins -->$' README.md)" = 1 ] && [ "$(grep -c '^<!-- sample ends -->$' README.md)" = 1 ] || { echo "README.md must have each mark of the sample once." >&2; exit 1; }

if [ -n "$recorded" ]; then
  cp "$recorded" "$folder/all"
else
  dotnet run --project src/LoraTrainer.Cli -c Release -- train configs/quickstart.yaml --set "output_dir=$folder/quickstart" > "$folder/all"
fi

machine="$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) processors"
{
  printf '```text\n'
  { grep -vE '^(loading|quantizing): ' "$folder/all" || true; } | sed "s|$folder/|outputs/|g" | awk '
    { line[NR] = $0; if ($0 ~ /^step [0-9]/) { steps++; number[NR] = steps } }
    END {
      for (i = 1; i <= NR; i++) {
        if (!(i in number) || number[i] <= 3 || number[i] > steps - 2) print line[i]
        else if (number[i] == 4) print "..."
      }
    }'
  printf '```\n\nMeasured on %s, at commit %s.\n' "$machine" "$(git rev-parse --short=12 HEAD)"
} > "$folder/sample"

awk -v sample="$folder/sample" '
  /^<!-- sample ends -->$/ { inside = 0 }
  !inside { print }
  /^<!-- sample begins -->$/ { inside = 1; while ((getline line < sample) > 0) print line }' README.md > "$folder/readme"
cp "$folder/readme" README.md

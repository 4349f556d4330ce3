#!/usr/bin/env bash
# Prints one JSON object a line for every benchmark row whose name contains FILTER.
# Usage: scripts/benchmark.sh [FILTER]        (baseline of the gemm rows: apt-get install libopenblas0-pthread)
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git rev-parse --short=12 HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit="$commit+changes"
dotnet build -c Release -v quiet -nologo tests/LoraTrainer.Benchmarks >&2
LT_BENCHMARK_COMMIT=$commit exec dotnet tests/LoraTrainer.Benchmarks/bin/Release/net10.0/LoraTrainer.Benchmarks.dll "$@"

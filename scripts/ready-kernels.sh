#!/usr/bin/env bash
# Compiles the GPU kernels into a folder that a release carries, so that machines need the driver and cuBLASLt but no NVRTC. Needs NVRTC here, and no GPU.
#
#   scripts/ready-kernels.sh FOLDER [ARCHITECTURE...]
#   dotnet publish src/LoraTrainer.Cli -c Release -r linux-x64 -p:ReadyKernels=FOLDER
#
# Architectures are compute capabilities without their point; all that there are unless some are given: 80 86 89 90 100 120. LT_CUDA_DIR names a folder with
# libnvrtc.so.* that is not installed. Attention is compiled for heads of 64, 80, 96, 128 and 256 numbers; others still need NVRTC.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- 80 86 89 90 100 120
cd "$(dirname "$0")/.."
dotnet run --project tests/LoraTrainer.Benchmarks -c Release -v quiet -- --ready-kernels "$folder" "$@"

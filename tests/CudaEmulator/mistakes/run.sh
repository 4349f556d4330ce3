#!/bin/bash
# run.sh OUT_FOLDER [KERNELS_FOLDER] [self|gemm|misuse|planted|measure]: builds the stand-ins and their own tests in OUT_FOLDER and runs the
# tests; all of them without a third argument. KERNELS_FOLDER is where port.cuh is. Exit 1 when a test fails or a planted mistake is not found.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: run.sh OUT_FOLDER [KERNELS_FOLDER] [PART]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
kernels=${2:-$here/../../../kernels}
"$here/../build.sh" "$1" > /dev/null
out=$(cd "$1" && pwd)
program=$out/mistakes
newest() { [ -e "$program" ] && [ -z "$(find "$here" "$out"/*.so "$out"/*.so.1 -newer "$program" -print -quit)" ]; }
if ! newest; then
    pids=()
    for source in "$here"/*.cpp; do
        "${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -Werror -c "$source" -o "$out/mistakes_$(basename "$source" .cpp).o" & pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    "${CXX:-g++}" "$out"/mistakes_*.o -o "$program" -L"$out" -l:libcuda.so.1 -lnvrtc -lcublasLt -Wl,-rpath,'$ORIGIN' -lpthread
fi
part=${3:-}
# the checked build finds misaligned vectors and indices past static arrays; a kernel that does not end is given two seconds
[ "$part" = measure ] || export LT_EMULATOR_CHECKED=1 LT_EMULATOR_TIMEOUT=2
exec "$program" "$kernels" "$here" $part

#!/bin/bash
# run.sh OUT_FOLDER [KERNELS_FOLDER] [self|gemm|misuse|planted|measure]: builds the stand-ins and their own tests in OUT_FOLDER and runs the
# tests; all of them where no part is named. KERNELS_FOLDER is where port.cuh is (the repository's kernels/). Exit 1 when a test fails or a
# planted mistake is not found.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: run.sh OUT_FOLDER [KERNELS_FOLDER] [PART]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
kernels=$here/../../../kernels
part=
for argument in "${@:2}"; do
    case $argument in
        self | gemm | misuse | planted | measure) part=$argument ;;
        *) kernels=$argument; [ -f "$kernels/port.cuh" ] || { echo "$kernels is no folder with port.cuh, and no part (self, gemm, misuse, planted, measure)" >&2; exit 2; } ;;
    esac
done
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
# the checked build finds misaligned vectors and indices past static arrays; a kernel that does not end is given two seconds
[ "$part" = measure ] || export LT_EMULATOR_CHECKED=1 LT_EMULATOR_TIMEOUT=2
exec "$program" "$kernels" "$here" $part

#!/bin/bash
# check.sh KERNELS_FOLDER OUT: compiles every kernel file with clang for sm_80 and sm_90, without a CUDA toolkit, warnings being errors;
# compares the inline PTX with LLVM's own text of the same instructions; writes the PTX files and entries.json (kernel -> list of parameter
# types) to OUT. Prints what is wrong as file:line and exits 1. CLANG names another clang (19 or newer) than clang-19.
set -uo pipefail
[ $# = 2 ] || { echo "usage: check.sh KERNELS_FOLDER OUT" >&2; exit 2; }
clang=${CLANG:-clang-19}
command -v "$clang" > /dev/null || { echo "$clang is not installed (apt-get install --no-install-recommends clang-19)" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
kernels=$(cd "$1" && pwd) || exit 2
out=$(mkdir -p "$2" && cd "$2" && pwd) || exit 2
failed=0

[ "$out/ptx" -nt "$here/ptx.cpp" ] || "${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -Werror "$here/ptx.cpp" -o "$out/ptx" || exit 2

compile() { # compile ARCHITECTURE FILE PTX OPTIONS...
    local architecture=$1 file=$2 ptx=$3
    shift 3
    # +ptx78: without it the warp instructions are said to need a newer PTX; -nostdlibinc: NVRTC has no standard headers either;
    # pass-failed: a loop that clang's optimizer does not unroll (it happens at head dim 192) may well be unrolled by NVIDIA's
    "$clang" -x cuda --cuda-gpu-arch="$architecture" --cuda-device-only -nocudainc -nocudalib -nostdlibinc -Xclang -target-feature -Xclang +ptx78 \
        -std=c++17 -O3 -Wall -Wextra -Werror -Wno-pass-failed "$@" -I"$here" -I"$kernels" -S "$file" -o "$ptx"
}

"$out/ptx" inline "$kernels"/*.cu || failed=1
rm -f "$out"/*.ptx
for architecture in sm_80 sm_90; do
    for file in "$kernels"/*.cu; do
        name=$(basename "$file" .cu)
        if grep -q LT_HEAD_DIM "$file"; then
            for size in 16 64 80 96 128 192 256; do
                forms=0
                [ $size = 128 ] && forms='0 1 2'    # what else is done to scores is the same text for all sizes
                for scores in $forms; do
                    compile $architecture "$file" "$out/$name.$size.$scores.$architecture.ptx" -DLT_HEAD_DIM=$size -DLT_SCORES=$scores || failed=1
                done
            done
        else
            compile $architecture "$file" "$out/$name.$architecture.ptx" || failed=1
        fi
    done
    if compile $architecture "$here/twins.cu" "$out/twins.$architecture.ptx"; then
        "$out/ptx" twins "$kernels/port.cuh" "$out/twins.$architecture.ptx" || failed=1
    else
        failed=1
    fi
    rm -f "$out/twins.$architecture.ptx"
done
"$out/ptx" entries "$out"/*.sm_80.ptx > "$out/entries.json" || failed=1
exit $failed

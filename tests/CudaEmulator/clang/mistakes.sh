#!/bin/bash
# mistakes.sh KERNELS_FOLDER OUT: plants mistakes in copies of the kernels, one at a time; check.sh must report each. Prints one line of JSON
# per mistake and exits 1 when one is not found.
set -euo pipefail
[ $# = 2 ] || { echo "usage: mistakes.sh KERNELS_FOLDER OUT" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
kernels=$(cd "$1" && pwd)
out=$(mkdir -p "$2" && cd "$2" && pwd)
failed=0

plant() { # plant NAME FILE EXPRESSION WORDS: the report must hold the words
    local name=$1 file=$2 expression=$3 words=$4 folder=$out/planted found=false report
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$kernels"/port.cuh "$kernels"/rows.cu "$folder"
    sed -i "$expression" "$folder/$file"
    if cmp -s "$folder/$file" "$kernels/$file"; then
        report="the mistake could not be planted"
    else
        report=$("$here/check.sh" "$folder" "$out" 2>&1 | grep -m 1 -F -- "$words" || true)
        [ -n "$report" ] && found=true
    fi
    report=${report//$folder\//}
    report=${report//\\/\\\\}
    printf '{"mistake":"%s","found":%s,"how":"%s"}\n' "$name" $found "${report//\"/\\\"}"
    [ $found = true ] || failed=1
}

plant "another layout of the mma" port.cuh 's/row\.col\.f32\.bf16/row.row.f32.bf16/' 'port.cuh:'
plant "registers of the mma grouped wrongly" port.cuh 's/{%8,%9}, {%10/{%8}, {%9,%10/' 'mma_bf16_16816'
plant "a misspelt instruction" port.cuh 's/ex2\.approx\.ftz/ex2.aprox.ftz/' 'fast_exp2'
plant "a misspelt wait" port.cuh 's/wait_group %0/wait_grp %0/' 'cp_async_wait'
plant "ldmatrix without .trans" port.cuh 's/m8n8\.x4\.trans\.shared/m8n8.x4.shared/' 'ldmatrix_x4_trans'
plant "a copy of another size" port.cuh 's/\[%0\], \[%1\], 16;/[%0], [%1], 8;/' 'cp_async16'
plant "a conversion with one operand" port.cuh 's/bf16x2\.f32 %0, %1, %2/bf16x2.f32 %0, %1/' 'pack_bf16'
plant "a float register where the instruction has bits" port.cuh 's/"=r"(packed)/"=f"(*(float*)\&packed)/' 'pack_bf16'
plant "inline PTX in a kernel file" rows.cu '$a LT_DEVICE void membar() { asm volatile("membar.gl;"); }' 'inline PTX outside of port.cuh'
plant "inline PTX without a twin" port.cuh '$a LT_DEVICE void membar() { asm volatile("membar.gl;"); }' 'has no twin'
plant "a name that does not exist" rows.cu 's/blockIdx\.x/blockIndex.x/' 'rows.cu:'
plant "a header of the host" rows.cu '1i #include <cmath>' "file not found"
plant "an atomic on floats" rows.cu '$a LT_DEVICE void sum(float* p) { atomicAdd(p, 1.0f); }' 'atomicAdd'
plant "a warning" rows.cu '$a LT_DEVICE int first(int unused) { return 1; }' 'unused parameter'
rm -rf "$out/planted"
exit $failed

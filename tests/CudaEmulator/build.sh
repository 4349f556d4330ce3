#!/bin/bash
# build.sh OUT_FOLDER: builds the stand-in libraries libcuda.so.1, libnvrtc.so and libcublasLt.so there; only what has changed.
# Prints nothing when all is up to date.
set -euo pipefail
[ $# = 1 ] || { echo "usage: build.sh OUT_FOLDER" >&2; exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")"
cxx=${CXX:-g++}
flags=(-std=c++17 -O2 -march=native -fPIC -g -Wall -Wextra -Werror -fvisibility-inlines-hidden)

exec 9> "$out/.lock"
flock 9  # two builds into one folder wait for each other

changed() { # changed TARGET SOURCES...: whether the target is missing or older than a source
    local target=$1 source
    shift
    [ -e "$target" ] || return 0
    for source in "$@" build.sh; do [ "$source" -nt "$target" ] && return 0; done
    return 1
}
compile() { # compile TARGET SOURCES... -- FLAGS...: builds to the side and moves into place
    local target=$1 arguments=()
    shift
    echo "$(basename "$target")"
    "$cxx" "${flags[@]}" "$@" -o "$target.new"
    mv -f "$target.new" "$target"
}

pids=()
if changed "$out/emu.o" emulator/*; then
    compile "$out/emu.o" -ftls-model=initial-exec -c emulator/emu.cpp & pids+=($!)
fi
if changed "$out/memory.o" standins/memory.*; then
    compile "$out/memory.o" -c standins/memory.cpp & pids+=($!)
fi
if changed "$out/cuda.o" standins/cuda.cpp standins/*.h emulator/*.h; then
    compile "$out/cuda.o" -c standins/cuda.cpp & pids+=($!)
fi
if changed "$out/gemm.o" standins/gemm.*; then
    compile "$out/gemm.o" -O3 -c standins/gemm.cpp & pids+=($!)
fi
if changed "$out/libnvrtc.so" standins/nvrtc.cpp emulator/emu.h; then
    compile "$out/libnvrtc.so" -DEMU_HEADER="\"$PWD/emulator/emu.h\"" -shared standins/nvrtc.cpp -ldl & pids+=($!)
fi
for pid in "${pids[@]}"; do wait "$pid"; done

if changed "$out/libcuda.so.1" "$out"/{emu,memory,cuda}.o; then
    compile "$out/libcuda.so.1" -shared "$out"/{emu,memory,cuda}.o -Wl,-soname,libcuda.so.1 -Wl,-z,defs -lpthread -ldl
fi
if changed "$out/libcublasLt.so" standins/cublaslt.cpp standins/*.h emulator/*.h "$out/gemm.o" "$out/libcuda.so.1"; then
    compile "$out/libcublasLt.so" -shared standins/cublaslt.cpp "$out/gemm.o" -L"$out" -l:libcuda.so.1 -Wl,-rpath,'$ORIGIN' -Wl,-z,defs -lpthread
fi

#!/usr/bin/env bash
# Makes the files of this folder anew: make.sh MODEL.gguf LLAMA_SOURCE LLAMA_BUILD [WORK]
#   MODEL.gguf    the quantised model
#   LLAMA_SOURCE  llama.cpp's source tree
#   LLAMA_BUILD   its build folder: -DBUILD_SHARED_LIBS=OFF, target llama-quantize built (README.md has the commands)
#   WORK          where the expanded model (0.5 GB) and the program go; a temporary folder if left out
set -euo pipefail

model=$1 source=$2 build=$3
here=$(cd "$(dirname "$0")" && pwd)
threads=${THREADS:-2}
if [ $# -gt 3 ]; then
    work=$4
    mkdir -p "$work"
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi

"$build/bin/llama-quantize" --allow-requantize "$model" "$work/f32.gguf" F32

g++ -std=c++17 -O2 -Wall -Wextra -fopenmp "$here/eval.cpp" -o "$work/eval" \
    -isystem "$source/include" -isystem "$source/ggml/include" -isystem "$source/common" -isystem "$source/vendor" \
    -Wl,--start-group \
    "$build"/common/libllama-common.a "$build"/common/libllama-common-base.a "$build"/src/libllama.a \
    "$build"/ggml/src/libggml.a "$build"/ggml/src/libggml-cpu.a "$build"/ggml/src/libggml-base.a \
    "$build"/vendor/cpp-httplib/libcpp-httplib.a \
    -Wl,--end-group -lpthread -ldl -lm

"$work/eval" texts "$work/f32.gguf" "$model" "$here" "$threads" "$here"/{prose,code,mixed}.txt
"$work/eval" greedy "$work/f32.gguf" "$here/prompts.json" "$here/greedy.json" "$threads"

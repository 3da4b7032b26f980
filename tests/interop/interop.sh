#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes the embedded model in every scheme and format, loads each in the engines that take it, and compares perplexities:
# the engine's must be within 0.5 % of ours. Engines come as Python interpreters, each with its own packages (README.md):
#   TRANSFORMERS=… VLLM=… AUTOAWQ=… GPTQMODEL=… LLAMACPP=… tests/interop/interop.sh [BUILD]
# What no interpreter was named for is left out, and said to be. Exit status: 0 all agree, 1 one does not, 2 nothing ran.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=${1:-$root/build}
recipes=$root/examples/awq_mistral/recipes
text=$root/examples/awq_mistral/text/heldout-persuasion.txt
window=510 # vLLM wants room for a token of its own in the model's context of 512
windows=${WINDOWS:-20}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ran=0
failed=0

say() { printf '%-34s %-24s %10s %10s %9s\n' "$@"; }

# write [--by PROGRAM] NAME OPTION…: the embedded model as NAME.
write() {
  local program=awq_mistral
  if [ "$1" = --by ]; then program=$2; shift 2; fi
  local name=$1
  shift
  "$build/bin/$program" --num-calibration-samples 16 --output "$work/$name" "$@" > "$work/$name.log" 2>&1 || { cat "$work/$name.log"; exit 1; }
}

# compare ENGINE INTERPRETER SCRIPT NAME
compare() {
  local engine=$1 python=$2 script=$3 name=$4 ours theirs off
  ours=$("$build/bin/perplexity" --model "$work/$name" --text "$text" --window $window --stride $window \
    --max-windows "$windows" --json | sed -n 's/.*"perplexity": *\([0-9.]*\).*/\1/p' | head -1)
  if ! "$python" "$here/$script" "$work/$name" "$text" $window "$windows" > "$work/log" 2>&1; then
    tail -5 "$work/log"
    say "$name" "$engine" "$ours" failed FAILED
    failed=1
    return
  fi
  theirs=$(sed -n 's/^RESULT .*"perplexity": *\([0-9.]*\).*/\1/p' "$work/log")
  off=$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%+.3f %%", 100 * (b / a - 1) }')
  say "$name" "$engine" "${ours:0:8}" "${theirs:0:8}" "$off"
  awk -v a="$ours" -v b="$theirs" 'BEGIN { d = b / a - 1; exit !(d < 0.005 && d > -0.005) }' || { echo "more than 0.5 % apart"; failed=1; }
  ran=1
}

say checkpoint engine ours theirs apart
if [ -n "${TRANSFORMERS:-}" ]; then
  for scheme in W4A16_ASYM W4A16 W8A16 W8A16_ASYM W3A16_ASYM W3A16 W2A16_ASYM; do
    write $scheme --scheme $scheme
    compare transformers "$TRANSFORMERS" transformers_perplexity.py $scheme
  done
  write W4A16_ASYM-channel --scheme W4A16_ASYM --group-size -1
  compare transformers "$TRANSFORMERS" transformers_perplexity.py W4A16_ASYM-channel
  write W4A16_ASYM-32-sharded --scheme W4A16_ASYM --group-size 32 --max-shard-size 1MB
  compare transformers "$TRANSFORMERS" transformers_perplexity.py W4A16_ASYM-32-sharded
  for recipe in four_bits mixed; do
    write recipe-$recipe --recipe "$recipes/$recipe.yaml"
    compare transformers "$TRANSFORMERS" transformers_perplexity.py recipe-$recipe
  done
  for scheme in W4A16_ASYM W3A16 W8A16; do
    write --by gptq_mistral gptq-$scheme --scheme $scheme
    compare transformers "$TRANSFORMERS" transformers_perplexity.py gptq-$scheme
  done
  write --by gptq_mistral awq+gptq --method awq+gptq --group-size 64
  compare transformers "$TRANSFORMERS" transformers_perplexity.py awq+gptq
  for scheme in W8A8 W8A8_STATIC FP8 FP8_DYNAMIC FP8_BLOCK; do
    write --by smoothquant_mistral smooth-$scheme --scheme $scheme
    compare transformers "$TRANSFORMERS" transformers_perplexity.py smooth-$scheme
  done
  write --by smoothquant_mistral smooth-down --smoothing-strength 0.8 --smoothed-inputs down
  write --by smoothquant_mistral smooth+gptq --method smoothquant+gptq
  for name in W4A16_ASYM recipe-four_bits recipe-mixed gptq-W4A16_ASYM awq+gptq smooth-W8A8 smooth-W8A8_STATIC smooth-FP8 \
    smooth-FP8_DYNAMIC smooth-FP8_BLOCK smooth-down smooth+gptq; do
    if "$TRANSFORMERS" "$here/recipe.py" "$work/$name" > "$work/log" 2>&1; then
      say $name llm-compressor recipe means same
    else
      tail -5 "$work/log"
      say $name llm-compressor recipe "" FAILED
      failed=1
    fi
  done
else
  echo "left out: transformers with compressed-tensors; name an interpreter in TRANSFORMERS"
fi
if [ -n "${VLLM:-}" ]; then
  for scheme in W4A16_ASYM W4A16; do
    [ -d "$work/$scheme" ] || write $scheme --scheme $scheme
    compare vLLM "$VLLM" vllm_perplexity.py $scheme
  done
  [ -d "$work/gptq-W4A16_ASYM" ] || write --by gptq_mistral gptq-W4A16_ASYM
  compare vLLM "$VLLM" vllm_perplexity.py gptq-W4A16_ASYM
  [ -d "$work/recipe-four_bits" ] || write recipe-four_bits --recipe "$recipes/four_bits.yaml"
  compare vLLM "$VLLM" vllm_perplexity.py recipe-four_bits
  [ -d "$work/smooth-W8A8" ] || write --by smoothquant_mistral smooth-W8A8 --scheme W8A8
  compare vLLM "$VLLM" vllm_perplexity.py smooth-W8A8
  [ -d "$work/gptq-W4A16-v1" ] || write --by gptq_mistral gptq-W4A16-v1 --format gptq --scheme W4A16
  compare vLLM "$VLLM" vllm_perplexity.py gptq-W4A16-v1
else
  echo "left out: vLLM; name an interpreter in VLLM"
fi
if [ -n "${AUTOAWQ:-}" ]; then
  write awq-gemm --format awq-gemm
  compare AutoAWQ "$AUTOAWQ" autoawq_perplexity.py awq-gemm
  write --by gptq_mistral gptq-awq-gemm --format awq-gemm
  compare AutoAWQ "$AUTOAWQ" autoawq_perplexity.py gptq-awq-gemm
else
  echo "left out: AutoAWQ; name an interpreter in AUTOAWQ"
fi
if [ -n "${GPTQMODEL:-}" ]; then
  [ -d "$work/gptq-W4A16-v1" ] || write --by gptq_mistral gptq-W4A16-v1 --format gptq --scheme W4A16
  write --by gptq_mistral gptq-W4A16_ASYM-v2 --format gptq-v2
  write --by gptq_mistral gptq-W4A16-v1-descending --format gptq --scheme W4A16 --actorder descending
  write --by gptq_mistral gptq-W3A16_ASYM-v2-descending --format gptq-v2 --scheme W3A16_ASYM --actorder descending
  write recipe-mixed-v2 --format gptq-v2 --recipe "$recipes/mixed.yaml"
  for name in gptq-W4A16-v1 gptq-W4A16_ASYM-v2 gptq-W4A16-v1-descending gptq-W3A16_ASYM-v2-descending recipe-mixed-v2; do
    compare GPTQModel "$GPTQMODEL" gptqmodel_perplexity.py $name
  done
else
  echo "left out: GPTQModel; name an interpreter in GPTQMODEL"
fi
if [ -n "${LLAMACPP:-}" ]; then
  for type in F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S Q2_K; do
    "$build/bin/gguf_mistral" --output "$work/$type.gguf" --type $type > "$work/$type.log" 2>&1 || { cat "$work/$type.log"; exit 1; }
    compare llama.cpp "$LLAMACPP" gguf_llama.py $type.gguf
  done
  [ -d "$work/gptq-W4A16_ASYM" ] || write --by gptq_mistral gptq-W4A16_ASYM
  "$build/bin/gguf_mistral" --model "$work/gptq-W4A16_ASYM" --output "$work/gptq-F16.gguf" --type F16 > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  compare llama.cpp "$LLAMACPP" gguf_llama.py gptq-F16.gguf
  "$LLAMACPP" "$here/gguf_check.py" "$build" "$work"/{F16,BF16,Q8_0,Q6_K,Q5_K_M,Q5_1,Q5_0,Q4_K_M,Q4_1,Q4_0,IQ4_NL,IQ4_XS,Q3_K_S,Q2_K}.gguf ||
    failed=1
  if [ -n "${LLAMA_QUANTIZE:-}" ]; then
    "$LLAMACPP" "$here/gguf_quantize.py" "$build" "$LLAMA_QUANTIZE" || failed=1
  else
    echo "left out: whole files beside llama.cpp's quantizer; name the program llama-quantize in LLAMA_QUANTIZE"
  fi
else
  echo "left out: llama.cpp; name an interpreter in LLAMACPP"
fi
[ $failed = 0 ] || exit 1
[ $ran = 1 ] || exit 2

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# gguf_quality.sh BUILD [TYPE...]
# What each GGUF type costs the embedded model, with ggml's search and the exhaustive one, with importance and with AWQ's scales: a line of
# Markdown each with bits per weight and, on 30 windows of 512 ids of a speech text and of a novel, perplexity, the mean and the 99th percentile
# of the KL divergence from the original in 10^-3 nats, and how often the likeliest token is the same. WINDOWS and SAMPLES (128 sequences of 512
# tokens to calibrate on) may be set.
set -euo pipefail
build=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
model=$root/examples/awq_mistral/model
texts=$root/examples/awq_mistral/text
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
types=("$@")
[[ ${#types[@]} -gt 0 ]] || types=(Q2_K Q3_K_S Q3_K_M IQ4_XS IQ4_NL Q4_0 Q4_1 Q4_K_S Q4_K_M Q5_0 Q5_1 Q5_K_S Q5_K_M Q6_K Q8_0)
samples=(--num-calibration-samples "${SAMPLES:-128}")

field() { sed -n "s/^ *\"$2\": *\([0-9.e+-]*\),*$/\1/p" "$1" | head -1; }

measure() { # TEXT
  "$build/bin/perplexity" --model "$work/a.gguf" --against "$model" --text "$texts/$1" --window 512 --stride 512 \
    --max-windows "${WINDOWS:-30}" --json "$work/p.json" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  LC_ALL=C awk -v p="$(field "$work/p.json" perplexity)" -v k="$(field "$work/p.json" kl_divergence)" \
    -v h="$(field "$work/p.json" kl_divergence_99)" -v t="$(field "$work/p.json" top_token_agreement)" \
    'BEGIN { printf " %.3f | %.2f, %.1f | %.1f |", p, 1000 * k, 1000 * h, 100 * t }'
}

echo "| type | variant | bits per weight | speeches: perplexity | KL: mean, 99 % | same token, % | novel: perplexity | KL: mean, 99 % | same token, % |"
echo "|---|---|---|---|---|---|---|---|---|"
"$build/bin/gguf_mistral" --output "$work/a.gguf" --type Q8_0 --imatrix auto "${samples[@]}" --imatrix-output "$work/matrix.gguf" > "$work/log" 2>&1
for type in "${types[@]}"; do
  for variant in plain imatrix exhaustive exhaustive,imatrix awq,imatrix; do
    options=()
    [[ $variant == *imatrix* ]] && options+=(--imatrix "$work/matrix.gguf")
    [[ $variant == *exhaustive* ]] && options+=(--search exhaustive)
    [[ $variant == *awq* ]] && options+=(--awq "${samples[@]}")
    "$build/bin/gguf_mistral" --output "$work/a.gguf" --overwrite --type "$type" ${options[@]+"${options[@]}"} --json "$work/g.json" > "$work/log" 2>&1 ||
      { cat "$work/log" >&2; exit 1; }
    printf '| %s | %s | %.2f |' "$type" "${variant//,/, }" "$(field "$work/g.json" bits_per_weight)"
    measure heldout-state-of-the-union-2013-2021.txt
    measure heldout-persuasion.txt
    echo
  done
done

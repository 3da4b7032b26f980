#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Perplexity of the embedded model under every variant of AWQ that docs/awq.md compares, on both held-out texts:
#     tools/awq_variants.sh BIN_DIR [RESULTS.tsv]
# Columns: bits, variant, State of the Union and Persuasion on all windows of 512, then on the first 60; seconds.
set -euo pipefail
bin=$1
results=${2:-/dev/stdout}
top=$(cd "$(dirname "$0")/.." && pwd)
text=$top/examples/awq_mistral/text
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

perplexity() { # text, windows (0: all)
  "$bin/perplexity" --model "$work/out" --text "$text/$1" --window 512 --stride 512 ${2:+--max-windows $2} --json |
    sed -n 's/^  "perplexity": \([0-9.]*\),*/\1/p'
}

variant() { # bits, name, options...
  local bits=$1 name=$2 seconds
  shift 2
  rm -rf "$work/out"
  "$bin/awq_mistral" --output "$work/out" --scheme "W${bits}A16_ASYM" --num-calibration-samples 128 \
    --json "$work/out.json" "$@" > /dev/null 2>&1
  seconds=$(sed -n 's/^    "quantization": \([0-9.]*\),*/\1/p' "$work/out.json")
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%.1f\n' "$bits" "$name" \
    "$(perplexity heldout-state-of-the-union-2013-2021.txt)" "$(perplexity heldout-persuasion.txt)" \
    "$(perplexity heldout-state-of-the-union-2013-2021.txt 60)" "$(perplexity heldout-persuasion.txt 60)" \
    "$seconds" >> "$results"
}

both() { # name, options...
  variant 4 "$@"
  variant 3 "$@"
}

both "default"
both "round to nearest, min-max" --method rtn
both "AWQ as published: --clip none --sweeps 0" --clip none --sweeps 0
both "ranges alone: --n-grid 1 --clip mse --sweeps 0" --n-grid 1 --clip mse --sweeps 0
both "ranges alone: --n-grid 1 --clip gram --sweeps 0" --n-grid 1 --clip gram --sweeps 0
both "scales and ranges: --clip mse --sweeps 0" --clip mse --sweeps 0
both "scales and ranges: --clip gram --sweeps 0" --clip gram --sweeps 0
both "no scales: --n-grid 1" --n-grid 1
both "no scales: --n-grid 1 --clip mse" --n-grid 1 --clip mse
both "--clip mse" --clip mse
both "--clip mse --shrinkage 0" --clip mse --shrinkage 0
both "--shrinkage 0" --shrinkage 0
both "--shrinkage 0.25" --shrinkage 0.25
both "--shrinkage 0.75" --shrinkage 0.75
both "--propagate quantized" --propagate quantized
both "--loss block" --loss block
both "--sweeps 1" --sweeps 1
both "--sweeps 4" --sweeps 4
both "--duo-scaling true" --duo-scaling true
both "--duo-scaling false" --duo-scaling false

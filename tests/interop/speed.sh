#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Seconds of the default AWQ or GPTQ run on the embedded model beside llm-compressor's on the same samples, by turns on one machine:
#   LLMCOMPRESSOR=PYTHON tests/interop/speed.sh [BUILD [SAMPLES [awq|gptq]]]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=${1:-$root/build}
samples=${2:-256}
method=${3:-awq}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ours() {
  "$build/bin/${method}_mistral" --output "$work/out" --overwrite --num-calibration-samples "$samples" --json "$work/ours.json" \
    > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  sed -n '/"seconds"/,/}/p' "$work/ours.json" | tr -d '\n '
  echo
}

ours
HF_HUB_OFFLINE=1 "$LLMCOMPRESSOR" "$here/llmcompressor_seconds.py" "$root/examples/awq_mistral/model" \
  "$root"/examples/awq_mistral/text/calibration-*.txt "$samples" "$method" 2> "$work/log" | tee "$work/out.txt" | grep RESULT || { tail -5 "$work/log"; exit 1; }
ours

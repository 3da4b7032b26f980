#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh [--jobs N] [SECONDS [TARGET...]]
# Builds the fuzzers with clang++ and runs each for SECONDS (600), N at a time (2), from tests/fuzz/corpus and what earlier
# runs kept in build-fuzz/corpus. Finds lie in build-fuzz/finds/TARGET; what is left is a table, and status 1 if there were any.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

jobs=2
if [[ ${1:-} == --jobs ]]; then jobs=${2:?--jobs needs a number}; shift 2; fi
seconds=${1:-600}
[[ $seconds =~ ^[1-9][0-9]*$ && $jobs =~ ^[1-9][0-9]*$ ]] ||
  { echo "usage: tests/fuzz/run.sh [--jobs N] [SECONDS [TARGET...]]" >&2; exit 2; }
shift || true
if [[ $# -gt 0 ]]; then targets=("$@"); else mapfile -t targets < <(ls tests/fuzz/corpus); fi

build=$PWD/build-fuzz
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake --preset fuzz "${launcher[@]}" >/dev/null
cmake --build "$build" --parallel "$jobs" --target "${targets[@]/#/fuzz_}" >/dev/null

TMPDIR=$(mktemp -d) # targets write the file that they read
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

fuzz() {
  local name=$1 options=()
  mkdir -p "$build/corpus/$name" "$build/finds/$name"
  if [[ -f tests/fuzz/$name.dict ]]; then options+=("-dict=tests/fuzz/$name.dict"); fi
  "$build/bin/fuzz_$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=1024 \
    -print_final_stats=1 -artifact_prefix="$build/finds/$name/" "${options[@]}" \
    "$build/corpus/$name" "tests/fuzz/corpus/$name" $(ls -d "tests/fuzz/finds/$name" 2>/dev/null) \
    >"$build/finds/$name.log" 2>&1 || true
}
for name in "${targets[@]}"; do
  while [[ $(jobs -rp | wc -l) -ge $jobs ]]; do wait -n; done
  fuzz "$name" &
done
wait

found=0
printf '%-16s %12s %9s %6s\n' target executions coverage finds
for name in "${targets[@]}"; do
  log=$build/finds/$name.log
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  coverage=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d ' ' -f 2)
  finds=$(find "$build/finds/$name" -type f | wc -l)
  printf '%-16s %12s %9s %6s\n' "$name" "${executions:--}" "${coverage:--}" "$finds"
  found=$((found + finds))
done
[[ $found -eq 0 ]]

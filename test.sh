#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds everything and runs every test. The last line is "N passed, N failed".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'END'
usage: ./test.sh [--asan | --tsan] [--simt] [--jobs N] [CTEST OPTION...]
  --asan     build and run under AddressSanitizer and UndefinedBehaviorSanitizer
  --tsan     build and run under ThreadSanitizer
  --simt     only the kernels on the SIMT executor: build nothing else, run nothing else
  --jobs N   compile and test N at a time (default: all cores)
Further options go to ctest: ./test.sh -R pack runs the tests whose name holds "pack".
END
}

preset=host
jobs=$(nproc)
targets=() tests=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --asan | --tsan) preset=${1#--} ;;
    --simt) targets=(--target simt_suite) tests=(--label-regex '^simt$') ;;
    --jobs) jobs=${2:?--jobs needs a number}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) break ;;
  esac
  shift
done

# The closing line, and the exit status that goes with it.
finish() {
  echo "$1 passed, $2 failed"
  [[ $1 -gt 0 && $2 -eq 0 ]] || exit 1
  exit 0
}

if [[ $preset == tsan ]]; then needs=tsan; else needs=tests; fi
tools/install_dependencies.sh $needs
build=build-$preset
export CMAKE_BUILD_PARALLEL_LEVEL=$jobs # of the tree that the tsan preset has within its own, too
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
if ! cmake --preset "$preset" "${launcher[@]}" || ! cmake --build "$build" "${targets[@]}"; then
  echo "test.sh: the $preset build failed, so no test ran"
  finish 0 1
fi

log=$build/test.log
ctest --preset "$preset" --parallel "$jobs" "${tests[@]}" "$@" | tee "$log" || true
cat "$build"/left_out.txt 2>/dev/null || true
grep -ho 'left out: .*' "$build/Testing/Temporary/LastTest.log" 2>/dev/null | sort -u || true

# ctest closes with "98% tests passed, 1 tests failed out of 57".
closing=$(grep -E '^[0-9]+% tests passed' "$log" | tail -n 1)
if [[ $closing =~ passed,\ ([0-9]+)\ tests?\ failed\ out\ of\ ([0-9]+) ]]; then
  finish $((BASH_REMATCH[2] - BASH_REMATCH[1])) "${BASH_REMATCH[1]}"
fi
echo "test.sh: ctest ran no test"
finish 0 1

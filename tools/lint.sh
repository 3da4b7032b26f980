#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lint.sh [FILE.cpp...]
# Runs clang-tidy over source files and the headers they include, all of tests and examples by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v clang-tidy >/dev/null || { echo "lint.sh: clang-tidy is missing; Debian's package is clang-tidy" >&2; exit 1; }
build=build-lint
cmake -S . -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_EXPORT_COMPILE_COMMANDS=ON >/dev/null
if [[ $# -eq 0 ]]; then
  mapfile -t files < <(git ls-files 'tests/*.cpp' 'tests/mistral/*.cpp' 'examples/*.cpp')
  set -- "${files[@]}"
fi
printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" clang-tidy --quiet -p "$build"

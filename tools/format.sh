#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# format.sh [--check] [FILE...]
# Formats C++ and CUDA files in place, all of the repository's by default; with --check only says which would change.
set -euo pipefail
mode=(-i)
if [[ ${1:-} == --check ]]; then mode=(--dry-run --Werror); shift; fi
command -v clang-format >/dev/null || { echo "format.sh: clang-format is missing; Debian's package is clang-format" >&2; exit 1; }
if [[ $# -eq 0 ]]; then
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  mapfile -t files < <(git ls-files '*.hpp' '*.cpp' '*.cuh' '*.cu')
  set -- "${files[@]}"
fi
clang-format "${mode[@]}" "$@"

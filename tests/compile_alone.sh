#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# compile_alone.sh COMPILER HEADER FLAG...
# Compiles a header as the only include of a program, as C++17 and as C++20; a warning is an error.
set -eu
compiler=$1
header=$2
shift 2
for standard in c++17 c++20; do
  "$compiler" -std=$standard -Wall -Wextra -Wconversion -Werror -fsyntax-only "$@" -include "$header" -x c++ /dev/null ||
    { echo "$header: $compiler -std=$standard refuses it on its own" >&2; exit 1; }
done

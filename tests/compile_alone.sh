#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# compile_alone.sh COMPILER STANDARD HEADER FLAG...
# Compiles a header as the only include of a program; a warning is an error.
set -eu
compiler=$1
standard=$2
header=$3
shift 3
"$compiler" -std=$standard -Wall -Wextra -Wconversion -Werror -fsyntax-only "$@" -include "$header" -x c++ /dev/null ||
  { echo "$header: $compiler -std=$standard refuses it on its own" >&2; exit 1; }

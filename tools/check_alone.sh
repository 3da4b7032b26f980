#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_alone.sh [TARGET...]
# The presets compile sources of examples and of their tests several at once (NIBBLE_TOGETHER), where one can use what another includes.
# This compiles each source of these targets by itself, without making code of it; by default of those that no other step of CI has so.
# The last line counts sources.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $# -eq 0 ]]; then set -- nibble_tests mistral_tests mistral_gguf; fi
build=build-alone
cmake --preset host -B "$build" -DNIBBLE_TOGETHER=OFF -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DCMAKE_CXX_COMPILER_LAUNCHER= >/dev/null
cd "$build"
targets=$(IFS='|' && echo "$*")
# A command a line, of an object that lies in a target's folder; commit.cpp is there only in a build.
sed -n 's/^ *"command": "\(.*\)",\{0,1\}$/\1/p' compile_commands.json | sed -nE "\\: -o [^ ]*/($targets)\.dir/:p" |
  sed '/commit\.cpp$/d; s/\\\(.\)/\1/g; s/ -o [^ ]* / -fsyntax-only /' >commands.txt
all=$(wc -l <commands.txt)
true >failed.txt
xargs -d '\n' -P "$(nproc)" -I '{}' sh -c '{} || echo "${0##* }" >>failed.txt' '{}' <commands.txt || true
failed=$(wc -l <failed.txt)
echo "$((all - failed)) passed, $failed failed"
[[ $all -gt 0 && $failed -eq 0 ]]

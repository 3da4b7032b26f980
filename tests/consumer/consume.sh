#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# consume.sh installed|targets|subdirectory|copied SOURCE BUILD COMPILER
# Builds and runs a program that uses nibble as someone else's project would, in BUILD/consumer/KIND.
set -eu
kind=$1
source=$2
build=$3
compiler=$4
work=$build/consumer/$kind
consumer=$source/tests/consumer
rm -rf "$work"
mkdir -p "$work"

case $kind in
  copied)
    cp -r "$source/include" "$consumer/main.cpp" "$work"
    cd "$work"
    "$compiler" -std=c++17 -Wall -Wextra -Werror -Iinclude main.cpp -o engine
    ./engine
    exit
    ;;
  subdirectory)
    mkdir "$work/third_party"
    ln -s "$source" "$work/third_party/nibble"
    cp "$consumer/main.cpp" "$work"
    ;;
  installed)
    cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
    cp "$consumer/main.cpp" "$work"
    ;;
  targets)
    cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
    cp "$consumer/targets/main.cpp" "$work"
    ;;
esac
cp "$consumer/$kind/CMakeLists.txt" "$work"
cmake -S "$work" -B "$work/build" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_PREFIX_PATH="$work/prefix" \
  -DCMAKE_CXX_FLAGS="-Wall -Wextra -Werror"
cmake --build "$work/build"
if [ "$kind" = subdirectory ] && [ -e "$work/build/third_party/nibble/bin" ]; then
  echo "a project that adds nibble got its tests or examples built too" >&2
  exit 1
fi
"$work/build/engine"

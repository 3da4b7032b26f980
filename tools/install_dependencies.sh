#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# install_dependencies.sh programs|tests|tsan
# Installs what the example programs (or also the tests and benches, or also the kernels' tests under ThreadSanitizer) are
# built with. Does nothing when all is there.
set -euo pipefail

packages=(cmake ninja-build g++ pkg-config nlohmann-json3-dev libsentencepiece-dev libpcre2-dev libcli11-dev
          libopenblas-dev libssl-dev libyaml-cpp-dev ccache)
case ${1:-} in
  programs) ;;
  tests) packages+=(catch2 libbenchmark-dev libboost-context-dev) ;;
  tsan) packages+=(catch2 libbenchmark-dev libboost-context-dev clang libclang-rt-dev llvm) ;;
  *) echo "usage: $0 programs|tests|tsan" >&2; exit 2 ;;
esac

fail() { echo "install_dependencies.sh: $1" >&2; exit 1; }

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  for tool in cmake ninja c++ pkg-config; do
    command -v "$tool" >/dev/null ||
      fail "$tool is missing and this system has no apt-get; install what Debian calls: ${packages[*]}"
  done
  exit 0 # CMake names the library that is missing, if one is
fi

missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || fail "to install ${missing[*]}, run it as root or install sudo"
  root=(sudo)
fi
echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >"$log" 2>&1; }
apt update && apt install -y --no-install-recommends "${missing[@]}" ||
  { tail -n 20 "$log" >&2; fail "apt-get could not install ${missing[*]}; its last lines stand above"; }

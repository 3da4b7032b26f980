#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fetch_gpu_check_debs.sh DIR
# Downloads to DIR what tools/gpu_check.sh --debs DIR needs on a GPU machine without a network: Catch2, Google Benchmark,
# nlohmann-json, OpenBLAS, pkg-config and ninja, and what the examples are built with: 21 MB of Debian's packages for this machine's
# architecture. Installs nothing. nvcc, g++, CMake and compute-sanitizer have to be there.
set -euo pipefail
most_bytes=40000000
fail() { echo "fetch_gpu_check_debs.sh: $1" >&2; exit 1; }

[[ $# -eq 1 && $1 != -* ]] || { echo "usage: $0 DIR" >&2; exit 2; }
command -v apt-get >/dev/null || fail "apt-get is missing; this works on Debian and its kin"
# No Boost: only the SIMT executor needs it.
packages=(catch2 libbenchmark-dev nlohmann-json3-dev libopenblas-pthread-dev libopenblas0-pthread libgfortran5 pkg-config pkgconf
          pkgconf-bin ninja-build libsentencepiece-dev libpcre2-dev libcli11-dev libssl-dev libyaml-cpp-dev)
# Libraries whose names differ from release to release, or that not every architecture has.
for package in libbenchmark-dev pkgconf-bin libgfortran5 libsentencepiece-dev libpcre2-dev libssl-dev libyaml-cpp-dev; do
  needed=$(apt-cache depends "$package" 2>/dev/null | sed -n 's/^ *Depends: \(lib\(benchmark\|pkgconf\|quadmath\|sentencepiece\|pcre2\|ssl\|yaml\)[a-z0-9.+-]*\)$/\1/p')
  if [[ -n $needed ]]; then mapfile -t -O "${#packages[@]}" packages <<<"$needed"; fi
done
mkdir -p "$1"
cd "$1"
apt-get -q download "${packages[@]}" || fail "apt-get could not download all of: ${packages[*]}; apt-get update may help"
bytes=$(cat ./*.deb | wc -c)
[[ $bytes -le $most_bytes ]] || fail "the packages in $1 are $bytes bytes, more than $most_bytes: are there others too?"
echo "$1: ${#packages[@]} packages, $bytes bytes"

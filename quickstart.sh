#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds the programs into build/bin/, and quantizes a model: the one that ships in the
# repository unless --model says otherwise. Run again, it only quantizes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'END'
usage: ./quickstart.sh [OPTION OF awq_mistral...]
Without options: AWQ to 4 bits of the embedded model, evaluated on speeches it never saw, into build/quickstart.
Any option of awq_mistral may be given, for example
  ./quickstart.sh --model DIR --output DIR       your own checkpoint
  ./quickstart.sh --scheme W3A16_ASYM            another number of bits
build/bin/awq_mistral --help lists them all.
END
}

output=build/quickstart
evaluate=examples/awq_mistral/text/heldout-state-of-the-union-2013-2021.txt
defaults=(--output "$output" --overwrite)
evaluation=(--evaluate "$evaluate")
for option in "$@"; do
  case $option in
    -h | --help) usage; exit 0 ;;
    --output | --output=*) defaults=() ;;
    --evaluate | --evaluate=*) evaluation=() ;;
  esac
done

tools/install_dependencies.sh programs
log=build/quickstart.log
mkdir -p build
if [[ ! -e build/build.ninja ]]; then
  launcher=()
  if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  echo "building the programs into build/bin (a few minutes the first time)"
  cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DNIBBLE_TESTS=OFF -DNIBBLE_TOGETHER=ON "${launcher[@]}" >"$log" 2>&1 ||
    { cat "$log" >&2; echo "quickstart.sh: cmake could not configure the build; its messages stand above" >&2; exit 1; }
fi
cmake --build build >"$log" 2>&1 ||
  { tail -n 40 "$log" >&2; echo "quickstart.sh: the build failed; all of it is in $log" >&2; exit 1; }

echo "build/bin/awq_mistral" "${defaults[@]}" "${evaluation[@]}" "$@"
exec build/bin/awq_mistral "${defaults[@]}" "${evaluation[@]}" "$@"

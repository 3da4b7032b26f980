#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build_architectures.sh [OPTION...] [FILE.cu...]: compiles the kernels for every architecture. --help tells more.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'END'
usage: tools/build_architectures.sh [OPTION...] [FILE.cu...]
Compiles every kernel with nvcc, where a warning, a spilled register or a stack frame is a failure, and prints what ptxas tells:
registers (least to most of a kernel's instantiations), shared memory, spills. The whole list goes to DIR/kernels.txt.
  --arch LIST   architectures as nvcc spells them, by commas; compute_80 is PTX. Where all of them are PTX nothing is optimised:
                it is warnings that are looked for (default sm_80,sm_86,sm_89,sm_90a,compute_80)
  --quick       the instantiations of tests/cuda/kernels only, not those of tests, examples and benches as well
  --jobs N      N files at a time (default: all cores)
  --nvcc FILE   the compiler (default: nvcc of the PATH, of CUDA_PATH or of /usr/local/cuda)
  --work DIR    where reports go (default build-architectures)
The last line counts files. Status: 0 all compiled without complaint, 1 something did not, 2 nvcc is missing or an option is wrong.
END
}
refuse() { echo "build_architectures.sh: $1" >&2; exit 2; }

arch=sm_80,sm_86,sm_89,sm_90a,compute_80 jobs=$(nproc) nvcc='' work=build-architectures files=() quick=no
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --quick) quick=yes ;;
    --arch | --jobs | --nvcc | --work)
      [[ -n ${2:-} ]] || refuse "$1 needs a value"
      declare "${1#--}=$2"
      shift ;;
    -*) usage >&2; refuse "unknown option $1" ;;
    *) [[ -f $1 ]] || refuse "there is no file $1"; files+=("$1") ;;
  esac
  shift
done
[[ $jobs =~ ^[1-9][0-9]{0,3}$ ]] || refuse "--jobs takes a whole number from 1 on, not $jobs"
[[ -z $nvcc || -x $nvcc ]] || refuse "--nvcc: $nvcc is no program"
for each in "$nvcc" "$(command -v nvcc || true)" "${CUDA_PATH:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
  if [[ -x $each ]]; then nvcc=$each; break; fi
done
[[ -x $nvcc ]] || refuse "nvcc, the CUDA toolkit's compiler, is missing: put it on the PATH or set CUDA_PATH"
code=()
for each in ${arch//,/ }; do
  [[ $each =~ ^(sm|compute)_[0-9]+[af]?$ ]] || refuse "--arch takes names such as sm_80 or compute_80, not $each"
  code+=(-gencode "arch=compute_${each#*_},code=$each")
done
[[ ${#code[@]} -gt 0 ]] || refuse "--arch names no architecture"
# What warns are the front ends; without the optimisers behind them a file takes a third of the time.
if [[ $arch != *sm_* ]]; then code+=(-Xcicc -O0 -Xcompiler -fsyntax-only); fi
if [[ ${#files[@]} -eq 0 ]]; then
  files=(tests/cuda/kernels/*.cu)
  if [[ $quick == no ]]; then files+=(tests/*.cu tests/mistral_cuda/*.cu examples/*/cuda/*.cu bench/*.cu); fi
fi

rm -rf "$work/reports"
mkdir -p "$work/reports"
work=$(cd "$work" && pwd)
export work nvcc
# Leaves NAME.txt with what nvcc says, and NAME.result: its status, its seconds and the file.
compile() { # FILE FLAG...
  local file=$1 name=${1//\//-} status=0
  shift
  "$nvcc" -std=c++17 -Iinclude -Ikernels -Ireference -Iexamples -Itests -Ibench "$@" -Werror all-warnings \
    -Xcompiler -Wall,-Wextra -Xptxas -v -c -o /dev/null "$file" >"$work/reports/$name.txt" 2>&1 || status=$?
  echo "$status $SECONDS $file" >"$work/reports/$name.result"
}
export -f compile
# shellcheck disable=SC2016 # each file's own shell expands it
printf '%s\0' "${files[@]}" | xargs -0 -P "$jobs" -I '{}' bash -c 'compile "$@"' compile '{}' "${code[@]}"

# A line an instantiation and architecture: kernel, its template arguments, architecture, registers, shared bytes, spilled
# bytes, bytes of stack; registers are 0 for a function that kernels call, told when it has a stack. Files may repeat others'.
cat "$work"/reports/*.txt | c++filt -p | awk '
  function tell(name, registers, shared) {
    gsub(/nibble::(v[0-9_]+|mistral::cuda::detail)::|kernels::detail::|\(anonymous namespace\)::|^void /, "", name)
    arguments = match(name, /</) ? substr(name, RSTART) : "-"
    gsub(/ /, "", arguments)
    sub(/<.*/, "", name)
    print name, arguments, on, registers, shared, spilled, stack
  }
  /Compiling entry function/ { split($0, part, "\047"); entry = part[2]; on = part[4] }
  /Function properties for/ { of = $0; sub(/.*Function properties for /, "", of) }
  /bytes stack frame/ { stack = $1; spilled = $5 + $9; if (of != entry && stack + spilled > 0) tell(of, 0, 0) }
  /Used [0-9]+ registers/ {
    shared = 0
    for (i = 2; i <= NF; ++i) {
      if ($i ~ /^registers/) registers = $(i - 1)
      if ($i ~ /^smem/) shared = $(i - 2) + 0
    }
    tell(entry, registers, shared)
  }' | sort -u >"$work/kernels.txt"

awk -v architectures="$arch" '
  BEGIN { count = split(architectures, on, ",") }
  {
    if (!($1 in most)) names[++all] = $1
    key = $1 SUBSEP $3
    if (!(key in high) || $4 > high[key]) high[key] = $4
    if (!(key in low) || $4 < low[key]) low[key] = $4
    ++made[key]
    if ($5 > most[$1] + 0) most[$1] = $5; else most[$1] += 0
    spilled[$1] += $6; stack[$1] += $7
  }
  END {
    printf "%-28s %8s", "kernel", "variants"
    for (i = 1; i <= count; ++i) if (on[i] ~ /^sm/) printf " %8s", on[i]
    printf " %8s %8s %8s\n", "shared", "spilled", "stack"
    for (n = 1; n <= all; ++n) {
      variants = 0
      line = ""
      for (i = 1; i <= count; ++i) {
        if (on[i] !~ /^sm/) continue
        key = names[n] SUBSEP on[i]
        if (made[key] > variants) variants = made[key]
        text = key in high ? (low[key] < high[key] ? low[key] "-" high[key] : high[key]) : "-"
        line = line sprintf(" %8s", text)
      }
      printf "%-28s %8d%s %8d %8d %8d\n", names[n], variants, line, most[names[n]], spilled[names[n]], stack[names[n]]
    }
  }' "$work/kernels.txt"

failed=0
for each in "$work"/reports/*.result; do
  read -r status seconds file <"$each"
  if [[ $status -eq 0 ]] && ! grep -q warning "${each%.result}.txt"; then continue; fi
  failed=$((failed + 1))
  echo "$file does not compile without a warning:"
  grep -v -e '^ptxas info' -e 'bytes stack frame' "${each%.result}.txt" | head -n 40 | sed 's/^/    /' || true
done
echo "${#files[@]} files for $arch took $SECONDS s; the longest: $(sort -k 2 -n -r "$work"/reports/*.result |
  head -n 3 | awk '{ printf "%s%s %d s", sep, $3, $2; sep = ", " }')"
bad=$(awk '$6 > 0 || $7 > 0' "$work/kernels.txt")
if [[ -n $bad ]]; then
  echo "these have spills or a stack frame (kernel, arguments, architecture, registers, shared, spilled, stack):"
  # shellcheck disable=SC2001 # every line of it
  sed 's/^/    /' <<<"$bad"
  failed=$((failed + 1))
fi
if [[ $arch == *sm_* && ! -s $work/kernels.txt ]]; then
  echo "ptxas told of no kernel"
  failed=$((failed + 1))
fi
echo "$((failed < ${#files[@]} ? ${#files[@]} - failed : 0)) passed, $failed failed"
[[ $failed -eq 0 ]]

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Breaks every kernel in every small way, one at a time, and runs its tests on the SIMT executor: does a test notice?
# tools/mutate_kernels.py says what is broken. All mutations are in one build a preset, asleep until the environment names one.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
explained=$top/tests/simt/survivors.txt

usage() {
  cat <<'END_USAGE'
usage: tools/mutate_kernels.sh [--row LIST] [--kind LIST] [--preset LIST] [--list] [--from N] [--to N] [--resume] [--jobs N]
                               [--build DIR]
  --row LIST     mutate only files that tests/NAME.cu or tests/mistral_cuda/NAME.cu of these names include, and run only their tests
  --kind LIST    of wait, bound, clamp, sum (default: wait,bound); see tools/mutate_kernels.py
  --preset LIST  try these, in turn, until one notices (default: plain,asan,tsan)
  --list         print the mutations and stop
  --from N, --to N  only mutations of these numbers, as --list tells them
  --resume       leave alone what earlier calls, on the same files, saw noticed
  --jobs N       build and run N at a time (default: 1)
  --build DIR    default: build-mutate
Prints a line for each mutation: number, file:line, mutation, what noticed it. Ends with 1 if one that tests/simt/survivors.txt does
not explain survived, or if one that it explains did not. The log of each run is DIR/log/NUMBER.
END_USAGE
}

wanted='' resume='' kinds=wait,bound presets=plain,asan,tsan list='' from=1 to=1000000 jobs=1 build=$top/build-mutate
while [[ $# -gt 0 ]]; do
  case $1 in
    --row) wanted=${2:?--row needs a list}; shift ;;
    --kind) kinds=${2:?--kind needs a list}; shift ;;
    --preset) presets=${2:?--preset needs a list}; shift ;;
    --list) list=1 ;;
    --from) from=${2:?--from needs a number}; shift ;;
    --to) to=${2:?--to needs a number}; shift ;;
    --resume) resume=1 ;;
    --jobs) jobs=${2:?--jobs needs a number}; shift ;;
    --build) build=${2:?--build needs a folder}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$build/log"
build=$(cd "$build" && pwd)
IFS=, read -ra presets <<< "$presets"

"$top/tools/mutate_kernels.py" "$top" "$build/tree" "$build/list" "$wanted"
awk -F'\t' -v kinds=",$kinds," -v from="$from" -v to="$to" \
  'index(kinds, "," $4 ",") && $1 >= from && $1 <= to' "$build/list" > "$build/chosen"
if stale=$(grep -v '^[ #]' "$explained" | grep -vxFf <(cut -f 5 "$build/list")); then
  printf 'mutate_kernels.sh: %s explains what is no mutation any more:\n%s\n' "$explained" "$stale" >&2
  exit 2
fi
if [[ $list ]]; then
  cut -f 1,4,5 "$build/chosen"
  exit 0
fi

rows=()
for test in "$build"/tree/tests/*.cu; do
  [[ -e $test ]] || { echo "mutate_kernels.sh: tests/ has no .cu of $wanted" >&2; exit 2; }
  rows+=("$(basename "$test" .cu)")
done

configure() { # preset
  local options=(-DCMAKE_BUILD_TYPE=RelWithDebInfo)
  case $1 in
    plain) options=(-DCMAKE_BUILD_TYPE=Release) ;;
    asan) options+=('-DNIBBLE_SANITIZE=address,undefined') ;;
    tsan) options+=(-DNIBBLE_SANITIZE=thread -DCMAKE_CXX_COMPILER=clang++) ;;
    *) echo "mutate_kernels.sh: no preset $1" >&2; exit 2 ;;
  esac
  if command -v ccache > /dev/null; then options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  cmake -S "$build/tree" -B "$build/$1" -G Ninja -DNIBBLE_EXAMPLES=OFF -DCMAKE_CXX_FLAGS="-w -I$build/tree/examples" \
    "${options[@]}"
}

# run SECONDS PRESET ROW: the row's tests, for so many seconds of a processor.
run() (
  ulimit -c 0 -t "$1"
  ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=1 timeout -s KILL $((20 * $1)) \
    "$build/$2/bin/simt_tests" --filenames-as-tags "[#$3]" --abort --warn NoTests
)

# Builds a preset, sees that all is well while mutations sleep, and notes what each row includes and how long it takes.
export CCACHE_BASEDIR=$build/tree CCACHE_NOHASHDIR=1
prepare() { # preset
  local preset=$1 row seconds objects=tests/CMakeFiles/simt_tests.dir
  echo "mutate_kernels.sh: building $preset" >&2
  { configure "$preset" && cmake --build "$build/$preset" --parallel "$jobs" --target simt_tests; } \
    > "$build/$preset.log" 2>&1 || { tail -n 30 "$build/$preset.log" >&2; exit 2; }
  : > "$build/$preset.rows"
  for row in "${rows[@]}"; do
    TIMEFORMAT=%U
    seconds=$({ time run 3600 "$preset" "$row" > "$build/log/$row.$preset" 2>&1; } 2>&1) ||
      { echo "mutate_kernels.sh: $row fails without a mutation: $build/log/$row.$preset" >&2; exit 2; }
    ninja -C "$build/$preset" -t deps "$objects/$row.cu.o" | grep -oE '(kernels|examples)/[^ ]*/detail/[a-z0-9_]+\.cuh$' |
      sed "s,^,${seconds%.*} $row ," >> "$build/$preset.rows"
  done
}

# try PRESET NUMBER FILE: whether the preset notices the mutation, into a .result. Rows of the file's own name first, then quick ones.
try() {
  local preset=$1 number=$2 file=$3 row seconds ended
  local result=$build/log/$number.result
  [[ ! -s $result || $(< "$result") == SURVIVED ]] || return 0
  while read -r seconds row; do
    echo SURVIVED > "$result"
    ended=0
    NIBBLE_MUTANT=$number run $((10 + 5 * seconds)) "$preset" "$row" > "$build/log/$number" 2>&1 < /dev/null || ended=$?
    if [[ $ended -ne 0 ]]; then
      case $ended in
        137 | 152) echo "$preset, $row: no end" > "$result" ;;
        *) echo "$preset, $row" > "$result" ;;
      esac
      return 0
    fi
  done < <(awk -v f="$file" -v own="$(basename "$file" .cuh)" '$3 == f { print ($2 == own ? 0 : 1), $1, $2 }' \
    "$build/$preset.rows" | sort -n -k 1,1 -k 2,2 | cut -d ' ' -f 2-)
}
export -f try run
export build
if [[ ! $resume ]]; then
  cut -f 1 "$build/chosen" | while read -r number; do rm -f "$build/log/$number" "$build/log/$number.result"; done
fi
for preset in "${presets[@]}"; do
  prepare "$preset"
  cut -f 1,2 "$build/chosen" | tr '\t' ' ' | xargs -P "$jobs" -L 1 bash -c 'try "$@" 2> /dev/null' try "$preset"
done

# The table, and what it adds up to. survivors.txt: a key a line, its reason indented below it.
awk -F'\t' -v log_of="$build/log/" '
  FILENAME == ARGV[1] { if ($0 !~ /^( |#|$)/) known[$0] = 1; next }
  {
    result = ""
    getline result < (log_of $1 ".result")
    close(log_of $1 ".result")
    if (result == "") next
    tried++
    key = $5
    sub(/^[^:]*: /, "", $5)
    if (result != "SURVIVED") {
      split(result, of, ",")
      caught[of[1]]++
      if (key in known) { result = result ", though survivors.txt explains why none does"; wrong++ }
    } else if (key in known) { result = "explained"; explained++ }
    else { result = "SURVIVED"; wrong++ }
    printf "%d\t%s:%d\t%s\t%s\n", $1, $2, $3, $5, result
  }
  END {
    printf "%d mutations:", tried
    for (preset in caught) printf " %d noticed by %s,", caught[preset], preset
    printf " %d explained, %d left\n", explained, wrong
    exit wrong > 0
  }' "$explained" "$build/chosen"

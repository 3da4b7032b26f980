#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# gpu_check.sh [OPTION...]: what nibble's kernels do on this machine's GPU. gpu_check.sh --help tells more.
set -euo pipefail
export LC_ALL=C
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'END'
usage: tools/gpu_check.sh [OPTION...]
Builds the kernels' tests and benches with nvcc and runs them on the GPU, in phases:
  unpack    the .deb files of --debs into the work directory, for a machine that has no network
  build     cuda_tests and the benches; mistral_cuda_tests, the passes and bench_awq_pass too where the examples' libraries are
  test      every test
  memcheck  compute-sanitizer's memcheck on the quick tests, those that took 3 seconds at most more than the fastest
  racecheck its racecheck on the same
  bench     every bench beside a device copy; JSON to bench/results/GPU-DATE-COMMIT
  pass      the whole pass of AWQ, of GPTQ and of SmoothQuant on two layers of the shapes of Mistral-7B and Mistral-Small-24B, by phase; tables beside
            the JSON
  summary   a table of all that, which ends every other call too
A phase ends within --limit seconds. What it did not get to is left to the next call, and nothing that passed is done twice
unless the sources or --arch have changed.
  --phase NAME     that phase; "next": the first that has neither passed nor failed; "all" (default): all that have not passed
  --work DIR       where everything but the results is kept (default build-gpu-check)
  --debs DIR       .deb files as tools/fetch_gpu_check_debs.sh fetches them
  --arch LIST      what to compile for, as CMAKE_CUDA_ARCHITECTURES takes it (default: what nvidia-smi tells, else "80;90a")
  --limit SECONDS  of a phase (default 520)
  --jobs N         compile N files at a time (default: all cores)
  --commit NAME    what to call the sources where they are a copy without .git
Status: 0 passed, 1 something failed, 2 something is missing or an option is wrong, 3 not at the end: call it again.
END
}

say() { echo "gpu_check.sh: $1"; }
refuse() { say "$1" >&2; exit 2; }

phases=(unpack build test memcheck racecheck bench pass)
phase=all work=$source_dir/build-gpu-check debs='' arch='' limit=520 jobs=$(nproc) commit=''
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --phase | --work | --debs | --arch | --limit | --jobs | --commit)
      [[ -n ${2:-} ]] || refuse "$1 needs a value"
      declare "${1#--}=$2"
      shift ;;
    *) usage >&2; refuse "unknown option $1" ;;
  esac
  shift
done
[[ " ${phases[*]} summary all next " == *" $phase "* ]] || refuse "there is no phase $phase; phases are ${phases[*]} summary"
for number in "$limit" "$jobs"; do
  [[ $number =~ ^[1-9][0-9]{0,5}$ ]] || refuse "--limit and --jobs take whole numbers from 1 on, not $number"
done
[[ -z $debs || -d $debs ]] || refuse "--debs: there is no directory $debs"
[[ -z $commit || $commit =~ ^[0-9a-zA-Z._-]+$ ]] || refuse "--commit takes letters, digits, '.', '_' and '-', not $commit"
command -v timeout >/dev/null || refuse "timeout is missing; it is one of GNU coreutils"
asked=$phase
mkdir -p "$work/log"
work=$(cd "$work" && pwd)
prefix=$work/prefix/usr build=$work/build state=$work/state

# Libraries from .deb files, behind the system's programs and before its libraries.
if [[ -d $prefix ]]; then
  libraries=("$prefix"/lib/*-linux-gnu)
  export PATH=$PATH:$prefix/bin CMAKE_PREFIX_PATH=$prefix${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
  export LD_LIBRARY_PATH=${libraries[0]}:${libraries[0]}/openblas-pthread${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export CMAKE_LIBRARY_PATH=${libraries[0]}/openblas-pthread
  export CMAKE_INCLUDE_PATH=$prefix/include/${libraries[0]##*/}/openblas-pthread
  export PKG_CONFIG_SYSROOT_DIR=$work/prefix PKG_CONFIG_PATH=${libraries[0]}/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
fi
for cuda in "${CUDA_PATH:-}" /usr/local/cuda; do
  if [[ -n $cuda && -d $cuda/bin ]]; then PATH=$PATH:$cuda/bin:$cuda/compute-sanitizer; fi
done

if [[ -z $arch ]]; then
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ' || true)
  case $capability in
    90) arch=90a ;;
    [0-9]*) arch=$capability ;;
    *) arch='80;90a' ;;
  esac
fi
if [[ -z $commit ]]; then commit=$(git -C "$source_dir" rev-parse --short HEAD 2>/dev/null || echo unknown); fi
export NIBBLE_COMMIT=$commit

# --- What is known from earlier calls: a line "phase result seconds note" each.
forget() { if [[ -f $state ]]; then sed -i "/^$1 /d" "$state"; fi; }
result_of() { if [[ -f $state ]]; then sed -n "s/^$1 \([a-z]*\) .*/\1/p" "$state"; fi; }
seconds_of() { if [[ -f $state ]]; then sed -n "s/^$1 [a-z]* \([0-9]*\) .*/\1/p" "$state"; fi; }
remember() { # PHASE RESULT NOTE
  local seconds=$(($(seconds_of "$1") + SECONDS - began))
  forget "$1"
  echo "$1 $2 $seconds $3" >>"$state"
  say "$1: $2 after $seconds s${3:+: $3}"
}

sources=$(cd "$source_dir" && find CMakeLists.txt cmake include reference kernels examples tests bench -path bench/results -prune -o \
  -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-64)
if [[ $(cat "$work/sources" 2>/dev/null) != "$sources $arch" ]]; then
  for each in "${phases[@]:1}"; do forget "$each"; done
  rm -rf "$work"/{test,memcheck,racecheck}.txt "$work/bench"
  echo "$sources $arch" >"$work/sources"
fi

# --- Time.
began=0 child=''
trap 'if [[ -n $child ]]; then kill "$child" 2>/dev/null; fi; exit 130' INT TERM
left() { echo $((limit - (SECONDS - began))); }
# within SECONDS LOG COMMAND...: its status, 124 when it did not end.
within() {
  local seconds=$1 log=$2 status=0
  shift 2
  [[ $seconds -gt 0 ]] || return 124
  timeout -k 5 "$seconds" "$@" >>"$log" 2>&1 </dev/null &
  child=$!
  wait "$child" || status=$?
  child=''
  if [[ $status -eq 137 ]]; then status=124; fi
  return "$status"
}
show_end() { sed 's/^/    /' "$1" | tail -n "${2:-15}"; }

# --- Phases.
unpack() {
  local package count=0
  if [[ -z $debs ]]; then remember unpack passed "no --debs"; return; fi
  command -v dpkg-deb >/dev/null || refuse "dpkg-deb, which unpacks .deb files, is missing"
  for package in "$debs"/*.deb; do
    [[ -f $package ]] || refuse "there are no .deb files in $debs"
    dpkg-deb -x "$package" "$work/prefix" || { remember unpack failed "${package##*/}"; return; }
    count=$((count + 1))
  done
  # A library that the system has too is the system's: its other programs need that one.
  local library of_system
  for library in "$work"/prefix/usr/lib/*-linux-gnu/lib*.so.*; do
    of_system=$( (ldconfig -p 2>/dev/null || true) | awk -v name="${library##*/}" '$1 == name { print $NF; exit }')
    if [[ -n $of_system ]]; then ln -sf "$of_system" "$library"; fi
  done
  remember unpack passed "$count packages"
  exec_again=yes
}

build() {
  local tool log=$work/log/build.txt status=0
  command -v nvcc >/dev/null || refuse "nvcc, the CUDA toolkit's compiler, is missing: put it on the PATH or set CUDA_PATH"
  for tool in cmake ninja c++ pkg-config; do
    command -v "$tool" >/dev/null || refuse "$tool is missing; tools/install_dependencies.sh tests installs it, or --debs brings it"
  done
  : >"$log"
  local configure=(cmake -S "$source_dir" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNIBBLE_CUDA=ON -DNIBBLE_BENCH=ON
                   "-DCMAKE_CUDA_ARCHITECTURES=$arch")
  local targets=(cuda_tests cuda_benches mistral_cuda_tests bench_awq_pass) without=''
  within "$(left)" "$log" "${configure[@]}" -DNIBBLE_EXAMPLES=ON || status=$?
  if [[ $status -ne 0 && $status -ne 124 ]]; then
    status=0 targets=(cuda_tests cuda_benches) without=', without mistral_cuda_tests and bench_awq_pass, for CMake misses a library of the examples'
    within "$(left)" "$log" "${configure[@]}" -DNIBBLE_EXAMPLES=OFF || status=$?
  fi
  if [[ $status -ne 0 && $status -ne 124 ]]; then
    show_end "$log" 30 >&2
    rm -f "$build/CMakeCache.txt"
    remember build failed "CMake misses something; see $log"
    say "a library that CMake misses comes by tools/install_dependencies.sh tests, or by --debs"
    return
  fi
  if [[ $status -eq 0 ]]; then
    within "$(left)" "$log" cmake --build "$build" --parallel "$jobs" --target "${targets[@]}" || status=$?
  fi
  case $status in
    0) remember build passed "for $arch$without" ;;
    124) remember build unfinished "$(grep -o '^\[[0-9]*/[0-9]*\]' "$log" | tail -n 1) of what was left" ;;
    *) show_end "$log" 30; remember build failed "see $log" ;;
  esac
}

need_gpu() { # PHASE
  [[ $(result_of build) == passed ]] || refuse "phase $1 needs the programs of phase build, which has not passed"
  local status=0
  "$build/bin/cuda_tests" --warn NoAssertions "no test has this name" >"$work/log/gpu.txt" 2>&1 || status=$?
  [[ $status -ne 77 ]] || refuse "phase $1 needs a GPU, and CUDA finds none on this machine"
  [[ $status -eq 0 ]] || { show_end "$work/log/gpu.txt" >&2; refuse "cuda_tests does not start; its last lines stand above"; }
}

milliseconds() { local now=${EPOCHREALTIME/./}; echo $((now / 1000)); }

# run_tests PHASE EACH NAMES COMMAND...: each test of the file NAMES, a line "program: name" each, that has no line in PHASE.txt yet,
# EACH seconds at most, by COMMAND. Lines there are "result milliseconds program: name".
run_tests() {
  local name=$1 each=$2 names=$3 record=$work/$1.txt log=$work/log/$1.txt test spec start status result given ended=yes
  shift 3
  touch "$record"
  if [[ $(result_of "$name") == failed ]]; then sed -i '/^passed /!d' "$record"; fi # these get another chance
  declare -A done_before=()
  while read -r result start test; do done_before[$test]=$result; done <"$record"
  [[ ${#done_before[@]} -gt 0 ]] || : >"$log"
  while IFS= read -r test <&3; do
    [[ -z ${done_before[$test]:-} ]] || continue
    given=$(left)
    if [[ $given -gt $each ]]; then given=$each; fi
    spec=$(printf '%s\n' "${test#*: }" | sed 's/[][,\\]/\\&/g')
    start=$(milliseconds) status=0
    echo "=== $test" >>"$log"
    within "$given" "$log" "$@" "$build/bin/${test%%: *}" --warn NoTests "$spec" || status=$?
    case $status in
      0) result=passed ;;
      124) # Unless it had all the time there is, it gets another chance.
        if [[ $given -lt $each && $((given + 2)) -lt $limit ]]; then ended=no; break; fi
        result=endless ;;
      *) result=failed ;;
    esac
    echo "$result $(($(milliseconds) - start)) $test" >>"$record"
    if [[ $result == failed ]]; then say "$name: failed: $test"; fi
    if [[ $result == endless ]]; then say "$name: did not end within $given s: $test"; fi
  done 3<"$names"
  local passed failed endless all
  passed=$(grep -c '^passed ' "$record" || true) failed=$(grep -c '^failed ' "$record" || true)
  endless=$(grep -c '^endless ' "$record" || true) all=$(wc -l <"$names")
  note="$passed of $all tests passed, $failed failed"
  if [[ $endless -gt 0 ]]; then note+=", $endless did not end"; fi
  if [[ $ended == no ]]; then
    verdict=unfinished
  elif [[ $failed -gt 0 || $passed -eq 0 || ($name == test && $endless -gt 0) ]]; then
    verdict=failed note+="; see $log"
  else
    verdict=passed
  fi
}

test_phase() {
  need_gpu test
  local program
  for program in cuda_tests mistral_cuda_tests; do
    [[ -x $build/bin/$program ]] || continue
    # Its status is the number of tests.
    { "$build/bin/$program" --list-test-names-only || true; } | sed "s/^/$program: /"
  done >"$work/names.txt"
  run_tests test "$limit" "$work/names.txt"
  remember test "$verdict" "$note"
}

sanitize() { # memcheck|racecheck
  need_gpu "$1"
  if ! command -v compute-sanitizer >/dev/null; then
    remember "$1" missing "compute-sanitizer, a tool of the CUDA toolkit, is not here"
    return
  fi
  [[ -s $work/test.txt ]] || refuse "$1 runs the tests that phase test found quick: run that one first"
  # A process takes its time to meet the GPU; what the fastest one took counts for that.
  awk 'NR == FNR { if (fastest == "" || $2 < fastest) fastest = $2; next } $1 == "passed" && $2 <= fastest + 3000' \
    "$work/test.txt" "$work/test.txt" | cut -d ' ' -f 3- >"$work/quick.txt"
  local how=(--tool "$1" --error-exitcode 86)
  # Tests provoke errors of the runtime, and look at its answers themselves.
  if [[ $1 == memcheck ]]; then how+=(--report-api-errors no); fi
  run_tests "$1" 60 "$work/quick.txt" compute-sanitizer "${how[@]}"
  remember "$1" "$verdict" "$note"
}

bench() {
  need_gpu bench
  local program name status log=$work/log/bench.txt done_now=0 failed=''
  mkdir -p "$work/bench"
  for program in "$build"/bin/bench_*_cuda; do
    [[ -f $program ]] || refuse "phase build left no bench"
    name=${program##*/bench_} name=${name%_cuda} status=0
    done_now=$((done_now + 1))
    [[ ! -f $work/bench/$name.json || -f $work/bench/$name.failed ]] || continue
    echo "=== $name" >>"$log"
    within "$(left)" "$log" "$program" "--benchmark_out=$work/bench/$name.part" --benchmark_out_format=json || status=$?
    if [[ $status -eq 124 ]]; then
      remember bench unfinished "stopped in $name"
      return
    fi
    rm -f "$work/bench/$name.failed"
    if [[ $status -ne 0 ]]; then failed+="$name " && touch "$work/bench/$name.failed"; fi
    if [[ -s $work/bench/$name.part ]]; then mv "$work/bench/$name.part" "$work/bench/$name.json"; fi
  done
  if [[ -n $failed ]]; then
    show_end "$log"
    remember bench failed "${failed% }; see $log"
  else
    remember bench passed "$done_now benches"
  fi
  keep_results
}

pass_phase() {
  need_gpu pass
  local method shape status=0 text=$work/bench/pass
  if [[ ! -x $build/bin/bench_awq_pass ]]; then
    remember pass missing "phase build left no bench_awq_pass"
    return
  fi
  mkdir -p "$work/bench"
  for method in awq gptq smoothquant; do
    for shape in 7b 24b; do
      [[ ! -f ${text}_${method}_$shape.txt ]] || continue
      : >"$text.part"
      within "$(left)" "$text.part" "$build/bin/bench_awq_pass" "$work/pass" --method "$method" --shape "$shape" --layers 2 --backend cuda ||
        status=$?
      rm -rf "$work/pass/awq_pass"
      case $status in
        0) mv "$text.part" "${text}_${method}_$shape.txt" ;;
        124) remember pass unfinished "stopped in $method of $shape"; return ;;
        *) show_end "$text.part"; remember pass failed "$method of $shape: see $text.part"; return ;;
      esac
    done
  done
  remember pass passed "awq, gptq and smoothquant, 7b and 24b"
  keep_results
}

keep_results() {
  local first gpu to
  first=$(find "$work/bench" -name '*.json' | sort | head -n 1)
  [[ -n $first ]] || return 0
  gpu=$(sed -n 's/^ *"gpu": "\(.*\)".*/\1/p' "$first" | tr -c 'a-zA-Z0-9\n' '-' | tr -s '-')
  to=$source_dir/bench/results/${gpu:-GPU}-$(date -u -r "$first" +%Y-%m-%d)-$commit
  mkdir -p "$to"
  cp "$work"/bench/*.json "$to"
  for first in "$work"/bench/pass_*.txt; do if [[ -f $first ]]; then cp "$first" "$to"; fi; done
  if command -v nvidia-smi >/dev/null; then nvidia-smi -q -d CLOCK,POWER >"$to/nvidia-smi.txt" 2>&1 || true; fi
  echo "$to" >"$work/results"
}

summary() {
  local each line
  echo
  printf '%-10s %-11s %7s  %s\n' phase result seconds note
  for each in "${phases[@]}"; do
    line=$(grep "^$each " "$state" 2>/dev/null || echo "$each - - ")
    awk '{ r = $2 == "-" ? "not run" : $2; n = $0; sub(/^[^ ]* [^ ]* [^ ]* ?/, "", n)
           printf "%-10s %-11s %7s  %s\n", $1, r, $3, n }' <<<"$line"
  done
  compgen -G "$work/bench/*.json" >/dev/null || return 0
  echo
  # Google Benchmark writes a key a line.
  awk 'function row() { if (name != "") printf "%-64s %10s %10s %8s\n", name, time, rate, share; name = "" }
       function value() { v = $0; sub(/^[^:]*: /, "", v); sub(/,$/, "", v); return v }
       BEGIN { printf "%-64s %10s %10s %8s\n", "kernel/shape/L2", "us", "GB/s", "of copy" }
       /^ *"name":/ { row(); name = value(); gsub(/"/, "", name); sub(/\/iterations:.*/, "", name); time = rate = share = "-" }
       /^ *"us":/ { time = sprintf("%.1f", value()) }
       /^ *"GB\/s":/ { rate = sprintf("%.0f", value()) }
       /^ *"TFLOP\/s":/ { rate = sprintf("%.1f TF/s", value()) }
       /^ *"copy":/ { share = sprintf("%.0f %%", 100 * value()) }
       /^ *"product":/ { share = sprintf("%.0f %% *", 100 * value()) }
       /^ *"error_message":/ { rate = "failed" }
       END { row() }' "$work"/bench/*.json
  echo "* of cuBLAS in the same run"
  for each in "$work"/bench/pass_*.txt; do
    if [[ -f $each ]]; then echo && cat "$each"; fi
  done
  if [[ -f $work/results ]]; then say "JSON is in $(cat "$work/results")"; fi
}

run_phase() {
  began=$SECONDS
  case $1 in
    test) test_phase ;;
    pass) pass_phase ;;
    memcheck | racecheck) sanitize "$1" ;;
    *) "$1" ;;
  esac
}

if [[ -n $debs ]] && grep -q '^unpack passed [0-9]* no --debs' "$state" 2>/dev/null; then forget unpack; fi
exec_again=no
case $phase in
  summary) ;;
  next)
    for each in "${phases[@]}"; do
      result=$(result_of "$each")
      if [[ -z $result || $result == unfinished || ($each == build && $result == failed) ]]; then phase=$each; break; fi
    done
    if [[ $phase == next ]]; then say "every phase has run"; else run_phase "$phase"; fi ;;
  all)
    for each in "${phases[@]}"; do
      [[ $(result_of "$each") != passed ]] || continue
      run_phase "$each"
      # What was unpacked is to be found by what follows.
      if [[ $exec_again == yes ]]; then
        exec "${BASH_SOURCE[0]}" --work "$work" --debs "$debs" --arch "$arch" --limit "$limit" --jobs "$jobs" --commit "$commit"
      fi
      [[ $each != unpack && $each != build || $(result_of "$each") == passed ]] || break
    done ;;
  *) run_phase "$phase" ;;
esac
summary
# One phase answers for itself, "all", "next" and "summary" for all.
if [[ $asked != all && $asked != next && $asked != summary ]]; then phases=("$asked"); fi
results=$(for each in "${phases[@]}"; do echo "${each}=$(result_of "$each")"; done)
if grep -q '=failed$' <<<"$results"; then exit 1; fi
if grep -q '=missing$' <<<"$results"; then exit 2; fi
if grep -q -e '=unfinished$' -e '=$' <<<"$results"; then exit 3; fi

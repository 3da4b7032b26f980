// SPDX-License-Identifier: Apache-2.0
/// @file
/// The yardstick of every bench of memory-bound code: a copy by the same threads, by turns with what is measured, so
/// that both see the same machine. Bytes per second count what is read and what is written, for the copy as for the
/// rest.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "nibble/host/parallel.hpp"

namespace bench {

constexpr nibble::index_t copied_bytes = nibble::index_t(128) << 20;

/// Seconds of one call.
template <class F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// One copy of copied_bytes, in pieces of 1 MiB, on all threads.
inline void copy() {
  static std::vector<unsigned char> from(copied_bytes, 1), to(copied_bytes, 2);
  constexpr nibble::index_t piece = nibble::index_t(1) << 20;
  nibble::host::parallel_for(copied_bytes / piece,
                             [](nibble::index_t i) { std::memcpy(&to[i * piece], &from[i * piece], piece); });
}

/// Times f, which reads and writes `bytes`, and the copy by turns; `copy` is f's rate over the copy's, fastest to
/// fastest.
template <class F>
void beside_copy(benchmark::State& state, nibble::index_t bytes, F&& f) {
  nibble::host::set_threads(static_cast<int>(state.range(0)));
  f();
  copy();
  double ours = 1e9, theirs = 1e9;
  for (auto _ : state) {
    const double time = seconds(f);
    ours = std::min(ours, time);
    theirs = std::min({theirs, seconds(copy), seconds(copy)});
    state.SetIterationTime(time);
  }
  const double rate = static_cast<double>(bytes) / ours, copy_rate = 2.0 * static_cast<double>(copied_bytes) / theirs;
  state.counters["GB/s"] = rate / 1e9;
  state.counters["copy_GB/s"] = copy_rate / 1e9;
  state.counters["copy"] = rate / copy_rate;
}

}  // namespace bench

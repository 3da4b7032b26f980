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
#include "nibble/host/streamed.hpp"

namespace bench {

constexpr nibble::index_t copied_bytes = nibble::index_t(128) << 20;

/// Seconds of one call.
template <class F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// f(from, to, bytes) over copied_bytes, in pieces of 1 MiB, on all threads.
template <class F>
void copy_by(F f) {
  static std::vector<unsigned char> from(copied_bytes, 1), to(copied_bytes, 2);
  constexpr nibble::index_t piece = nibble::index_t(1) << 20;
  nibble::host::parallel_for(copied_bytes / piece,
                             [&](nibble::index_t i) { f(&from[i * piece], &to[i * piece], piece); });
}

inline void copy() {
  copy_by([](const void* from, void* to, nibble::index_t bytes) { std::memcpy(to, from, bytes); });
}

/// The same past the caches.
inline void streamed_copy() {
  copy_by([](const unsigned char* from, void* to, nibble::index_t bytes) {
    constexpr int piece = 1024;
    nibble::host::detail::line_stream<piece> out(to);
    for (; bytes > 0; bytes -= piece, from += piece) {
      for (int line = 0; line < piece; line += 64) nibble::host::detail::ask_ahead<false>(from, 2048 + line);
      std::memcpy(out.next(), from, piece);
      out.put(piece);
    }
    out.finish();
  });
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

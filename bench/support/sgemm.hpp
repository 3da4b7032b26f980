// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the machine's BLAS reaches beside a bench: one matrix product a thread, 1024 on each side.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <vector>

#include "copy.hpp"
#include "nibble/host/matmul.hpp"

namespace bench {

inline std::vector<float> normal(nibble::index_t count, unsigned seed, float deviation = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw(0.0f, deviation);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = draw(engine);
  return out;
}

/// FLOP/s of sgemm on all threads.
inline double sgemm_rate() {
  constexpr nibble::index_t edge = 1024, repeats = 4;
  static const std::vector<float> a = normal(edge * edge, 1);
  const auto threads = static_cast<nibble::index_t>(nibble::host::pool().size());
  std::vector<std::vector<float>> out(static_cast<size_t>(threads), std::vector<float>(a.size()));
  const nibble::matrix<const float> x(a.data(), edge, edge);
  nibble::host::detail::single_threaded_blas();
  const double time = seconds([&] {
    nibble::host::parallel_for(threads, [&](nibble::index_t i) {
      for (nibble::index_t repeat = 0; repeat < repeats; ++repeat)
        nibble::host::detail::sgemm(CblasNoTrans, CblasTrans, edge, edge, edge, x, x, 0.0f,
                                    {out[static_cast<size_t>(i)].data(), edge, edge});
    });
  });
  return static_cast<double>(2 * edge * edge * edge * repeats * threads) / time;
}

/// Times f and the product by turns, so that both see the same machine; `sgemm` is f's rate over the product's, fastest to
/// fastest.
/// @param flop  what f has to compute at least, sums and products.
template <class F>
void beside_sgemm(benchmark::State& state, double flop, F&& f) {
  nibble::host::set_threads(static_cast<int>(state.range(0)));
  f();
  double ours = 0, theirs = 0;
  for (auto _ : state) {
    const double time = seconds(f);
    ours = std::max(ours, flop / time);
    theirs = std::max({theirs, sgemm_rate(), sgemm_rate()});
    state.SetIterationTime(time);
  }
  state.counters["GFLOP/s"] = ours / 1e9;
  state.counters["sgemm_GFLOP/s"] = theirs / 1e9;
  state.counters["sgemm"] = ours / theirs;
}

}  // namespace bench

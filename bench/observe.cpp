// SPDX-License-Identifier: Apache-2.0
/// @file
/// Gathering statistics of 2048 tokens of 4096 channels: the Gram matrix beside the BLAS's own rate, the sums beside a copy.
#include <benchmark/benchmark.h>

#include <vector>

#include "nibble/host/observe.hpp"
#include "support/copy.hpp"
#include "support/sgemm.hpp"

using namespace nibble;

namespace {

constexpr index_t tokens = 2048, channels = 4096;

const std::vector<float>& activations() {
  static const std::vector<float> x = bench::normal(tokens * channels, 3);
  return x;
}

/// m·k·(k + 1): a product and a sum for each token and each pair of channels.
void gram(benchmark::State& state) {
  std::vector<float> g(static_cast<size_t>(channels * channels));
  bench::beside_sgemm(state, static_cast<double>(tokens) * static_cast<double>(channels * (channels + 1)), [&] {
    host::gram({activations().data(), tokens, channels}, {g.data(), channels, channels});
  });
}

constexpr index_t bytes_read = tokens * channels * static_cast<index_t>(sizeof(float));

void absolute_sum(benchmark::State& state) {
  std::vector<double> sum(static_cast<size_t>(channels), 0.0);
  bench::beside_copy(state, bytes_read, [&] {
    host::absolute_sum({activations().data(), tokens, channels}, sum.data());
  });
}

void absolute_maximum(benchmark::State& state) {
  std::vector<float> maximum(static_cast<size_t>(channels), 0.0f);
  bench::beside_copy(state, bytes_read, [&] {
    host::absolute_maximum({activations().data(), tokens, channels}, maximum.data());
  });
}

void count_non_finite(benchmark::State& state) {
  bench::beside_copy(state, bytes_read, [&] {
    benchmark::DoNotOptimize(host::count_non_finite({activations().data(), tokens, channels}));
  });
}

}  // namespace

BENCHMARK(gram)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(absolute_sum)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(absolute_maximum)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(count_non_finite)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_MAIN();

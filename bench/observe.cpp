// SPDX-License-Identifier: Apache-2.0
/// @file
/// Gathering statistics of 2048 tokens of 4096 channels: the Gram matrix beside the BLAS's own rate, the sums, ranges and histogram
/// beside a copy, and how long a threshold's search takes.
#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "nibble/host/histogram.hpp"
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
void gram(benchmark::State& state, host::matmul_precision how) {
  std::vector<float> g(static_cast<size_t>(channels * channels));
  bench::beside_sgemm(state, static_cast<double>(tokens) * static_cast<double>(channels * (channels + 1)), [&] {
    host::gram({activations().data(), tokens, channels}, {g.data(), channels, channels}, how);
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

void range_of(benchmark::State& state) {
  bench::beside_copy(state, bytes_read, [&] {
    benchmark::DoNotOptimize(host::range_of(matrix<const float>(activations().data(), tokens, channels)));
  });
}

void channel_ranges(benchmark::State& state) {
  std::vector<value_range> ranges(static_cast<size_t>(channels));
  bench::beside_copy(state, bytes_read, [&] {
    host::channel_ranges(matrix<const float>(activations().data(), tokens, channels), ranges.data());
  });
}

void histogram(benchmark::State& state) {
  bench::beside_copy(state, bytes_read, [&] {
    host::magnitude_histogram h;
    h.add(matrix<const float>(activations().data(), tokens, channels));
    benchmark::DoNotOptimize(h.counts().data());
  });
}

/// search(histogram) → threshold, over a histogram that is full: of |x| up to 2 in bins of 1/1024.
template <class F>
void search(benchmark::State& state, F search) {
  host::set_threads(static_cast<int>(state.range(0)));
  host::magnitude_histogram h;
  std::vector<float> x = bench::normal(1 << 20, 3);
  for (float& value : x) value = std::fmod(value, 2.0f);
  h.add(matrix<const float>(x.data(), 1024, 1024));
  for (auto _ : state) benchmark::DoNotOptimize(search(h));
}
void l2_int8(benchmark::State& state) {
  search(state, [](const auto& h) { return host::l2_threshold(h, 127); });
}
void l2_e4m3(benchmark::State& state) {
  search(state, [](const auto& h) { return host::l2_threshold(h, float_format::e4m3); });
}
void kl(benchmark::State& state) {
  search(state, [](const auto& h) { return host::kl_threshold(h); });
}

}  // namespace

BENCHMARK_CAPTURE(gram, float32, host::matmul_precision::float32)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(gram, bfloat16, host::matmul_precision::bfloat16)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(absolute_sum)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(absolute_maximum)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(count_non_finite)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(range_of)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(channel_ranges)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(histogram)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(l2_int8)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(l2_e4m3)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(kl)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK_MAIN();

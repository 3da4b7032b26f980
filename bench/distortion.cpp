// SPDX-License-Identifier: Apache-2.0
/// @file
/// Distortion of a 4096 × 14336 matrix and KL divergence of 256 rows of 32000 logits, beside a copy: bench_distortion.
#include "nibble/host/distortion.hpp"
#include "support/copy.hpp"
#include "support/matrices.hpp"

using namespace nibble;

namespace {

void distortion_of(benchmark::State& state) {
  const auto x = bench::normal_weights<float>();
  const auto y = bench::normal_weights<bf16>();
  const matrix<const float> a(x.data(), bench::n, bench::k);
  const matrix<const bf16> b(y.data(), bench::n, bench::k);
  bench::beside_copy(state, a.size() * 6, [&] { benchmark::DoNotOptimize(host::distortion(a, b).noise); });
}

void kl_divergence_of(benchmark::State& state) {
  constexpr index_t rows = 256, vocabulary = 32000;
  auto p = bench::normal_weights<float>();
  for (float& x : p) x *= 100.0f;
  const matrix<const float> a(p.data(), rows, vocabulary), b(p.data() + rows * vocabulary, rows, vocabulary);
  std::vector<double> divergence(static_cast<std::size_t>(rows));
  bench::beside_copy(state, 8 * rows * vocabulary, [&] { host::kl_divergence(a, b, divergence.data()); });
}

BENCHMARK(distortion_of)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(kl_divergence_of)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();

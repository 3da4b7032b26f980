// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's steps on a linear of 4096 × 4096 in groups of 128, 4 bits, beside the BLAS's own rate: with the Gram matrix of
/// 4096 tokens, and with 2048 tokens that are kept.
#include <benchmark/benchmark.h>

#include <vector>

#include "nibble/host/awq.hpp"
#include "support/sgemm.hpp"

using namespace nibble;

namespace {

constexpr index_t n = 4096, k = 4096, group = 128;

const host::second_moment& inputs(bool sampled) {
  static const auto make = [](index_t tokens) {
    auto x = bench::normal(tokens * k, 3);
    for (size_t i = 1; i < x.size(); ++i) x[i] = 0.6f * x[i] + 0.8f * x[i - 1];  // neighbours are correlated
    host::second_moment moment(k, tokens, 0.5f);
    moment.add({x.data(), tokens, k});
    moment.finish();
    return moment;
  };
  static const host::second_moment gram = make(k), kept = make(k / 2);
  return sampled ? kept : gram;
}

struct linear {
  std::vector<float> w = bench::normal(n * k, 1, 0.02f), s;
  std::vector<params> fitted;
  std::vector<uint8_t> codes;
  any_scheme scheme;

  linear() : s(static_cast<size_t>(k), 1.0f), fitted(static_cast<size_t>(n * (k / group))), codes(w.size()) {
    host::fit(weights(), p(), per_group(group), scheme, minmax{});
    host::quantize(weights(), matrix<const params>(p()), q(), per_group(group), scheme);
  }
  matrix<const float> weights() const { return {w.data(), n, k}; }
  matrix<params> p() { return {fitted.data(), n, k / group}; }
  matrix<uint8_t> q() { return {codes.data(), n, k}; }
};

linear& shared() {
  static linear instance;
  return instance;
}

/// 2·n·k² with the Gram matrix, 2·n·k·m with m tokens.
double product(bool sampled) {
  return 2.0 * static_cast<double>(n * k) * static_cast<double>(sampled ? inputs(true).tokens() : k);
}

template <class Method>
void scaled_loss(benchmark::State& state, bool sampled, Method method) {
  const linear& l = shared();
  bench::beside_sgemm(state, product(sampled), [&] {
    benchmark::DoNotOptimize(host::scaled_loss(l.weights(), l.s.data(), inputs(sampled), group, l.scheme, method));
  });
}

/// The slopes to begin with, then one round that updates them.
void sweep(benchmark::State& state, bool sampled) {
  linear l = shared();
  bench::beside_sgemm(state, (sampled ? 3 : 2) * product(sampled), [&] {
    l.codes = shared().codes;
    host::sweep(l.weights(), l.s.data(), inputs(sampled), matrix<const params>(l.p()), group, l.scheme, 1, l.q());
  });
}

/// 49 ranges and 16 finer ones, each judged by a product over the group.
void clip_under_gram(benchmark::State& state, bool sampled) {
  linear l = shared();
  bench::beside_sgemm(state, 66 * 2.0 * static_cast<double>(n * k) * static_cast<double>(group), [&] {
    l.fitted = shared().fitted;
    host::clip_under_gram(l.weights(), l.s.data(), inputs(sampled), group, l.scheme, l.p());
  });
}

}  // namespace

BENCHMARK_CAPTURE(scaled_loss, minmax gram, false, minmax{})->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(scaled_loss, minmax tokens, true, minmax{})->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(scaled_loss, ends gram, false, ends_search{})->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(sweep, gram, false)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(sweep, tokens, true)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(clip_under_gram, gram, false)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(clip_under_gram, tokens, true)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_MAIN();

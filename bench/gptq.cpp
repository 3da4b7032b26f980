// SPDX-License-Identifier: Apache-2.0
/// @file
/// GPTQ of whole linears in groups of 128, 4 bits, step by step, beside the BLAS's own rate: 4096 × 4096, and 14336 × 4096.
#include <benchmark/benchmark.h>

#include <map>
#include <vector>

#include "nibble/host/gptq.hpp"
#include "nibble/host/refit.hpp"
#include "nibble/host/target.hpp"
#include "support/sgemm.hpp"

using namespace nibble;

namespace {

constexpr index_t k = 4096, group = 128;

/// Inputs, and what they were in the original model.
struct activations {
  std::vector<float> x = bench::normal(k * k, 3), original;

  activations() {
    for (size_t i = 1; i < x.size(); ++i) x[i] = 0.6f * x[i] + 0.8f * x[i - 1];  // neighbours are correlated
    original = x;
    for (size_t i = 1; i < x.size(); ++i) original[i] += 0.05f * x[i - 1];
  }
  matrix<const float> now() const { return {x.data(), k, k}; }
  matrix<const float> before() const { return {original.data(), k, k}; }
};
const activations& tokens() {
  static const activations instance;
  return instance;
}

const host::second_moment& inputs() {
  static const host::second_moment moment = [] {
    host::second_moment out(k, k, 0.5f);
    out.add(tokens().now());
    out.finish();
    return out;
  }();
  return moment;
}

host::hessian make_hessian() {
  return {inputs(), nullptr, group, activation_order::none, 0.01f};
}
const host::hessian& factored() {
  static const host::hessian instance = make_hessian();
  return instance;
}

struct linear {
  index_t n;
  std::vector<float> w, s;
  std::vector<params> fitted;
  std::vector<uint8_t> codes;
  any_scheme scheme;

  explicit linear(index_t rows)
      : n(rows),
        w(bench::normal(rows * k, 1, 0.02f)),
        s(static_cast<size_t>(k), 1.0f),
        fitted(static_cast<size_t>(rows * (k / group))),
        codes(w.size()) {}

  matrix<const float> weights() const { return {w.data(), n, k}; }
  matrix<params> p() { return {fitted.data(), n, k / group}; }
  matrix<uint8_t> q() { return {codes.data(), n, k}; }
  void solve(host::gptq_ranges ranges) {
    benchmark::DoNotOptimize(host::gptq(weights(), factored(), ranges, scheme, p(), q()));
  }
  void refine(int rounds) { host::sweep_and_refit(weights(), s.data(), inputs(), group, scheme, rounds, p(), q()); }
};

linear& of(index_t rows) {
  static std::map<index_t, linear> made;
  return made.try_emplace(rows, rows).first->second;
}

double cubed(index_t x) {
  return static_cast<double>(x) * static_cast<double>(x) * static_cast<double>(x);
}
/// n·k²: what the errors of all columns before take, half a product of (n, k) by (k, k).
double solving(index_t rows) {
  return static_cast<double>(rows) * static_cast<double>(k * k);
}

/// The Gram matrix of 4096 tokens: upper half.
void statistics(benchmark::State& state) {
  bench::beside_sgemm(state, cubed(k), [] {
    host::second_moment out(k, k, 0.5f);
    out.add(tokens().now());
    out.finish();
    benchmark::DoNotOptimize(out.gram_matrix().data);
  });
}

void drift(benchmark::State& state) {
  bench::beside_sgemm(state, 2 * cubed(k), [] {
    host::drift out(k);
    out.add(tokens().before(), tokens().now());
    benchmark::DoNotOptimize(out.sum().data);
  });
}

void factorise(benchmark::State& state) {
  bench::beside_sgemm(state, cubed(k) / 3, [] { benchmark::DoNotOptimize(make_hessian().unit()); });
}

void target(benchmark::State& state) {
  host::drift moved(k);
  moved.add(tokens().before(), tokens().now());
  linear& l = of(state.range(1));
  std::vector<float> out(l.w.size());
  bench::beside_sgemm(state, 4 * solving(l.n), [&] {
    host::moved_target(l.weights(), l.s.data(), moved, factored(), {}, 0.5f, {out.data(), l.n, k});
  });
}

void solve(benchmark::State& state, host::gptq_ranges ranges) {
  linear& l = of(state.range(1));
  bench::beside_sgemm(state, solving(l.n), [&] { l.solve(ranges); });
}

/// A sweep over the codes and a round over the parameters, and the slopes to begin with.
void refine(benchmark::State& state) {
  linear& l = of(state.range(1));
  l.solve(host::gptq_ranges::minmax);
  const auto codes = l.codes;
  const auto fitted = l.fitted;
  bench::beside_sgemm(state, 6 * solving(l.n), [&] {
    l.codes = codes;
    l.fitted = fitted;
    l.refine(1);
  });
}

/// What the published algorithm does, given the Gram matrix: factor, then codes in min-max ranges of the weights as they are.
void published(benchmark::State& state) {
  linear& l = of(state.range(1));
  bench::beside_sgemm(state, cubed(k) / 3 + solving(l.n), [&] {
    const host::hessian h = make_hessian();
    benchmark::DoNotOptimize(host::gptq(l.weights(), h, host::gptq_ranges::minmax, l.scheme, l.p(), l.q()));
  });
}

void options(benchmark::internal::Benchmark* b) {
  b->UseManualTime()->Unit(benchmark::kMillisecond);
}
void both(benchmark::internal::Benchmark* b) {
  options(b);
  b->Args({2, 4096})->Args({2, 14336});
}

}  // namespace

BENCHMARK(statistics)->Apply(options)->Arg(2);
BENCHMARK(drift)->Apply(options)->Arg(2);
BENCHMARK(factorise)->Apply(options)->Arg(2);
BENCHMARK(target)->Apply(both);
BENCHMARK_CAPTURE(solve, minmax, host::gptq_ranges::minmax)->Apply(both);
BENCHMARK_CAPTURE(solve, mse, host::gptq_ranges::mse)->Apply(both);
BENCHMARK_CAPTURE(solve, gram, host::gptq_ranges::gram)->Apply(both);
BENCHMARK(refine)->Apply(both);
BENCHMARK(published)->Apply(both);
BENCHMARK_MAIN();

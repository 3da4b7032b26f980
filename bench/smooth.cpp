// SPDX-License-Identifier: Apache-2.0
/// @file
/// int8 on the host: products of codes on every path that this machine runs beside OpenBLAS's sgemm and beside dot products of one row
/// by one token that stay in the first-level cache, which is the floor; activations of 512 tokens to codes beside a copy.
#include <string>

#include "nibble/host/smooth.hpp"
#include "support/copy.hpp"
#include "support/sgemm.hpp"

using namespace nibble;

namespace {

std::vector<uint8_t> random_codes(index_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(1 + engine() % 255);
  return codes;
}

/// Operations a second of Kernel's own tile on all threads, of operands that stay in the first-level cache.
template <class Kernel>
double tile_rate() {
  constexpr index_t k = 2048, repeats = 4096;
  const auto threads = static_cast<index_t>(host::pool().size());
  const auto w = random_codes(Kernel::rows * k, 1);
  const std::vector<typename Kernel::input> x(static_cast<size_t>(Kernel::tokens * k), 3);
  const double time = bench::seconds([&] {
    host::parallel_for(threads, [&](index_t) {
      for (index_t repeat = 0; repeat < repeats; ++repeat) {
        uint32_t sums[Kernel::rows * Kernel::tokens];
        Kernel::template multiply<Kernel::rows, Kernel::tokens>({w.data(), k, x.data(), k, k}, sums);
        benchmark::DoNotOptimize(sums);
      }
    });
  });
  return static_cast<double>(2 * k * repeats * threads * Kernel::rows * Kernel::tokens) / time;
}

/// m tokens by a linear of 4096 × 4096.
template <class Kernel>
void product(benchmark::State& state) {
  constexpr index_t n = 4096, k = 4096;
  const index_t m = state.range(1);
  const auto x = random_codes(m * k, 1), w = random_codes(n * k, 2);
  const std::vector<float> scales(static_cast<size_t>(m), 0.01f);
  const std::vector<params> p(static_cast<size_t>(n), params{0.01f, 128});
  std::vector<float> y(static_cast<size_t>(m * n));
  host::set_threads(static_cast<int>(state.range(0)));
  const auto multiply = [&] {
    host::detail::int8_matmul<Kernel>({x.data(), m, k}, {scales.data(), m, 1}, {w.data(), n, k}, {p.data(), n, 1},
                                      {y.data(), m, n});
  };
  const double operations = static_cast<double>(2 * m * n * k);
  multiply();
  double ours = 0, theirs = 0, floor = 0;
  for (auto _ : state) {
    const double time = bench::seconds(multiply);
    ours = std::max(ours, operations / time);
    theirs = std::max(theirs, bench::sgemm_rate());
    floor = std::max(floor, tile_rate<Kernel>());
    state.SetIterationTime(time);
  }
  state.counters["Gop/s"] = ours / 1e9;
  state.counters["sgemm"] = ours / theirs;
  state.counters["floor"] = ours / floor;
}

constexpr index_t tokens = 512, channels = 14336;

template <class T>
std::vector<T> activations() {
  const auto drawn = bench::normal(tokens * channels, 3);
  std::vector<T> x(drawn.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = T(drawn[i]);
  return x;
}

template <class T>
void quantize(benchmark::State& state) {
  const auto x = activations<T>();
  std::vector<float> scales(static_cast<size_t>(tokens));
  std::vector<uint8_t> q(x.size());
  bench::beside_copy(state, tokens * channels * (static_cast<index_t>(sizeof(T)) + 1), [&] {
    host::quantize_tokens(matrix<const T>(x.data(), tokens, channels), {scales.data(), tokens, 1},
                          {q.data(), tokens, channels});
  });
}

void add_product(const char* name, void (*f)(benchmark::State&)) {
  auto* b = benchmark::RegisterBenchmark(name, f);
  b->ArgNames({"threads", "tokens"})->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(5);
  for (const int m : {1, 16, 512}) b->Args({2, m});
}

void add_quantize(const char* name, void (*f)(benchmark::State&)) {
  benchmark::RegisterBenchmark(name, f)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond)->MinTime(0.3);
}

}  // namespace

int main(int argc, char** argv) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (host::detail::vnni_int8::here()) add_product("int8_matmul/vnni", product<host::detail::vnni_int8>);
  if (__builtin_cpu_supports("avx2")) add_product("int8_matmul/avx2", product<host::detail::avx2_int8>);
#endif
  add_product("int8_matmul/plain", product<host::detail::plain_int8>);
  add_quantize("quantize_tokens/f32", quantize<float>);
  add_quantize("quantize_tokens/bf16", quantize<bf16>);
  add_quantize("quantize_tokens/f16", quantize<fp16>);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}

// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear of 28,672 outputs by 8,192 inputs over a few tokens, dense and packed, beside a plain read of as many bytes by
/// the same threads, by turns. GB/s are bytes of weights, scales and zero points per second, each counted once however
/// many tokens read them; `read` is that over the rate of the plain read, fastest to fastest. `core_ms` is the least
/// processor time of any round, of all threads together: what other work on the machine touches least. No form of the
/// weights fits a cache. Each kernel that this machine runs: the one chosen, and those that others fall back to.
#include <benchmark/benchmark.h>

#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "nibble/host/gemm.hpp"
#include "support/copy.hpp"

using namespace nibble;

namespace {

constexpr index_t n = 28672, k = 8192, group = 128, most_tokens = 128;

/// Random bits: as codes they are all as likely, as bf16 or fp16 they are cleared of infinities.
std::vector<uint32_t> random_words(index_t count, uint32_t mask) {
  std::mt19937 engine(1);
  std::vector<uint32_t> words(static_cast<size_t>(count));
  for (uint32_t& word : words) word = static_cast<uint32_t>(engine()) & mask;
  return words;
}

std::vector<float> inputs() {
  std::mt19937 engine(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(most_tokens * k));
  for (float& value : x) value = normal(engine);
  return x;
}

/// Seconds to read all words, on all threads.
double read(const std::vector<uint32_t>& words) {
  constexpr index_t piece = index_t(1) << 18;
  const auto count = static_cast<index_t>(words.size());
  return bench::seconds([&] {
    host::parallel_for(ceil_div(count, piece), [&](index_t tile) {
      host::vectorised([&] {
        uint32_t all[64] = {};
        const index_t end = min(count, (tile + 1) * piece) / 64 * 64;
        for (index_t at = tile * piece; at < end; at += 64)
          for (index_t lane = 0; lane < 64; ++lane) all[lane] |= words[static_cast<size_t>(at + lane)];
        benchmark::DoNotOptimize(all);
      });
    });
  });
}

/// @param bytes  of weights and all that goes with them.
template <class F>
void beside_read(benchmark::State& state, const std::vector<uint32_t>& words, index_t bytes, F&& multiply) {
  host::set_threads(static_cast<int>(state.range(1)));
  multiply();
  double ours = 1e9, theirs = 1e9, cores = 1e9;
  for (auto _ : state) {
    const std::clock_t before = std::clock();
    const double time = bench::seconds(multiply);
    cores = std::min(cores, static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC);
    ours = std::min(ours, time);
    theirs = std::min({theirs, read(words), read(words)});
    state.SetIterationTime(time);
  }
  const double rate = static_cast<double>(bytes) / ours;
  const double read_rate = static_cast<double>(words.size() * 4) / theirs;
  state.counters["core_ms"] = cores * 1e3;
  state.counters["GB/s"] = rate / 1e9;
  state.counters["read_GB/s"] = read_rate / 1e9;
  state.counters["read"] = rate / read_rate;
}

template <class Kernel, class T>
void dense(benchmark::State& state) {
  const index_t tokens = state.range(0), bytes = n * k * static_cast<index_t>(sizeof(T));
  const auto words = random_words(bytes / 4, 0x3fff3fff);
  const auto x = inputs();
  std::vector<float> y(static_cast<size_t>(tokens * n));
  beside_read(state, words, bytes, [&] {
    host::detail::gemm_dense<Kernel>(matrix<const float>(x.data(), tokens, k),
                                     matrix<const T>(reinterpret_cast<const T*>(words.data()), n, k),
                                     matrix<float>(y.data(), tokens, n));
  });
}

template <class Kernel, int Bits>
void packed(benchmark::State& state) {
  const index_t tokens = state.range(0), groups = k / group, row_words = k * Bits / 32;
  const auto words = random_words(n * row_words, ~0u);
  const std::vector<bf16> scales(static_cast<size_t>(n * groups), bf16(0.01f));
  const std::vector<uint8_t> zeros(scales.size(), uint8_t(1 << (Bits - 1)));
  const auto x = inputs();
  std::vector<float> y(static_cast<size_t>(tokens * n));
  beside_read(state, words, n * (row_words * 4 + groups * 3), [&] {
    host::detail::gemm_packed<Kernel>(
        matrix<const float>(x.data(), tokens, k), layout::compressed_tensors{Bits},
        matrix<const uint32_t>(words.data(), n, row_words), matrix<const bf16>(scales.data(), n, groups),
        matrix<const uint8_t>(zeros.data(), n, groups), group, matrix<float>(y.data(), tokens, n));
  });
}

void add(const std::string& name, void (*f)(benchmark::State&)) {
  auto* b = benchmark::RegisterBenchmark(name.c_str(), f);
  b->ArgNames({"tokens", "threads"})->UseManualTime()->Unit(benchmark::kMillisecond)->MinTime(0.5);
  for (const int tokens : {1, 2, 4, 8, 128}) b->Args({tokens, 2});
}

template <class Kernel>
void add_dense(const std::string& kernel) {
  add(kernel + "/bf16", dense<Kernel, bf16>);
  add(kernel + "/fp16", dense<Kernel, fp16>);
}

template <class Kernel>
void add_packed(const std::string& kernel) {
  add(kernel + "/8 bits", packed<Kernel, 8>);
  add(kernel + "/4 bits", packed<Kernel, 4>);
  add(kernel + "/3 bits", packed<Kernel, 3>);
  add(kernel + "/2 bits", packed<Kernel, 2>);
}

}  // namespace

int main(int argc, char** argv) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (host::detail::has_avx512()) add_dense<host::detail::avx512_kernel>("avx512");
  if (host::detail::has_vnni()) add_packed<host::detail::vnni_kernel>("avx512");
  if (host::detail::has_avx2()) add_dense<host::detail::avx2_kernel>("avx2");
  if (host::detail::has_avx2()) add_packed<host::detail::avx2_kernel>("avx2");
#endif
  add_dense<host::detail::plain_kernel>("plain");
  add_packed<host::detail::plain_kernel>("plain");
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Quantizing and dequantizing a 4096 × 14336 matrix, 4 bits, group 128, beside a copy: bench_quantize.
#include <string>

#include "nibble/host/fit.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/copy.hpp"
#include "support/matrices.hpp"

using namespace nibble;

namespace {

constexpr group_shape group = per_group(128);

template <class T>
struct job {
  std::vector<T> weights = bench::normal_weights<T>();
  std::vector<params> found = std::vector<params>(static_cast<std::size_t>(bench::n * group.across(bench::k)));
  std::vector<uint8_t> codes = std::vector<uint8_t>(weights.size());
  matrix<T> w{weights.data(), bench::n, bench::k};
  matrix<params> p{found.data(), bench::n, group.across(bench::k)};
  matrix<uint8_t> q{codes.data(), bench::n, bench::k};

  explicit job(any_scheme s) {
    host::fit(matrix<const T>(w), p, group, s, minmax{});
    host::quantize(matrix<const T>(w), matrix<const params>(p), q, group, s);
  }
  index_t bytes() const { return w.size() * static_cast<index_t>(sizeof(T) + 1) + p.size() * index_t(sizeof(params)); }
};

template <class T>
void add(const std::string& name, any_scheme s) {
  const auto timed = [](benchmark::internal::Benchmark* b) {
    b->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond)->MinTime(0.3);
  };
  timed(benchmark::RegisterBenchmark(("quantize/" + name).c_str(), [s](benchmark::State& state) {
    job<T> j(s);
    bench::beside_copy(state, j.bytes(),
                       [&] { host::quantize(matrix<const T>(j.w), matrix<const params>(j.p), j.q, group, s); });
  }));
  timed(benchmark::RegisterBenchmark(("dequantize/" + name).c_str(), [s](benchmark::State& state) {
    job<T> j(s);
    bench::beside_copy(state, j.bytes(),
                       [&] { host::dequantize(matrix<const uint8_t>(j.q), matrix<const params>(j.p), j.w, group, s); });
  }));
}

/// The oracle, for scale: one run takes seconds.
void add_reference() {
  benchmark::RegisterBenchmark("quantize/reference/bf16",
                               [](benchmark::State& state) {
                                 const any_scheme s;
                                 job<bf16> j(s);
                                 bench::beside_copy(state, j.bytes(), [&] {
                                   reference::quantize(matrix<const bf16>(j.w), matrix<const params>(j.p), j.q, group,
                                                       s);
                                 });
                               })
      ->Arg(2)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->Iterations(1);
}

}  // namespace

int main(int argc, char** argv) {
  for (const auto rule : {convention::compressed_tensors, convention::autoawq}) {
    const std::string name = rule == convention::autoawq ? "autoawq" : "compressed_tensors";
    any_scheme s;
    s.rule = rule;
    add<bf16>(name + "/bf16", s);
    add<float>(name + "/f32", s);
    add<fp16>(name + "/f16", s);
    s.compute_dtype = s.scale_dtype = dtype::bf16;
    add<bf16>(name + "/bf16, computed in bf16", s);
    s.compute_dtype = s.scale_dtype = dtype::f16;
    add<fp16>(name + "/f16, computed in f16", s);
  }
  add_reference();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}

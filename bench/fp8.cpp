// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scales, codes and numbers read back of a 4096 × 14336 matrix in fp8, mxfp4 and nvfp4, beside a copy: bench_fp8.
#include <string>

#include "nibble/host/fp4.hpp"
#include "nibble/host/fp8.hpp"
#include "nibble/reference/fp8.hpp"
#include "support/copy.hpp"
#include "support/matrices.hpp"

using namespace nibble;

namespace {

template <class T>
struct job {
  group_shape group;
  std::vector<T> weights = bench::normal_weights<T>();
  std::vector<float> found =
      std::vector<float>(static_cast<std::size_t>(group.down(bench::n) * group.across(bench::k)));
  std::vector<uint8_t> codes = std::vector<uint8_t>(weights.size());
  matrix<T> w{weights.data(), bench::n, bench::k};
  matrix<float> scales{found.data(), group.down(bench::n), group.across(bench::k)};
  matrix<uint8_t> q{codes.data(), bench::n, bench::k};

  template <class Scheme>
  job(group_shape g, Scheme s) : group(g) {
    fit(s);
    quantize(s);
  }
  template <class Scheme>
  void fit(Scheme s) {
    host::fit(matrix<const T>(w), scales, group, s, minmax{});
  }
  template <class Scheme>
  void quantize(Scheme s) {
    host::quantize(matrix<const T>(w), matrix<const float>(scales), q, group, s);
  }
  template <class Scheme>
  void dequantize(Scheme s) {
    host::dequantize(matrix<const uint8_t>(q), matrix<const float>(scales), w, group, s);
  }
  index_t bytes(index_t of_weight) const { return w.size() * of_weight + scales.size() * index_t(sizeof(float)); }
};

template <class T, class F>
void timed(const std::string& name, group_shape g, any_float_scheme s, index_t bytes_of_weight, F f) {
  const auto run = [=](benchmark::State& state) {
    job<T> j(g, s);
    bench::beside_copy(state, j.bytes(bytes_of_weight), [&] { f(j, s); });
  };
  benchmark::RegisterBenchmark(name.c_str(), run)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond)->MinTime(0.3);
}

template <class T>
void add(const std::string& name, group_shape g, any_float_scheme s) {
  constexpr auto size = static_cast<index_t>(sizeof(T));
  timed<T>("fit/" + name, g, s, size, [](job<T>& j, any_float_scheme scheme) { j.fit(scheme); });
  timed<T>("quantize/" + name, g, s, size + 1, [](job<T>& j, any_float_scheme scheme) { j.quantize(scheme); });
  timed<T>("dequantize/" + name, g, s, size + 1, [](job<T>& j, any_float_scheme scheme) { j.dequantize(scheme); });
}

template <class T, class BlockFormat>
void add_blocks(const std::string& name, BlockFormat f) {
  const auto run = [f](benchmark::State& state, bool back) {
    constexpr index_t blocks = bench::k / BlockFormat::block;
    std::vector<T> weights = bench::normal_weights<T>();
    std::vector<uint8_t> codes(weights.size() / 2), found(static_cast<std::size_t>(bench::n * blocks));
    const matrix<T> w{weights.data(), bench::n, bench::k};
    const matrix<uint8_t> packed{codes.data(), bench::n, bench::k / 2}, scales{found.data(), bench::n, blocks};
    const index_t bytes = w.size() * static_cast<index_t>(sizeof(T)) + packed.size() + scales.size();
    host::fit_quantize_pack(matrix<const T>(w), packed, scales, f);
    bench::beside_copy(state, bytes, [&] {
      if (back)
        host::unpack_dequantize(matrix<const uint8_t>(packed), matrix<const uint8_t>(scales), w, f);
      else
        host::fit_quantize_pack(matrix<const T>(w), packed, scales, f);
    });
  };
  for (const bool back : {false, true})
    benchmark::RegisterBenchmark(((back ? "unpack_dequantize/" : "fit_quantize_pack/") + name).c_str(), run, back)
        ->Arg(2)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond)
        ->MinTime(0.3);
}

/// The oracle, for scale: one run takes seconds.
void add_reference() {
  const auto run = [](benchmark::State& state) {
    const any_float_scheme s;
    job<bf16> j(per_channel, s);
    bench::beside_copy(state, j.bytes(3), [&] {
      reference::quantize(matrix<const bf16>(j.w), matrix<const float>(j.scales), j.q, j.group, s);
    });
  };
  benchmark::RegisterBenchmark("quantize/reference/bf16", run)
      ->Arg(2)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->Iterations(1);
}

}  // namespace

int main(int argc, char** argv) {
  const any_float_scheme e4m3, e5m2{float_format::e5m2, dtype::f32, dtype::f32},
      as_stored{float_format::e4m3, dtype::bf16, dtype::bf16};
  add<bf16>("e4m3/bf16, channels", per_channel, e4m3);
  add<bf16>("e4m3/bf16, tensor", per_tensor, e4m3);
  add<bf16>("e4m3/bf16, blocks of 128", {128, 128}, e4m3);
  add<bf16>("e4m3/bf16, computed in bf16", per_channel, as_stored);
  add<bf16>("e5m2/bf16, channels", per_channel, e5m2);
  add<float>("e4m3/f32, channels", per_channel, e4m3);
  add<fp16>("e4m3/f16, channels", per_channel, e4m3);
  add_blocks<bf16>("mxfp4/bf16", mxfp4{});
  add_blocks<bf16>("nvfp4/bf16", nvfp4_of(0.1f));
  add_reference();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}

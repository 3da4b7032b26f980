// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels of fp8 codes, bf16 numbers, beside a copy: weights under a scale a channel or a block of 128 × 128, activations under
/// dynamic scales a token or 128 inputs of one: bench_fp8_cuda.
#include "nibble/kernels/fp8.cuh"

#include "support/device.cuh"

using namespace nibble;

namespace {

enum class work { fit, quantize, dequantize, fit_quantize };

/// One launch's matrices, and the launch.
template <work Work>
struct job {
  static constexpr float_scheme<float_format::e4m3> scheme{};
  bench::extents shape;
  group_shape group;
  bench::buffer<bf16> w;
  bench::buffer<float> found;
  bench::buffer<uint8_t> q;

  job(bench::extents e, group_shape g, unsigned seed)
      : shape(e), group(g), w(e.size()), found(g.down(e.n) * g.across(e.k)), q(e.size()) {
    bench::fill(w, bench::normal<bf16>{0.02f}, seed);
    bench::need(kernels::fit(const_weights(), scales(), group, scheme, minmax{}, bench::device().stream));
    bench::need(kernels::quantize(const_weights(), const_scales(), codes(), group, scheme, bench::device().stream));
  }
  matrix<bf16> weights() const { return {w.data(), shape.n, shape.k}; }
  matrix<const bf16> const_weights() const { return weights(); }
  matrix<float> scales() const { return {found.data(), group.down(shape.n), group.across(shape.k)}; }
  matrix<const float> const_scales() const { return scales(); }
  matrix<uint8_t> codes() const { return {q.data(), shape.n, shape.k}; }

  status operator()(cudaStream_t stream) const {
    if constexpr (Work == work::fit)
      return kernels::fit(const_weights(), scales(), group, scheme, minmax{}, stream);
    else if constexpr (Work == work::quantize)
      return kernels::quantize(const_weights(), const_scales(), codes(), group, scheme, stream);
    else if constexpr (Work == work::dequantize)
      return kernels::dequantize(matrix<const uint8_t>(codes()), const_scales(), weights(), group, scheme, stream);
    else
      return kernels::fit_quantize(const_weights(), scales(), codes(), group, scheme, stream);
  }
};

template <work Work>
void add(const std::string& name, group_shape g) {
  const auto make = [=](bench::extents e, unsigned seed) { return job<Work>(e, g, seed); };
  const auto bytes = [=](bench::extents e) {
    return (Work == work::fit ? 2 : 3) * e.size() + 4 * g.down(e.n) * g.across(e.k);
  };
  bench::add_streaming(name, make, bytes);
}

void add_all() {
  add<work::fit>("fit/fp8/tensor", per_tensor);
  add<work::fit>("fit/fp8/channels", per_channel);
  add<work::fit>("fit/fp8/blocks of 128", {128, 128});
  add<work::quantize>("quantize/fp8/channels", per_channel);
  add<work::quantize>("quantize/fp8/blocks of 128", {128, 128});
  add<work::dequantize>("dequantize/fp8/channels", per_channel);
  add<work::fit_quantize>("fit_quantize/fp8/tokens", per_channel);
  add<work::fit_quantize>("fit_quantize/fp8/128 of a token", per_group(128));
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels of smooth beside a copy: bf16 activations to int8 under dynamic scales of tokens and under a static one, and integer
/// products of 16 tokens, which read each byte of the weights once: bench_smooth_cuda.
#include "nibble/kernels/smooth.cuh"

#include "support/device.cuh"

using namespace nibble;

namespace {

/// Activations, their scales and codes.
struct activations {
  bench::extents shape;
  bool dynamic;
  bench::buffer<bf16> x;
  bench::buffer<float> scales;
  bench::buffer<uint8_t> q;

  activations(bench::extents e, bool dynamic_, unsigned seed)
      : shape(e), dynamic(dynamic_), x(e.size()), scales(e.n), q(e.size()) {
    bench::fill(x, bench::normal<bf16>{1.0f}, seed);
    bench::need(kernels::quantize_tokens(in(), of_tokens(), codes(), {}, bench::device().stream));
  }
  matrix<const bf16> in() const { return {x.data(), shape.n, shape.k}; }
  matrix<float> of_tokens() const { return {scales.data(), shape.n, 1}; }
  matrix<uint8_t> codes() const { return {q.data(), shape.n, shape.k}; }

  status operator()(cudaStream_t stream) const {
    if (dynamic) return kernels::quantize_tokens(in(), of_tokens(), codes(), {}, stream);
    return kernels::quantize_activations(in(), matrix<const float>(scales.data(), 1, 1), codes(), {}, stream);
  }
};

constexpr index_t tokens = 16;

/// A linear in int8 and the codes of a few tokens.
struct linear {
  bench::extents shape;
  bench::buffer<uint8_t> x, w;
  bench::buffer<float> scales;
  bench::buffer<params> p;
  bench::buffer<bf16> y;

  linear(bench::extents e, unsigned seed) : shape(e), x(tokens * e.k), w(e.size()), scales(1), p(e.n), y(tokens * e.n) {
    bench::fill(x, bench::uniform_bits<uint8_t>{8}, seed);
    bench::fill(w, bench::uniform_bits<uint8_t>{8}, seed + 1);
    bench::fill(scales, bench::normal<float>{0.01f}, seed);
    bench::fill(p, bench::uniform_params{0.001f, 128}, seed);
  }
  status operator()(cudaStream_t stream) const {
    return kernels::int8_matmul(
        matrix<const uint8_t>(x.data(), tokens, shape.k), matrix<const float>(scales.data(), 1, 1),
        matrix<const uint8_t>(w.data(), shape.n, shape.k), matrix<const params>(p.data(), shape.n, 1),
        matrix<bf16>(y.data(), tokens, shape.n), stream);
  }
};

void add_all() {
  for (const bool dynamic : {true, false})
    bench::add_streaming(
        dynamic ? "quantize_tokens/bf16" : "quantize_activations/bf16",
        [=](bench::extents e, unsigned seed) { return activations(e, dynamic, seed); },
        [](bench::extents e) { return 3 * e.size() + 4 * e.n; });
  bench::add_streaming(
      "int8_matmul/16 tokens", [](bench::extents e, unsigned seed) { return linear(e, seed); },
      [](bench::extents e) { return e.size() + tokens * (e.k + 2 * e.n) + 8 * e.n; });
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}

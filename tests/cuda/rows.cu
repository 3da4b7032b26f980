// SPDX-License-Identifier: Apache-2.0
// Compiled by nvcc and NVRTC, not run: the rows' mathematics inside kernels, for schemes known and not known at compile
// time.
#include "nibble/awq.hpp"
#include "nibble/distortion.hpp"
#include "nibble/fit.hpp"
#include "nibble/observe.hpp"
#include "nibble/pack.hpp"
#include "nibble/quantize.hpp"

using namespace nibble;

/// One group a thread: w (groups, size) becomes codes of the same shape, params p (groups), and w as it reads back.
template <class Scheme>
__device__ void round_trip(matrix<float> w, params* p, matrix<uint8_t> codes, Scheme s) {
  const index_t group = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (group >= w.rows) return;
  float low = w(group, 0), high = low;
  for (index_t i = 1; i < w.cols; ++i) {
    low = min(low, w(group, i));
    high = max(high, w(group, i));
  }
  p[group] = fit(low, high, s);
  for (index_t i = 0; i < w.cols; ++i) {
    codes(group, i) = quantize(w(group, i), p[group], s);
    w(group, i) = dequantize(codes(group, i), p[group], s);
  }
}

__global__ void known(matrix<float> w, params* p, matrix<uint8_t> codes) {
  round_trip(w, p, codes, scheme<4>{});
}

__global__ void chosen(matrix<float> w, params* p, matrix<uint8_t> codes, any_scheme s) {
  round_trip(w, p, codes, s);
}

template <class Layout>
__device__ void repack(Layout l, matrix<const uint8_t> codes, matrix<typename Layout::word> words, uint8_t* first) {
  for (index_t row = 0; row < words.rows; ++row)
    for (index_t col = 0; col < words.cols; ++col) words(row, col) = word_at(l, codes, row, col);
  *first = code_at(l, matrix<const typename Layout::word>(words), codes.rows, codes.cols, 0, 0);
}

__global__ void packed(matrix<const uint8_t> codes, matrix<uint32_t> words, uint8_t* first) {
  repack(layout::compressed_tensors{3}, codes, words, first);
  repack(layout::awq_gemm{}, codes, words, first);
  repack(layout::gptq{}, codes, words, first);
  repack(layout::marlin{}, codes, words, first);
}

__global__ void scaled(float* w, float activation) {
  const float s = awq_scale(observed(activation), nibble::abs(*w), awq_candidate(duo_scaling::both, 3, 20));
  *w = awq_folded(*w, s, dtype::bf16);
}

__global__ void measured(const float* p, const float* q, index_t count, double* out) {
  distortion_sums sums;
  for (index_t i = 0; i < count; ++i) sums.add(p[i], q[i]);
  out[0] = sums.sqnr() + sums.cosine() + sums.max_error();
  out[1] = kl_divergence(p, q, count);
}

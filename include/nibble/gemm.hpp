// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear over weights read as they are stored: dense in float, fp16 or bf16, or a string of codes along each row with
/// a scale and a zero point for every group of inputs:
///     y(t, i) = Σ_j x(t, j) · w(i, j),     w(i, j) = (code(i, j) − zero(i, j / g)) · scale(i, j / g)
/// All in float, no product fused with a sum, and added in one order on every machine: of 16 partial sums, number
/// (j / u) mod 16 takes input j, inputs ascending; then l and l + 8 are added, l and l + 4, l + 2, l + 1. The run u is
/// how many inputs share a 32-bit word (16, 8 and 4 for 2, 4 and 8 bits), so that 16 words are 16 lanes of a vector; for
/// dense weights, other widths, and groups that end inside a word it is 1. An output depends on its row of W and its row of
/// x alone: not on how many tokens there are, on threads, or on the width of vectors.
///
/// The other columns take whole matrices; x (m, k), y (m, n), codes in `words` (n, ⌈k·bits/32⌉), parameters (n, groups):
///     reference::gemm(x, w, y)                                        host::gemm: the same
///     reference::gemm(x, layout, words, scales, zeros, group, y)      host::gemm: the same
/// Zero points are one a byte; without any (zeros.data null) the packing is symmetric: 2^(bits−1).
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/layout.hpp"
#include "nibble/matrix.hpp"
#include "nibble/pack.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN

inline constexpr index_t gemm_lanes = 16;

/// u above. @param group  positive, or −1: all inputs.
NIBBLE_HOST_DEVICE constexpr index_t gemm_run(int bits, index_t group) noexcept {
  const index_t run = bits == 2 || bits == 4 || bits == 8 ? 32 / bits : 1;
  return group < 0 || group % run == 0 ? run : 1;
}

/// Input j of a sum in the order above.
struct lane_sums {
  float lanes[gemm_lanes] = {};

  NIBBLE_HOST_DEVICE constexpr void add(index_t j, index_t run, float product) noexcept {
    lanes[j / run % gemm_lanes] += product;
  }
  NIBBLE_HOST_DEVICE constexpr float total() const noexcept {
    float sums[gemm_lanes] = {};
    for (index_t l = 0; l < gemm_lanes; ++l) sums[l] = lanes[l];
    for (index_t half = gemm_lanes / 2; half > 0; half /= 2)
      for (index_t l = 0; l < half; ++l) sums[l] += sums[l + half];
    return sums[0];
  }
};

/// One output: x (k) against row i of dense w.
/// @error at most (k/16 + 6) · 2^-24 · Σ|x·w| from the exact sum.
template <class T>
NIBBLE_HOST_DEVICE constexpr float gemm(const float* x, matrix<const T> w, index_t i) noexcept {
  lane_sums sums;
  for (index_t j = 0; j < w.cols; ++j) sums.add(j, 1, x[j] * static_cast<float>(w(i, j)));
  return sums.total();
}

/// One output: x (k) against row i of packed codes (n, k). @pre can_pack; scales finite, and so is every (code − zero)·scale.
/// @error as above, of the sum over dequantized weights.
template <class Scale>
NIBBLE_HOST_DEVICE constexpr float gemm(const float* x, index_t k, layout::compressed_tensors l,
                                        matrix<const uint32_t> words, matrix<const Scale> scales,
                                        matrix<const uint8_t> zeros, index_t group, index_t i) noexcept {
  const any_scheme exact{l.bits, zeros.data == nullptr, convention::compressed_tensors, dtype::f32, dtype::f32};
  const index_t run = gemm_run(l.bits, group), width = group < 0 ? k : group;
  lane_sums sums;
  for (index_t j = 0; j < k; ++j) {
    const params p{static_cast<float>(scales(i, j / width)),
                   zeros.data == nullptr ? mid_code(exact) : int32_t{zeros(i, j / width)}};
    sums.add(j, run, x[j] * dequantize(code_at(l, words, words.rows, k, i, j), p, exact));
  }
  return sums.total();
}

NIBBLE_NAMESPACE_END

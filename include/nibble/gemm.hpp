// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear over weights read as they are stored: dense in float, fp16 or bf16, or a string of codes along each row with
/// a scale and a zero point for every group of inputs:
///     y(t, i) = Σ_j x(t, j) · w(i, j),     w(i, j) = (code(i, j) − zero(i, j / g)) · scale(i, j / g)
/// Against dense weights all is float. Against codes, inputs are block floating point: u of them, a run, share a power of
/// two s, the smallest with |x| <= 32767 · s, and each is an integer q = round_even(x / s), so that what a run adds is
///     float(Σ (code − zero) · q) · s · scale
/// whose sum is an exact integer, and s an exact factor. u is the inputs that share a 32-bit word (16, 8 and 4 for 2, 4 and
/// 8 bits); 4 for other widths, and where a group ends inside such a word; 1 where a group ends inside 4 inputs.
///
/// No product is fused with a sum, and sums have one order on every machine: of 16 partial sums, number r mod 16 takes run r
/// (dense: input r), ascending; then l and l + 8 are added, l and l + 4, l + 2, l + 1. An output depends on its row of W and
/// its row of x alone: not on how many tokens there are, on threads, or on the width of vectors.
///
/// The other columns take whole matrices; x (m, k), y (m, n), codes in `words` (n, ⌈k·bits/32⌉), parameters (n, groups):
///     reference::gemm(x, w, y)                                        host::gemm: the same
///     reference::gemm(x, layout, words, scales, zeros, group, y)      host::gemm: the same
/// Zero points are one a byte; without any (zeros.data null) the packing is symmetric: 2^(bits−1).
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/layout.hpp"
#include "nibble/math.hpp"
#include "nibble/matrix.hpp"
#include "nibble/pack.hpp"

NIBBLE_NAMESPACE_BEGIN

inline constexpr index_t gemm_lanes = 16;

/// u above. @param group  positive, or −1: all inputs.
NIBBLE_HOST_DEVICE constexpr index_t gemm_run(int bits, index_t group) noexcept {
  const index_t word = bits == 2 || bits == 4 ? 32 / bits : 4;
  return group < 0 || group % word == 0 ? word : group % 4 == 0 ? 4 : 1;
}

/// Bits of |x|: ordered as magnitudes are, infinity and NaN last.
NIBBLE_HOST_DEVICE constexpr uint32_t magnitude_bits(float x) noexcept {
  return bit_cast<uint32_t>(x) & 0x7fffffffu;
}

/// s above, at least 2^-126, for a run whose largest magnitude has these bits; NaN if that is not finite.
NIBBLE_HOST_DEVICE constexpr float run_unit(uint32_t largest) noexcept {
  if (largest >= 0x7f800000u) return bit_cast<float>(0x7fc00000u);
  const uint32_t exponent = (largest + 0x1ffu) >> 23;  // 32767 is 15 ones: a fraction above 14 ones carries
  return bit_cast<float>((exponent > 15 ? exponent - 14 : 1u) << 23);
}

/// q above; 0 where s is NaN. @param unit  of a run that x is in.
NIBBLE_HOST_DEVICE constexpr int32_t run_integer(float x, float unit) noexcept {
  return is_nan(unit) ? 0 : static_cast<int32_t>(round_even(x / unit));
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
/// @error from the exact sum over dequantized weights: 1/2 · Σ s·|w| of rounding inputs, where s is 2^-126 or less than 2/32767
/// of the largest |x| in its run, and (k/(16u) + 7) · 2^-24 · Σ s·|q·w| of sums. A run with a NaN or an infinity in it makes NaN.
template <class Scale>
NIBBLE_HOST_DEVICE constexpr float gemm(const float* x, index_t k, layout::compressed_tensors l,
                                        matrix<const uint32_t> words, matrix<const Scale> scales,
                                        matrix<const uint8_t> zeros, index_t group, index_t i) noexcept {
  const index_t run = gemm_run(l.bits, group), width = group < 0 ? k : group;
  lane_sums sums;
  for (index_t first = 0; first < k; first += run) {
    const index_t end = min(k, first + run), g = first / width;
    uint32_t largest = 0;
    for (index_t j = first; j < end; ++j) largest = max(largest, magnitude_bits(x[j]));
    const float unit = run_unit(largest);
    const int32_t zero = zeros.data == nullptr ? 1 << (l.bits - 1) : int32_t{zeros(i, g)};
    int32_t sum = 0;
    for (index_t j = first; j < end; ++j)
      sum += (code_at(l, words, words.rows, k, i, j) - zero) * run_integer(x[j], unit);
    sums.add(first, run, static_cast<float>(sum) * unit * static_cast<float>(scales(i, g)));
  }
  return sums.total();
}

NIBBLE_NAMESPACE_END

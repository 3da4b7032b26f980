// SPDX-License-Identifier: Apache-2.0
/// @file
/// What products of numbers rounded to bfloat16 are made of: factors packed two and two, and a block of 8 × 32 sums,
///     c(i, j) = Σ_t a_i[2t+1]·b_j[2t+1] + a_i[2t]·b_j[2t],
/// in float and in that order. A product of two bfloat16 is exact in float where it stays in its range, so that plain loops give the bits of
/// VDPBF16PS of AVX-512 (Intel's Software Developer's Manual, volume 2), which fuses products with sums; beyond the range they may be an
/// infinity or NaN apart. It takes subnormal numbers for 0; these loops do not.
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/math.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// A block of sums: with 32 columns two vectors of 16, so 16 registers of sums, enough to hide an addition's latency.
inline constexpr index_t block_rows = 8, block_cols = 32;

/// Two factors that follow each other in a sum, the first in the lower half.
NIBBLE_HOST_DEVICE constexpr uint32_t pair_of(float first, float second) noexcept {
  return bf16_bits(first) | static_cast<uint32_t>(bf16_bits(second)) << 16;
}
NIBBLE_HOST_DEVICE constexpr float first_of(uint32_t pair) noexcept {
  return bit_cast<float>(pair << 16);
}
NIBBLE_HOST_DEVICE constexpr float second_of(uint32_t pair) noexcept {
  return bit_cast<float>(pair & 0xffff0000u);
}

struct plain_pairs {
  /// out (⌈k / 2⌉) ← the pairs of a row; after an odd one, 0.
  static void pack_row(const float* x, index_t k, uint32_t* out) noexcept {
    vectorised([&] {
      for (index_t t = 0; t < k / 2; ++t) out[t] = pair_of(x[2 * t], x[2 * t + 1]);
    });
    if (k % 2 != 0) out[k / 2] = pair_of(x[k - 1], 0.0f);
  }

  /// A panel out (⌈k / 2⌉, 32) ← pairs of w's rows (32 at most, k), a row a column; columns that there are no rows for are 0.
  static void pack_rows(matrix<const float> w, uint32_t* out) noexcept {
    for (index_t col = 0; col < block_cols; ++col)
      for (index_t t = 0; t < ceil_div(w.cols, index_t(2)); ++t)
        out[t * block_cols + col] =
            col >= w.rows ? 0u : pair_of(w(col, 2 * t), 2 * t + 1 < w.cols ? w(col, 2 * t + 1) : 0.0f);
  }

  /// A panel out (⌈m / 2⌉, 32) ← pairs of two rows of x (m, 32 at most); columns that are not there are 0.
  static void pack_columns(matrix<const float> x, uint32_t* out) noexcept {
    for (index_t t = 0; t < ceil_div(x.rows, index_t(2)); ++t)
      for (index_t col = 0; col < block_cols; ++col)
        out[t * block_cols + col] =
            col >= x.cols ? 0u : pair_of(x(2 * t, col), 2 * t + 1 < x.rows ? x(2 * t + 1, col) : 0.0f);
  }

  /// c (8, 32), rows `stride` apart, ← the sums, or c + the sums. Pair t of row i is a[i · row + t · step]. @param b  a panel (pairs, 32).
  static void block(const uint32_t* a, index_t row, index_t step, const uint32_t* b, index_t pairs, float* c,
                    index_t stride, bool add) noexcept {
    vectorised([&] {
      for (index_t i = 0; i < block_rows; ++i) {
        float sums[block_cols] = {};
        for (index_t t = 0; t < pairs; ++t) {
          const uint32_t own = a[i * row + t * step];
          const float first = first_of(own), second = second_of(own);
          for (index_t j = 0; j < block_cols; ++j) {
            const uint32_t other = b[t * block_cols + j];
            sums[j] += second * second_of(other);
            sums[j] += first * first_of(other);
          }
        }
        float* const to = c + i * stride;
        for (index_t j = 0; j < block_cols; ++j) to[j] = add ? to[j] + sums[j] : sums[j];
      }
    });
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What products of numbers rounded to bfloat16 are made of: factors packed two and two, and blocks of sums c(i, j) = Σ_t a_i[t]·b_j[t]
/// in float, in an order that is an instruction's. A product of two bfloat16 is exact in float where it stays in its range, so that plain
/// loops give the bits of VDPBF16PS of AVX-512 and TDPBF16PS of AMX (Intel's Software Developer's Manual, volume 2), which fuse products with
/// sums; beyond the range they may be an infinity or NaN apart. Both take subnormal numbers for 0; these loops do not.
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/math.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Columns of a block of sums, and of a panel of factors.
inline constexpr index_t block_cols = 32;

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

/// Pairs of k factors, padded by 0 to a multiple of `depth`.
template <index_t Depth>
constexpr index_t packed_pairs(index_t k) noexcept {
  return round_up(ceil_div(k, index_t(2)), Depth);
}

/// How factors are packed for blocks that take `Depth` pairs at a time.
template <index_t Depth>
struct plain_packing {
  static constexpr index_t depth = Depth;

  /// out (packed_pairs(k)) ← the pairs of a row; after an odd one, 0.
  static void pack_row(const float* x, index_t k, uint32_t* out) noexcept {
    vectorised([&] {
      for (index_t t = 0; t < k / 2; ++t) out[t] = pair_of(x[2 * t], x[2 * t + 1]);
    });
    for (index_t t = k / 2; t < packed_pairs<Depth>(k); ++t) out[t] = 2 * t < k ? pair_of(x[2 * t], 0.0f) : 0u;
  }

  /// A panel out (packed_pairs(k), 32) ← pairs of w's rows (32 at most, k), a row a column; columns that there are no rows for are 0.
  static void pack_rows(matrix<const float> w, uint32_t* out) noexcept {
    for (index_t t = 0; t < packed_pairs<Depth>(w.cols); ++t)
      for (index_t col = 0; col < block_cols; ++col)
        out[t * block_cols + col] = col >= w.rows || 2 * t >= w.cols
                                        ? 0u
                                        : pair_of(w(col, 2 * t), 2 * t + 1 < w.cols ? w(col, 2 * t + 1) : 0.0f);
  }

  /// A panel out (packed_pairs(m), 32) ← pairs of two rows of x (m, 32 at most); columns that are not there are 0.
  static void pack_columns(matrix<const float> x, uint32_t* out) noexcept {
    for (index_t t = 0; t < packed_pairs<Depth>(x.rows); ++t)
      for (index_t col = 0; col < block_cols; ++col)
        out[t * block_cols + col] = col >= x.cols || 2 * t >= x.rows
                                        ? 0u
                                        : pair_of(x(2 * t, col), 2 * t + 1 < x.rows ? x(2 * t + 1, col) : 0.0f);
  }

  /// What a thread needs while it asks for blocks.
  struct session {};
};

/// Blocks of 8 × 32, each sum Σ_t a_i[2t+1]·b_j[2t+1] + a_i[2t]·b_j[2t] in that order, as VDPBF16PS of AVX-512 has it.
struct plain_pairs : plain_packing<1> {
  /// With 32 columns two vectors of 16, so 16 registers of sums, enough to hide an addition's latency.
  static constexpr index_t rows = 8;
  /// Pairs of a row may be anywhere, the same distance apart.
  static constexpr bool takes_panels = true;
  /// Between rows of a, so that they do not all want the same lines of a cache.
  static constexpr index_t apart = 0;
  /// Rows of a product's tile, for each of which the second factor is packed; 512 factors of so many are to stay in a cache of 1 MiB.
  static constexpr index_t tile_rows = 256;

  /// c (8, 32), rows `stride` apart, ← the sums, or c + the sums. Pair t of row i is a[i · row + t · step]. @param b  a panel (pairs, 32).
  static void block(const uint32_t* a, index_t row, index_t step, const uint32_t* b, index_t pairs, float* c,
                    index_t stride, bool add) noexcept {
    vectorised([&] {
      for (index_t i = 0; i < rows; ++i) {
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

/// Blocks of 32 × 32, summed as TDPBF16PS of AMX does: of 16 pairs at a time the first factors' products and the second ones', then both, then
/// that and the pairs before.
struct plain_tiles : plain_packing<16> {
  static constexpr index_t rows = 32;
  static constexpr bool takes_panels = false;  ///< a row's pairs follow each other
  static constexpr index_t apart = 16;
  static constexpr index_t tile_rows =
      512;  ///< machines that have AMX have 2 MiB, and packing takes a greater part of their time

  /// As plain_pairs::block, of 32 rows. @pre step is 1, and pairs a multiple of 16
  static void block(const uint32_t* a, index_t row, index_t, const uint32_t* b, index_t pairs, float* c, index_t stride,
                    bool add) noexcept {
    vectorised([&] {
      for (index_t i = 0; i < rows; ++i) {
        float sums[block_cols] = {};
        for (index_t tile = 0; tile < pairs; tile += depth) {
          float firsts[block_cols] = {}, seconds[block_cols] = {};
          for (index_t t = tile; t < tile + depth; ++t) {
            const float first = first_of(a[i * row + t]), second = second_of(a[i * row + t]);
            for (index_t j = 0; j < block_cols; ++j) {
              const uint32_t other = b[t * block_cols + j];
              firsts[j] += first * first_of(other);
              seconds[j] += second * second_of(other);
            }
          }
          for (index_t j = 0; j < block_cols; ++j) sums[j] += firsts[j] + seconds[j];
        }
        float* const to = c + i * stride;
        for (index_t j = 0; j < block_cols; ++j) to[j] = add ? to[j] + sums[j] : sums[j];
      }
    });
  }

  /// 32 rows out, pairs + apart from each to the next, ← the columns of a panel (pairs, 32).
  static void turn(const uint32_t* panel, index_t pairs, uint32_t* out) noexcept {
    for (index_t col = 0; col < block_cols; ++col)
      for (index_t t = 0; t < pairs; ++t) out[col * (pairs + apart) + t] = panel[t * block_cols + col];
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

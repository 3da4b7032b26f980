// SPDX-License-Identifier: Apache-2.0
/// @file
/// The inner products of host::gemm as plain loops over 16 lanes: a few rows of W by a few tokens, compiled for the
/// baseline and for AVX2.
#pragma once

#include "nibble/gemm.hpp"
#include "nibble/host/gemm/inputs.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows of packed codes beside their parameters. A lane is a word of codes, a block 16 of them.
struct packed_rows {
  const uint32_t* words;   ///< row r at words + r · stride
  index_t stride, count;   ///< words from row to row, words in a row
  int bits;                ///< of a code
  index_t blocks;          ///< of a row, the last one short or whole
  const float* scales;     ///< row r at scales + r · per_row, 16 more than there are
  const int32_t* zeros;    ///< of the same shape, in both halves of an integer
  index_t per_row;         ///< parameters a row
  index_t blocks_a_param;  ///< blocks that share a parameter; 0: a block has several
  index_t params_a_block;  ///< 1, 2, 4, 8 or 16; lane l has number l · params_a_block / 16
};

/// y[t · y_stride + r] = row r of W against token t of x, whose inputs lie in the order the kernel reads them, filled up
/// with zeros to a whole block.
template <class In>
struct gemm_output_view {
  const In* x;
  index_t x_stride;
  float* y;
  index_t y_stride;
};

struct plain_kernel {
  static constexpr bool reads_strings = false;

  template <int Bits, int Rows, int Tokens>
  static void words(const packed_rows& w, const gemm_output_view<input_block<16 / Bits>>& o) {
    vectorised([&] {
      for (int r = 0; r < Rows; ++r) packed_row<Bits, Tokens>(w, o, r);
    });
  }

  template <class T, int Rows, int Tokens>
  static void dense(const T* w, index_t stride, index_t k, const gemm_output_view<float>& o) {
    vectorised([&] {
      for (int r = 0; r < Rows; ++r) dense_row<T, Tokens>(w + r * stride, k, o, r);
    });
  }

 private:
  template <int Bits, int Tokens>
  static void packed_row(const packed_rows& w, const gemm_output_view<input_block<16 / Bits>>& o, index_t r) {
    constexpr uint32_t mask = (1u << Bits) - 1;
    lane_sums sums[Tokens];
    const uint32_t* row = w.words + r * w.stride;
    const float* scales = w.scales + r * w.per_row;
    const int32_t* zeros = w.zeros + r * w.per_row;
    for (index_t b = 0; b < w.blocks; ++b) {
      uint32_t word[gemm_lanes] = {};
      const index_t first = b * gemm_lanes;
      for (index_t l = 0; l < min(gemm_lanes, w.count - first); ++l) word[l] = row[first + l];
      float scale[gemm_lanes];
      int32_t zero[gemm_lanes];
      const index_t param = w.blocks_a_param > 0 ? b / w.blocks_a_param : b * w.params_a_block;
      for (index_t l = 0; l < gemm_lanes; ++l) {
        const index_t at = w.blocks_a_param > 0 ? param : param + l * w.params_a_block / gemm_lanes;
        scale[l] = scales[at], zero[l] = zeros[at] & 0xffff;
      }
      for (int t = 0; t < Tokens; ++t) {
        const auto& in = o.x[t * o.x_stride + b];
        int32_t sum[gemm_lanes] = {};
        for (int p = 0; p < 16 / Bits; ++p)
          for (index_t l = 0; l < gemm_lanes; ++l) {
            const int32_t pair = in.pairs[p][l];
            sum[l] += (static_cast<int32_t>(word[l] >> (Bits * p) & mask) - zero[l]) * static_cast<int16_t>(pair) +
                      (static_cast<int32_t>(word[l] >> (Bits * p + 16) & mask) - zero[l]) * (pair >> 16);
          }
        for (index_t l = 0; l < gemm_lanes; ++l)
          sums[t].lanes[l] += static_cast<float>(sum[l]) * in.units[l] * scale[l];
      }
    }
    for (int t = 0; t < Tokens; ++t) o.y[t * o.y_stride + r] = sums[t].total();
  }

  template <class T, int Tokens>
  static void dense_row(const T* w, index_t k, const gemm_output_view<float>& o, index_t r) {
    lane_sums sums[Tokens];
    for (index_t j = 0; j < k; j += gemm_lanes) {
      float weight[gemm_lanes] = {};
      if (j + gemm_lanes <= k)
        for (index_t l = 0; l < gemm_lanes; ++l) weight[l] = load(w[j + l]);
      else
        for (index_t l = 0; l < k - j; ++l) weight[l] = load(w[j + l]);
      for (int t = 0; t < Tokens; ++t) {
        const float* in = o.x + t * o.x_stride + j;
        for (index_t l = 0; l < gemm_lanes; ++l) sums[t].lanes[l] += in[l] * weight[l];
      }
    }
    for (int t = 0; t < Tokens; ++t) o.y[t * o.y_stride + r] = sums[t].total();
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

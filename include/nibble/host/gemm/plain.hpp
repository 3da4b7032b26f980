// SPDX-License-Identifier: Apache-2.0
/// @file
/// The inner products of host::gemm as plain loops over 16 lanes: a few rows of W by a few tokens, compiled for the
/// baseline and for AVX2.
#pragma once

#include "nibble/gemm.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows of packed codes beside their parameters as floats. A block is 16 words.
struct packed_rows {
  const uint32_t* words;   ///< row r at words + r · stride
  index_t stride, count;   ///< words from row to row, words in a row
  const float* scales;     ///< row r at scales + r · per_row
  const float* zeros;      ///< the same shape
  index_t per_row;         ///< parameters a row
  index_t blocks_a_param;  ///< blocks that share a parameter; 0: every word has its own, up to a whole block
};

/// y[t · y_stride + r] = row r of W against token t of x, whose inputs lie in the order the kernel reads them, filled up
/// with zeros to a whole block.
struct gemm_output_view {
  const float* x;
  index_t x_stride;
  float* y;
  index_t y_stride;
};

struct plain_kernel {
  template <int Bits, int Rows, int Tokens>
  static void words(const packed_rows& w, const gemm_output_view& o) {
    vectorised([&] {
      for (int r = 0; r < Rows; ++r) packed_row<Bits, Tokens>(w, o, r);
    });
  }

  template <class T, int Rows, int Tokens>
  static void dense(const T* w, index_t stride, index_t k, const gemm_output_view& o) {
    vectorised([&] {
      for (int r = 0; r < Rows; ++r) dense_row<T, Tokens>(w + r * stride, k, o, r);
    });
  }

 private:
  template <int Bits, int Tokens>
  static void packed_row(const packed_rows& w, const gemm_output_view& o, index_t r) {
    constexpr index_t run = 32 / Bits;
    lane_sums sums[Tokens];
    const uint32_t* row = w.words + r * w.stride;
    const float *scales = w.scales + r * w.per_row, *zeros = w.zeros + r * w.per_row;
    const float* x = o.x;
    for (index_t first = 0, block = 0; first < w.count; first += gemm_lanes, ++block, x += gemm_lanes * run) {
      uint32_t word[gemm_lanes] = {};
      for (index_t l = 0; l < min(gemm_lanes, w.count - first); ++l) word[l] = row[first + l];
      float scale[gemm_lanes], zero[gemm_lanes];
      for (index_t l = 0; l < gemm_lanes; ++l) {
        const index_t at = w.blocks_a_param > 0 ? block / w.blocks_a_param : first + l;
        scale[l] = scales[at], zero[l] = zeros[at];
      }
      for (index_t s = 0; s < run; ++s) {
        float weight[gemm_lanes];
        for (index_t l = 0; l < gemm_lanes; ++l)
          weight[l] = (static_cast<float>(static_cast<int32_t>(word[l] >> (Bits * s) & ((1u << Bits) - 1))) - zero[l]) *
                      scale[l];
        for (int t = 0; t < Tokens; ++t) {
          const float* in = x + t * o.x_stride + s * gemm_lanes;
          for (index_t l = 0; l < gemm_lanes; ++l) sums[t].lanes[l] += in[l] * weight[l];
        }
      }
    }
    for (int t = 0; t < Tokens; ++t) o.y[t * o.y_stride + r] = sums[t].total();
  }

  template <class T, int Tokens>
  static void dense_row(const T* w, index_t k, const gemm_output_view& o, index_t r) {
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

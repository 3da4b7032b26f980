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

/// Has the line at `at` brought to the second-level cache. Rows are short and several are read at a time, so that what a
/// machine foresees by itself is half of what its memory gives.
#if defined(__GNUC__)
// Inlined early, before gcc finds that it does nothing and drops the call.
__attribute__((always_inline)) inline void fetch_ahead(const void* at) noexcept {
  __builtin_prefetch(at, 0, 2);
}
#else
inline void fetch_ahead(const void*) noexcept {}
#endif

/// Rows of packed codes beside their parameters. A lane is a word of codes, a block 16 of them.
struct packed_rows {
  const uint32_t* words;   ///< row r at words + r · stride
  index_t stride, count;   ///< words from row to row, words in a row
  int bits;                ///< of a code
  index_t blocks;          ///< of a row, the last one short or whole
  const float* scales;     ///< row r at scales + r · per_row, 16 more than there are
  const int32_t* zeros;    ///< of the same shape, times the zero_factor of the inputs' blocks
  index_t per_row;         ///< parameters a row
  index_t blocks_a_param;  ///< blocks that share a parameter; 0: a block has several
  index_t ahead;           ///< bytes from a word to one that will be read later: what fetch_ahead takes
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
  static constexpr bool reads_strings = false, reads_bytes = false;

  template <int Bits, bool, int Rows, int Tokens>
  static void packed(const packed_rows& w, const gemm_output_view<pair_block<16 / Bits>>& o) {
    over_packed_rows<Bits, Tokens>(w, o, Rows);
  }

  template <class T, int Rows, int Tokens>
  static void dense(const T* w, index_t stride, index_t k, index_t ahead, const gemm_output_view<float>& o) {
    over_dense_rows<T, Tokens>(w, stride, k, ahead, o, Rows);
  }

 private:
  template <int Bits, int Tokens>
  static void over_packed_rows(const packed_rows& w, const gemm_output_view<pair_block<16 / Bits>>& o, int rows) {
    vectorised([&] {
      for (int r = 0; r < rows; ++r) packed_row<Bits, Tokens>(w, o, r);
    });
  }
  template <class T, int Tokens>
  static void over_dense_rows(const T* w, index_t stride, index_t k, index_t ahead, const gemm_output_view<float>& o,
                              int rows) {
    vectorised([&] {
      for (int r = 0; r < rows; ++r) dense_row<T, Tokens>(w + r * stride, k, ahead, o, r);
    });
  }
  template <int Bits, int Tokens>
  static void packed_row(const packed_rows& w, const gemm_output_view<pair_block<16 / Bits>>& o, index_t r) {
    constexpr uint32_t mask = (1u << Bits) - 1;
    lane_sums sums[Tokens];
    const uint32_t* row = w.words + r * w.stride;
    const float* scales = w.scales + r * w.per_row;
    const int32_t* zeros = w.zeros + r * w.per_row;
    for (index_t b = 0; b < w.blocks; ++b) {
      fetch_ahead(reinterpret_cast<const char*>(row + b * gemm_lanes) + w.ahead);
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
  static void dense_row(const T* w, index_t k, index_t ahead, const gemm_output_view<float>& o, index_t r) {
    lane_sums sums[Tokens];
    for (index_t j = 0; j < k; j += gemm_lanes) {
      fetch_ahead(reinterpret_cast<const char*>(w + j) + ahead);
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

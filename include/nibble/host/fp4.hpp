// SPDX-License-Identifier: Apache-2.0
/// @file
/// mxfp4 and nvfp4 over whole matrices, threaded and vectorised; equal to the reference bit for bit.
#pragma once

#include <type_traits>

#include "nibble/fp4.hpp"
#include "nibble/host/fp8.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// What block_scale says of every code.
struct block_scales {
  float of[256];

  template <class BlockFormat>
  explicit block_scales(BlockFormat f) noexcept {
    for (int code = 0; code < 256; ++code) of[code] = block_scale(static_cast<uint8_t>(code), f);
  }
};

/// block_scale_code without branches.
inline uint8_t stored_scale_code(float amax, mxfp4 f) noexcept {
  return block_scale_code(amax, f);
}
inline uint8_t stored_scale_code(float amax, nvfp4 f) noexcept {
  const float scale = f.global * round_to(f.compute_dtype, amax / 6.0f);
  const uint8_t code = code_of_number<float_format::e4m3>(scale, scale);
  return code == 0 ? uint8_t{0x20} : code;
}

/// Whole blocks, `count` <= span_block numbers of them: scale codes to `stored`, codes to `packed`, two a byte. Each step goes over
/// all blocks before the next, for a block by itself is too short a loop.
template <class BlockFormat, class T>
inline void pack_blocks(const T* __restrict from, uint8_t* __restrict packed, uint8_t* __restrict stored, index_t count,
                        BlockFormat f, const block_scales& scales) noexcept {
  constexpr index_t block = BlockFormat::block;
  float x[span_block], ratio[span_block];
  uint8_t codes[span_block];
  for (index_t i = 0; i < count; ++i) x[i] = load(from[i]);
  for (index_t first = 0; first < count; first += block) {
    int32_t most = 0;  // bits of the greatest |x|, whose order is that of floats
    for (index_t i = 0; i < block; ++i) {
      const int32_t magnitude = bit_cast<int32_t>(x[first + i]) & 0x7fffffff;
      most = max(most, magnitude & (0 - int32_t(magnitude < 0x7f800000)));
    }
    const uint8_t code = stored_scale_code(bit_cast<float>(most), f);
    const float scale = scales.of[code];
    for (index_t i = 0; i < block; ++i) ratio[first + i] = x[first + i] / scale;
    stored[first / block] = code;
  }
  for (index_t i = 0; i < count; ++i) codes[i] = code_of_number<float_format::e2m1>(ratio[i], x[i]);
  for (index_t i = 0; i < count / 2; ++i) packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
}

/// A whole block's numbers, of codes two a byte.
template <index_t Block, class T>
inline void unpack_block(const uint8_t* __restrict packed, T* __restrict to, float scale) noexcept {
  float x[Block];
  for (index_t i = 0; i < Block / 2; ++i) {
    x[2 * i] = value_of_code<float_format::e2m1>(packed[i] & 15u) * scale;
    x[2 * i + 1] = value_of_code<float_format::e2m1>(packed[i] >> 4) * scale;
  }
  if constexpr (std::is_same_v<T, fp16>) {
    store_span(x, to, Block);
    for (index_t i = 0; i < Block; ++i) to[i] = or_nan(to[i], is_nan(scale));
  } else {
    for (index_t i = 0; i < Block; ++i) store(x[i], to[i]);
  }
}

/// f(row) for all rows, shared out over the pool, in vectors.
template <class F>
void for_rows_of(index_t rows, index_t cols, F f) {
  const index_t step = rows_at_once(cols);
  parallel_for(ceil_div(rows, step), [&](index_t tile) {
    vectorised([&] {
      for (index_t row = tile * step; row < min(rows, (tile + 1) * step); ++row) f(row);
    });
  });
}

}  // namespace detail

/// w (n, k) row-major; packed (n, ⌈k/2⌉), number 2j of a row in the low half of byte j; scales (n, ⌈k/block⌉), stored codes.
template <class BlockFormat, class T>
void fit_quantize_pack(matrix<const T> w, matrix<uint8_t> packed, matrix<uint8_t> scales, BlockFormat f) {
  constexpr index_t block = BlockFormat::block;
  const detail::block_scales values(f);
  detail::for_rows_of(w.rows, w.cols, [&](index_t row) {
    const T* const from = w.row(row);
    uint8_t *const to = packed.row(row), *const codes = scales.row(row);
    const index_t whole = w.cols / block, left = w.cols % block;
    for (index_t first = 0; first < whole * block; first += detail::span_block)
      detail::pack_blocks(from + first, to + first / 2, codes + first / block,
                          min(detail::span_block, whole * block - first), f, values);
    if (left == 0) return;
    T last[block] = {};
    uint8_t bytes[block / 2];
    for (index_t i = 0; i < left; ++i) last[i] = from[whole * block + i];
    detail::pack_blocks(last, bytes, codes + whole, block, f, values);
    for (index_t i = 0; i < ceil_div(left, 2); ++i) to[whole * (block / 2) + i] = bytes[i];
  });
}

/// The inverse: w (n, k) gets value · scale, rounded to T.
template <class BlockFormat, class T>
void unpack_dequantize(matrix<const uint8_t> packed, matrix<const uint8_t> scales, matrix<T> w, BlockFormat f) {
  constexpr index_t block = BlockFormat::block;
  const detail::block_scales values(f);
  detail::for_rows_of(w.rows, w.cols, [&](index_t row) {
    const uint8_t *const from = packed.row(row), *const codes = scales.row(row);
    T* const to = w.row(row);
    const index_t whole = w.cols / block, left = w.cols % block;
    for (index_t i = 0; i < whole; ++i)
      detail::unpack_block<block>(from + i * (block / 2), to + i * block, values.of[codes[i]]);
    if (left == 0) return;
    T last[block];
    uint8_t bytes[block / 2] = {};
    for (index_t i = 0; i < ceil_div(left, 2); ++i) bytes[i] = from[whole * (block / 2) + i];
    detail::unpack_block<block>(bytes, last, values.of[codes[whole]]);
    for (index_t i = 0; i < left; ++i) to[whole * block + i] = last[i];
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END

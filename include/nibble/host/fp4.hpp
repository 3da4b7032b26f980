// SPDX-License-Identifier: Apache-2.0
/// @file
/// mxfp4 and nvfp4 over whole matrices, threaded and vectorised; equal to the reference bit for bit.
#pragma once

#include "nibble/fp4.hpp"
#include "nibble/host/fp8.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// One block of `Block` floats: its scale's code is returned, its codes go to `packed`, two a byte.
template <class BlockFormat>
inline uint8_t pack_block(const float* __restrict x, uint8_t* __restrict packed, BlockFormat f) noexcept {
  constexpr index_t block = BlockFormat::block;
  float most[8] = {};
  for (index_t i = 0; i < block; i += 8)
    for (index_t j = 0; j < 8; ++j) {
      const uint32_t magnitude = bit_cast<uint32_t>(x[i + j]) & 0x7fffffffu;
      const float finite = bit_cast<float>(select(magnitude < 0x7f800000u, magnitude, 0u));
      most[j] = most[j] < finite ? finite : most[j];
    }
  float amax = 0.0f;
  for (const float lane : most) amax = max(amax, lane);
  const uint8_t code = block_scale_code(amax, f);
  const float scale = block_scale(code, f);
  uint8_t codes[block];
  for (index_t i = 0; i < block; ++i) codes[i] = code_of_number<float_format::e2m1>(x[i] / scale, x[i]);
  for (index_t i = 0; i < block / 2; ++i) packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  return code;
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
  detail::for_rows_of(w.rows, w.cols, [=](index_t row) {
    const T* const from = w.row(row);
    float x[block];
    for (index_t first = 0; first < w.cols; first += block) {
      const index_t count = min(block, w.cols - first);
      uint8_t* const to = packed.row(row) + first / 2;
      for (index_t i = 0; i < count; ++i) x[i] = detail::load(from[first + i]);
      if (count == block) {
        scales(row, first / block) = detail::pack_block(x, to, f);
        continue;
      }
      uint8_t whole[block / 2];
      for (index_t i = count; i < block; ++i) x[i] = 0.0f;
      scales(row, first / block) = detail::pack_block(x, whole, f);
      for (index_t i = 0; i < ceil_div(count, 2); ++i) to[i] = whole[i];
    }
  });
}

/// The inverse: w (n, k) gets value · scale, rounded to T.
template <class BlockFormat, class T>
void unpack_dequantize(matrix<const uint8_t> packed, matrix<const uint8_t> scales, matrix<T> w, BlockFormat f) {
  constexpr index_t block = BlockFormat::block;
  detail::for_rows_of(w.rows, w.cols, [=](index_t row) {
    const uint8_t* const from = packed.row(row);
    for (index_t first = 0; first < w.cols; first += block) {
      const index_t count = min(block, w.cols - first);
      const float scale = block_scale(scales(row, first / block), f);
      for (index_t i = 0; i < count; ++i) {
        const uint32_t two = from[(first + i) / 2];
        const auto code = static_cast<uint8_t>((two >> 4 * (i % 2)) & 15u);
        w(row, first + i) = T(detail::value_of_code<float_format::e2m1>(code) * scale);
      }
    }
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END

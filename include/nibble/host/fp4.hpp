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

/// One block of `Block` floats: its scale's code is returned, its codes go to `packed`, two a byte.
template <class BlockFormat>
inline uint8_t pack_block(const float* __restrict x, uint8_t* __restrict packed, BlockFormat f) noexcept {
  constexpr index_t block = BlockFormat::block;
  int32_t most = 0;  // bits of the greatest |x|, whose order is that of floats
  for (index_t i = 0; i < block; ++i) {
    const uint32_t magnitude = bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    const auto finite = static_cast<int32_t>(select(magnitude < 0x7f800000u, magnitude, 0u));
    most = most < finite ? finite : most;
  }
  const auto amax = bit_cast<float>(most);
  const uint8_t code = block_scale_code(amax, f);
  const float scale = block_scale(code, f);
  uint8_t codes[block];
  for (index_t i = 0; i < block; ++i) codes[i] = code_of_number<float_format::e2m1>(x[i] / scale, x[i]);
  for (index_t i = 0; i < block / 2; ++i) packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  return code;
}

/// `count` of the floats x as T; as NaN where all of them are.
template <class T>
inline void store_block(const float* x, T* to, index_t count, bool nan) noexcept {
  if constexpr (std::is_same_v<T, fp16>) {
    store_span(x, to, count);
    for (index_t i = 0; i < count; ++i) to[i] = or_nan(to[i], nan);
  } else {
    for (index_t i = 0; i < count; ++i) store(x[i], to[i]);
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
      float x[block];
      for (index_t i = 0; i < ceil_div(count, 2); ++i) {
        const uint8_t two = from[first / 2 + i];
        x[2 * i] = detail::value_of_code<float_format::e2m1>(two & 15u) * scale;
        x[2 * i + 1] = detail::value_of_code<float_format::e2m1>(two >> 4) * scale;
      }
      detail::store_block(x, w.row(row) + first, count, is_nan(scale));
    }
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// reference::pack and unpack at the speed of memory:
///     host::pack(layout, matrix<const uint8_t> codes, matrix<word> words)
///     host::unpack(layout, matrix<const word> words, matrix<uint8_t> codes)
///     host::pack_scales(scale layout, matrix<const T> scales, matrix<T> stored), host::unpack_scales(…, stored, scales)
/// Shapes are layout.packed(n, k); codes are in [0, 2^bits), one a byte; `can_pack` was asked before.
///
/// Every string of bits is made in one of two ways, along a row or across rows; layouts whose words lie transposed pass
/// through a tile in cache (pack/along.hpp, pack/across.hpp, pack/turned.hpp).
#pragma once

#include <type_traits>
#include <utility>

#include "nibble/host/pack/across.hpp"
#include "nibble/host/pack/along.hpp"
#include "nibble/host/pack/turned.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/pack.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// f(integral_constant<int, bits>): the run-time width as a compile-time one.
template <class F>
void with_bits(int bits, F&& f) {
  switch (bits) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 5:
      return f(std::integral_constant<int, 5>{});
    case 6:
      return f(std::integral_constant<int, 6>{});
    case 7:
      return f(std::integral_constant<int, 7>{});
    default:
      return f(std::integral_constant<int, 8>{});
  }
}

/// Rows a thread packs at once: some 2^16 codes or words.
constexpr index_t packed_at_once(index_t cols) noexcept {
  return 1 + 65536 / (cols + 1);
}

}  // namespace detail

/// Layouts without a faster way: word by word, on all threads.
template <class Layout>
void pack(Layout l, matrix<const uint8_t> codes, matrix<typename Layout::word> words) {
  const index_t rows = detail::packed_at_once(words.cols);
  parallel_for(ceil_div(words.rows, rows), [&](index_t tile) {
    for (index_t row = tile * rows; row < nibble::min(words.rows, (tile + 1) * rows); ++row)
      for (index_t col = 0; col < words.cols; ++col) words(row, col) = word_at(l, codes, row, col);
  });
}
template <class Layout>
void unpack(Layout l, matrix<const typename Layout::word> words, matrix<uint8_t> codes) {
  const index_t rows = detail::packed_at_once(codes.cols);
  parallel_for(ceil_div(codes.rows, rows), [&](index_t tile) {
    for (index_t i = tile * rows; i < nibble::min(codes.rows, (tile + 1) * rows); ++i)
      for (index_t j = 0; j < codes.cols; ++j) codes(i, j) = code_at(l, words, codes.rows, codes.cols, i, j);
  });
}

inline void pack(layout::compressed_tensors l, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  const index_t rows = detail::packed_at_once(codes.cols);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, rows), [&](index_t tile) {
      vectorised([&] {
        for (index_t i = tile * rows; i < nibble::min(codes.rows, (tile + 1) * rows); ++i)
          detail::pack_along<bits.value>(codes.row(i), codes.cols, words.row(i));
      });
    });
  });
}
inline void unpack(layout::compressed_tensors l, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  const index_t rows = detail::packed_at_once(codes.cols);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, rows), [&](index_t tile) {
      vectorised([&] {
        for (index_t i = tile * rows; i < nibble::min(codes.rows, (tile + 1) * rows); ++i)
          detail::unpack_along<bits.value>(words.row(i), codes.cols, codes.row(i));
      });
    });
  });
}

inline void pack(layout::awq_gemv, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  pack(layout::compressed_tensors{4}, codes, words);
}
inline void unpack(layout::awq_gemv, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  unpack(layout::compressed_tensors{4}, words, codes);
}

inline void pack(layout::compressed_tensors_zeros l, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  const index_t across = ceil_div(codes.cols, detail::across_cols);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, 32) * across, [&](index_t tile) {
      const index_t first = tile / across * 32, col = tile % across * detail::across_cols;
      const index_t word = first / 32 * bits.value, count = nibble::min(codes.cols - col, detail::across_cols);
      const uint8_t* rows[detail::across_rows];
      for (index_t r = 0; r < detail::across_rows; ++r)
        rows[r] = first + r < codes.rows ? &codes(first + r, col) : detail::no_codes;
      vectorised([&] {
        detail::pack_across<bits.value>(rows, count, &words(word, col), words.stride, words.rows - word,
                                        std::make_integer_sequence<int, bits.value>{});
      });
    });
  });
}
inline void unpack(layout::compressed_tensors_zeros l, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  const index_t across = ceil_div(codes.cols, detail::across_cols);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, 32) * across, [&](index_t tile) {
      const index_t first = tile / across * 32, col = tile % across * detail::across_cols;
      const index_t count = nibble::min(codes.cols - col, detail::across_cols);
      const index_t present = nibble::min(codes.rows - first, index_t{32});
      uint8_t* rows[32] = {};
      for (index_t r = 0; r < present; ++r) rows[r] = &codes(first + r, col);
      vectorised([&] {
        detail::unpack_across<bits.value>(&words(first / 32 * bits.value, col), words.stride, count, rows, present,
                                          std::make_integer_sequence<int, 8>{});
      });
    });
  });
}

inline void pack(layout::awq_gemm, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  constexpr index_t cols = 512, pitch = detail::tile_pitch(cols);
  detail::each_tile(words.rows, words.cols, cols, [=](detail::tile t) {
    alignas(64) uint32_t turned[detail::tile_words * pitch];
    detail::pack_gemm_tile(t, codes, words, turned, pitch);
  });
}
inline void unpack(layout::awq_gemm, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  constexpr index_t cols = 128, pitch = detail::tile_pitch(cols);
  detail::each_tile(words.rows, words.cols, cols, [=](detail::tile t) {
    alignas(64) uint32_t turned[detail::tile_words * pitch];
    detail::unpack_gemm_tile(t, words, codes, turned, pitch);
  });
}

/// stored = the scales where the layout wants them, T{} elsewhere. scales (n, groups); stored (l.packed(n, groups)).
template <class ScaleLayout, class Source, class T>
void pack_scales(ScaleLayout l, matrix<Source> scales, matrix<T> stored) {
  for (index_t row = 0; row < stored.rows; ++row)
    for (index_t col = 0; col < stored.cols; ++col) stored(row, col) = T{};
  for (index_t i = 0; i < scales.rows; ++i)
    for (index_t g = 0; g < scales.cols; ++g) {
      const layout::extents at = where_scale(l, scales.cols, i, g);
      stored(at.rows, at.cols) = scales(i, g);
    }
}
template <class ScaleLayout, class Source, class T>
void unpack_scales(ScaleLayout l, matrix<Source> stored, matrix<T> scales) {
  for (index_t i = 0; i < scales.rows; ++i)
    for (index_t g = 0; g < scales.cols; ++g) {
      const layout::extents at = where_scale(l, scales.cols, i, g);
      scales(i, g) = stored(at.rows, at.cols);
    }
}

}  // namespace host
NIBBLE_NAMESPACE_END

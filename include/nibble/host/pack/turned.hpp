// SPDX-License-Identifier: Apache-2.0
/// @file
/// Words that lie transposed (AWQ GEMM): packed across rows into a tile that stays in cache, sixteen words (one cache
/// line) wide, and turned on its way to or from memory.
#pragma once

#include <cstring>
#include <utility>

#include "nibble/host/pack/across.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/pack.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Words of outputs in a tile: one cache line.
inline constexpr index_t tile_words = 16;
/// Inputs a thread goes through at once, in tiles that ask for the next one's lines.
inline constexpr index_t tile_span = 2048;
/// Words from one row of a turned tile to the next; the odd line keeps a column's words off one cache set.
constexpr index_t tile_pitch(index_t cols) noexcept {
  return cols + 16;
}

/// to(c, r) = from(r, c), 4 × 4.
inline void turn_four(const uint32_t* from, index_t from_stride, uint32_t* to, index_t to_stride) noexcept {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  using four = uint32_t __attribute__((vector_size(16)));
  four a, b, c, d;
  std::memcpy(&a, from, 16);
  std::memcpy(&b, from + from_stride, 16);
  std::memcpy(&c, from + 2 * from_stride, 16);
  std::memcpy(&d, from + 3 * from_stride, 16);
  const four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const four ef = __builtin_shufflevector(a, b, 2, 6, 3, 7), gh = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  b = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  c = __builtin_shufflevector(ef, gh, 0, 1, 4, 5);
  d = __builtin_shufflevector(ef, gh, 2, 3, 6, 7);
  std::memcpy(to, &a, 16);
  std::memcpy(to + to_stride, &b, 16);
  std::memcpy(to + 2 * to_stride, &c, 16);
  std::memcpy(to + 3 * to_stride, &d, 16);
#else
  for (index_t row = 0; row < 4; ++row)
    for (index_t col = 0; col < 4; ++col) to[col * to_stride + row] = from[row * from_stride + col];
#endif
}

/// to(c, r) = from(r, c).
inline void turn(matrix<const uint32_t> from, matrix<uint32_t> to) noexcept {
  if (from.rows == tile_words && from.cols == 4) {
    for (index_t row = 0; row < tile_words; row += 4) turn_four(from.row(row), from.stride, to.data + row, to.stride);
    return;
  }
  if (from.rows == 4 && from.cols == tile_words) {
    for (index_t col = 0; col < tile_words; col += 4) turn_four(from.data + col, from.stride, to.row(col), to.stride);
    return;
  }
  const index_t rows = from.rows / 4 * 4, cols = from.cols / 4 * 4;
  for (index_t row = 0; row < rows; row += 4)
    for (index_t col = 0; col < cols; col += 4) turn_four(&from(row, col), from.stride, &to(col, row), to.stride);
  for (index_t row = 0; row < from.rows; ++row)
    for (index_t col = row < rows ? cols : 0; col < from.cols; ++col) to(col, row) = from(row, col);
}

/// The part of a matrix that one step works on, and the columns of the step after it.
struct tile {
  index_t word;     ///< first column of words
  index_t present;  ///< columns of words, at most tile_words
  index_t col;      ///< first input
  index_t count;    ///< inputs
  index_t next;     ///< inputs in the tile that follows on the same outputs
};

/// f(tile) on every tile, `cols` inputs wide, of words (k, word_cols).
template <class F>
void each_tile(index_t k, index_t word_cols, index_t cols, F f) {
  const index_t spans = ceil_div(k, tile_span);
  parallel_for(ceil_div(word_cols, tile_words) * spans, [&](index_t task) {
    const index_t word = task / spans * tile_words, end = nibble::min(k, (task % spans + 1) * tile_span);
    vectorised([&] {
      for (index_t col = task % spans * tile_span; col < end; col += cols) {
        const index_t count = nibble::min(end - col, cols);
        f(tile{word, nibble::min(word_cols - word, tile_words), col, count, nibble::min(end - col - count, cols)});
      }
    });
  });
}

/// Row of codes in nibble r % 8 of the word r / 8 words after `word`.
inline index_t gemm_row(index_t word, index_t r) noexcept {
  return layout::source(layout::awq_gemm{}, 0, 0, 0, word + r / 8, static_cast<int32_t>(r % 8)).i;
}

inline void pack_gemm_tile(tile t, matrix<const uint8_t> codes, matrix<uint32_t> words, uint32_t* turned,
                           index_t pitch) {
  for (index_t w = 0; w < t.present; w += 4) {
    const uint8_t* rows[across_rows];
    for (index_t r = 0; r < across_rows; ++r) {
      const index_t i = gemm_row(t.word + w, r);
      rows[r] = i < codes.rows ? &codes(i, t.col) : no_codes;
      if (r < 32 && i < codes.rows) expect(rows[r] + t.count, t.next);
    }
    pack_across<4>(rows, t.count, turned + w * pitch, pitch, 4, std::make_integer_sequence<int, 4>{});
  }
  constexpr index_t ahead = 32;
  for (index_t c = 0; c < t.count; c += 4) {
    const index_t cols = nibble::min(index_t{4}, t.count - c);
    for (index_t at = c + ahead; at < nibble::min(t.count, c + ahead + 4); ++at)
      expect(&words(t.col + at, t.word), 4 * t.present);
    turn(matrix<const uint32_t>(turned + c, t.present, cols, pitch),
         words.rows_at(t.col + c, cols).cols_at(t.word, t.present));
  }
}

inline void unpack_gemm_tile(tile t, matrix<const uint32_t> words, matrix<uint8_t> codes, uint32_t* turned,
                             index_t pitch) {
  for (index_t c = 0; c < t.count; c += 4) {
    const index_t cols = nibble::min(index_t{4}, t.count - c);
    for (index_t at = c; at < nibble::min(t.next, c + 4); ++at)
      expect(&words(t.col + t.count + at, t.word), 4 * t.present);
    turn(words.rows_at(t.col + c, cols).cols_at(t.word, t.present),
         matrix<uint32_t>(turned + c, t.present, cols, pitch));
  }
  for (index_t w = 0; w < t.present; w += 4) {
    uint8_t* rows[32] = {};
    const index_t there = nibble::min(t.present - w, index_t{4}) * 8;
    for (index_t r = 0; r < there; ++r) {
      rows[r] = &codes(gemm_row(t.word + w, r), t.col);
      expect(rows[r] + t.count, t.next);
    }
    unpack_across<4>(turned + w * pitch, pitch, t.count, rows, there, std::make_integer_sequence<int, 8>{});
  }
}

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes ↔ words as the formats' own procedures tell it, one bit at a time. Every layout is a walk over its codes that
/// says, bit by bit, which bit of which word is meant: pack sets those bits in blank words, unpack reads
/// them. Where a format is published as reshapes and a permutation table, the walk follows the table.
#pragma once

#include <array>
#include <vector>

#include "nibble/layout.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace detail {

/// f(i, j, bit, row, col, at): bit `bit` of code (i, j) is bit `at` of word (row, col). Codes are (n, k).
template <class F>
void each_bit(layout::compressed_tensors l, index_t n, index_t k, F f) {
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < k; ++j)
      for (int bit = 0; bit < l.bits; ++bit) f(i, j, bit, i, (j * l.bits + bit) / 32, (j * l.bits + bit) % 32);
}
template <class F>
void each_bit(layout::compressed_tensors_zeros l, index_t n, index_t k, F f) {
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < k; ++j)
      for (int bit = 0; bit < l.bits; ++bit) f(i, j, bit, (i * l.bits + bit) / 32, j, (i * l.bits + bit) % 32);
}
template <class F>
void each_bit(layout::gptq l, index_t n, index_t k, F f) {
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < k; ++j)
      for (int bit = 0; bit < l.bits; ++bit) f(i, j, bit, (j * l.bits + bit) / 32, i, (j * l.bits + bit) % 32);
}
template <class F>
void each_bit(layout::gptq_zeros l, index_t n, index_t k, F f) {
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < k; ++j)
      for (int bit = 0; bit < l.bits; ++bit) f(i, j, bit, j, (i * l.bits + bit) / 32, (i * l.bits + bit) % 32);
}

inline constexpr std::array<index_t, 8> even_then_odd = {0, 2, 4, 6, 1, 3, 5, 7};

template <class F>
void each_bit(layout::awq_gemm, index_t n, index_t k, F f) {
  for (index_t col = 0; col < n / 8; ++col)
    for (index_t nibble = 0; nibble < 8; ++nibble)
      for (index_t j = 0; j < k; ++j)
        for (int bit = 0; bit < 4; ++bit)
          f(8 * col + even_then_odd[static_cast<size_t>(nibble)], j, bit, j, col, 4 * nibble + bit);
}
template <class F>
void each_bit(layout::awq_gemv, index_t n, index_t k, F f) {
  each_bit(layout::compressed_tensors{4}, n, k, f);
}
template <class F>
void each_bit(layout::awq_gemv_zeros, index_t n, index_t k, F f) {
  each_bit(layout::compressed_tensors{4}, n, k, f);
}

/// The published pipeline on the columns of one run of 64: runs of 32 as (4, 4, 2) with the first two axes exchanged,
/// eights as (4, 2) transposed, four rows one after another, then four nibbles to a word.
template <class F>
void each_bit(layout::awq_gemv_fast, index_t n, index_t k, F f) {
  std::array<index_t, 64> order{};
  for (index_t half = 0; half < 2; ++half) {
    std::array<index_t, 32> swapped{};
    size_t at = 0;
    for (index_t a = 0; a < 4; ++a)
      for (index_t b = 0; b < 4; ++b)
        for (index_t c = 0; c < 2; ++c) swapped[at++] = 32 * half + 8 * b + 2 * a + c;
    for (size_t e = 0; e < 32; ++e)
      order[static_cast<size_t>(32 * half) + e] = swapped[e / 8 * 8 + static_cast<size_t>(even_then_odd[e % 8])];
  }
  for (index_t row = 0; row < n / 4; ++row)
    for (index_t run = 0; run < k / 64; ++run)
      for (index_t at = 0; at < 256; ++at)
        for (int bit = 0; bit < 4; ++bit)
          f(4 * row + at / 64, 64 * run + order[static_cast<size_t>(at % 64)], bit, row, 64 * run + at / 4,
            4 * (at % 4) + bit);
}

/// The published order of a word's elements: 0,2,4,6,1,3,5,7 of 8 and 0,2,1,3 of 4.
inline std::vector<size_t> marlin_order(int bits) {
  return bits == 4 ? std::vector<size_t>{0, 2, 4, 6, 1, 3, 5, 7} : std::vector<size_t>{0, 2, 1, 3};
}

/// The published table: for each of 32 threads, its eight elements of each of four 16 × 16 tiles; an entry is the
/// position 256·tile + 16·(row of k) + (column of n).
inline std::array<index_t, 1024> marlin_permutation(int bits) {
  std::array<index_t, 1024> table{};
  const auto order = marlin_order(bits);
  size_t at = 0;
  for (index_t thread = 0; thread < 32; ++thread)
    for (index_t tile = 0; tile < 4; ++tile) {
      std::array<index_t, 8> held{};
      size_t h = 0;
      for (const index_t block : {0, 1})
        for (const index_t row :
             {2 * (thread % 4), 2 * (thread % 4) + 1, 2 * (thread % 4 + 4), 2 * (thread % 4 + 4) + 1})
          held[h++] = 256 * tile + 16 * row + thread / 4 + 8 * block;
      for (h = 0; h < 8; ++h) table[at++] = held[h / order.size() * order.size() + order[h % order.size()]];
    }
  return table;
}
template <class F>
void each_bit(layout::marlin l, index_t n, index_t k, F f) {
  const auto table = marlin_permutation(l.bits);
  for (index_t row = 0; row < k / 16; ++row)
    for (index_t at = 0; at < 16 * n; ++at) {
      const index_t from = table[static_cast<size_t>(at % 1024)];
      const index_t i = at / 1024 * 64 + from / 256 * 16 + from % 16, j = row * 16 + from % 256 / 16;
      for (int bit = 0; bit < l.bits; ++bit) f(i, j, bit, row, at * l.bits / 32, at * l.bits % 32 + bit);
    }
}
/// The scales' table for several groups, then the order within words.
template <class F>
void each_bit(layout::marlin_zeros l, index_t n, index_t k, F f) {
  std::array<index_t, 64> table{};
  for (size_t a = 0; a < 8; ++a)
    for (size_t b = 0; b < 8; ++b) table[8 * a + b] = static_cast<index_t>(a + 8 * b);
  const auto order = marlin_order(l.bits);
  for (index_t j = 0; j < k; ++j)
    for (index_t at = 0; at < n; ++at) {
      const auto in_64 = static_cast<size_t>(at % 64), count = order.size();
      const index_t i = at / 64 * 64 + table[in_64 / count * count + order[in_64 % count]];
      for (int bit = 0; bit < l.bits; ++bit) f(i, j, bit, j, at * l.bits / 32, at * l.bits % 32 + bit);
    }
}

template <class F>
void each_bit(layout::bitsandbytes, index_t n, index_t k, F f) {
  for (index_t at = 0; at < n * k; ++at)
    for (int bit = 0; bit < 4; ++bit) f(at / k, at % k, bit, at / 2, index_t{0}, (at % 2 == 0 ? 4 : 0) + bit);
}

/// What words hold where no code lies.
template <class Layout>
typename Layout::word blank(Layout, index_t, index_t, index_t) {
  return 0;
}
inline uint8_t blank(layout::bitsandbytes l, index_t n, index_t k, index_t row) {
  return n * k % 2 != 0 && row == n * k / 2 ? l.filler : uint8_t{0};
}

/// GPTQ v1 stores a zero point less one; nothing else stores anything but the code.
template <class Layout>
int less(Layout) {
  return 0;
}
inline int less(layout::gptq_zeros l) {
  return l.version == layout::gptq_version::v1 ? 1 : 0;
}

/// f(i, g, row, col): scale (i, g) of (n, groups) is stored at (row, col).
template <class F>
void each_scale(layout::plain_scales, index_t n, index_t groups, F f) {
  for (index_t i = 0; i < n; ++i)
    for (index_t g = 0; g < groups; ++g) f(i, g, i, g);
}
template <class F>
void each_scale(layout::transposed_scales, index_t n, index_t groups, F f) {
  each_scale(layout::plain_scales{}, n, groups, [&](index_t i, index_t g, index_t, index_t) { f(i, g, g, i); });
}
template <class F>
void each_scale(layout::awq_gemv_scales, index_t n, index_t groups, F f) {
  each_scale(layout::plain_scales{}, n, groups, f);
}
template <class F>
void each_scale(layout::awq_gemv_fast_scales, index_t n, index_t groups, F f) {
  each_scale(layout::transposed_scales{}, n, groups, f);
}
template <class F>
void each_scale(layout::marlin_scales, index_t n, index_t groups, F f) {
  std::vector<index_t> table;
  if (groups > 1) {
    for (index_t a = 0; a < 8; ++a)
      for (index_t b = 0; b < 8; ++b) table.push_back(a + 8 * b);
  } else {
    for (index_t a = 0; a < 4; ++a)
      for (const index_t b : {0, 1, 8, 9, 16, 17, 24, 25}) table.push_back(2 * a + b);
  }
  const auto period = static_cast<index_t>(table.size());
  for (index_t g = 0; g < groups; ++g)
    for (index_t at = 0; at < n; ++at) f(at / period * period + table[static_cast<size_t>(at % period)], g, g, at);
}

}  // namespace detail

/// words = the packed codes. codes (n, k), one a byte, each in [0, 2^bits); words (l.packed(n, k)). @pre can_pack.
template <class Layout>
void pack(Layout l, matrix<const uint8_t> codes, matrix<typename Layout::word> words) {
  using word = typename Layout::word;
  for (index_t row = 0; row < words.rows; ++row)
    for (index_t col = 0; col < words.cols; ++col) words(row, col) = detail::blank(l, codes.rows, codes.cols, row);
  detail::each_bit(l, codes.rows, codes.cols, [&](index_t i, index_t j, int bit, index_t row, index_t col, index_t at) {
    const int value = codes(i, j) - detail::less(l);
    const auto set = static_cast<word>(static_cast<word>(value >> bit & 1) << at);
    words(row, col) = static_cast<word>(words(row, col) | set);
  });
}

/// codes = what `words` hold; the inverse of pack.
template <class Layout>
void unpack(Layout l, matrix<const typename Layout::word> words, matrix<uint8_t> codes) {
  for (index_t i = 0; i < codes.rows; ++i)
    for (index_t j = 0; j < codes.cols; ++j) codes(i, j) = 0;
  detail::each_bit(l, codes.rows, codes.cols, [&](index_t i, index_t j, int bit, index_t row, index_t col, index_t at) {
    codes(i, j) = static_cast<uint8_t>(codes(i, j) | (words(row, col) >> at & 1) << bit);
  });
  for (index_t i = 0; i < codes.rows; ++i)
    for (index_t j = 0; j < codes.cols; ++j)
      codes(i, j) = static_cast<uint8_t>((codes(i, j) + detail::less(l)) & ((1 << l.bits) - 1));
}

/// stored = the codes (n, k) in `words`, in another layout. @pre both layouts pack (n, k), codes of as many bits.
template <class From, class To>
void repack(From from, matrix<const typename From::word> words, To to, matrix<typename To::word> stored, index_t n,
            index_t k) {
  std::vector<uint8_t> codes(static_cast<size_t>(n * k));
  unpack(from, words, matrix<uint8_t>(codes.data(), n, k));
  pack(to, matrix<const uint8_t>(codes.data(), n, k), stored);
}

/// stored = the scales where the layout wants them, T{} elsewhere. scales (n, groups); stored (l.packed(n, groups)).
template <class ScaleLayout, class Source, class T>
void pack_scales(ScaleLayout l, matrix<Source> scales, matrix<T> stored) {
  for (index_t row = 0; row < stored.rows; ++row)
    for (index_t col = 0; col < stored.cols; ++col) stored(row, col) = T{};
  detail::each_scale(l, scales.rows, scales.cols,
                     [&](index_t i, index_t g, index_t row, index_t col) { stored(row, col) = scales(i, g); });
}

/// The inverse of pack_scales.
template <class ScaleLayout, class Source, class T>
void unpack_scales(ScaleLayout l, matrix<Source> stored, matrix<T> scales) {
  detail::each_scale(l, scales.rows, scales.cols,
                     [&](index_t i, index_t g, index_t row, index_t col) { scales(i, g) = stored(row, col); });
}

}  // namespace reference
NIBBLE_NAMESPACE_END

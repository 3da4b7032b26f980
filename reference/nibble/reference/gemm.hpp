// SPDX-License-Identifier: Apache-2.0
/// @file
/// x · Wᵀ over dense or packed weights, as plain loops that add in the order nibble/gemm.hpp states.
#pragma once

#include <array>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/layout.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace detail {

/// Σ of a[j] · b[j]: run r of `run` inputs goes to lane r mod 16; lanes are folded in halves.
inline float lane_dot(const float* a, const float* b, index_t k, index_t run) {
  std::array<float, 16> lane{};
  size_t at = 0;
  for (index_t first = 0; first < k; first += run, at = (at + 1) % 16)
    for (index_t j = first; j < k && j < first + run; ++j) {
      const float product = a[j] * b[j];
      lane[at] = lane[at] + product;
    }
  for (const size_t width : {8u, 4u, 2u, 1u})
    for (size_t l = 0; l < width; ++l) lane[l] = lane[l] + lane[l + width];
  return lane[0];
}

/// The b-bit code at position j of a row's string of bits, bit by bit.
inline int string_code(const uint32_t* row, index_t j, int bits) {
  int code = 0;
  for (int bit = 0; bit < bits; ++bit) {
    const index_t at = j * bits + bit;
    code |= static_cast<int>(row[at / 32] >> (at % 32) & 1u) << bit;
  }
  return code;
}

}  // namespace detail

/// y (m, n) = x (m, k) · w (n, k)ᵀ.
template <class T>
void gemm(matrix<const float> x, matrix<const T> w, matrix<float> y) {
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (index_t i = 0; i < w.rows; ++i) {
    for (index_t j = 0; j < w.cols; ++j) row[static_cast<size_t>(j)] = static_cast<float>(w(i, j));
    for (index_t t = 0; t < x.rows; ++t) y(t, i) = detail::lane_dot(x.row(t), row.data(), w.cols, 1);
  }
}

/// y (m, n) = x (m, k) · Wᵀ of W's codes in words (n, ⌈k·bits/32⌉); scales, zeros (n, groups), the latter null where
/// the packing is symmetric.
template <class Scale>
void gemm(matrix<const float> x, layout::compressed_tensors l, matrix<const uint32_t> words, matrix<const Scale> scales,
          matrix<const uint8_t> zeros, index_t group, matrix<float> y) {
  const index_t k = x.cols, width = group < 0 ? k : group;
  index_t run = l.bits == 2 ? 16 : l.bits == 4 ? 8 : l.bits == 8 ? 4 : 1;
  if (group > 0 && group % run != 0) run = 1;
  std::vector<float> row(static_cast<size_t>(k));
  for (index_t i = 0; i < words.rows; ++i) {
    for (index_t j = 0; j < k; ++j) {
      const int zero = zeros.data ? zeros(i, j / width) : 1 << (l.bits - 1);
      const float steps = static_cast<float>(detail::string_code(words.row(i), j, l.bits) - zero);
      row[static_cast<size_t>(j)] = steps * static_cast<float>(scales(i, j / width));
    }
    for (index_t t = 0; t < x.rows; ++t) y(t, i) = detail::lane_dot(x.row(t), row.data(), k, run);
  }
}

}  // namespace reference
NIBBLE_NAMESPACE_END

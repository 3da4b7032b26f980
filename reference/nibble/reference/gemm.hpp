// SPDX-License-Identifier: Apache-2.0
/// @file
/// x · Wᵀ over dense or packed weights, as plain loops that round inputs and add in the order nibble/gemm.hpp states.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/layout.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace detail {

/// Lanes folded in halves.
inline float lane_total(std::array<float, 16> lane) {
  for (const size_t width : {8u, 4u, 2u, 1u})
    for (size_t l = 0; l < width; ++l) lane[l] = lane[l] + lane[l + width];
  return lane[0];
}

/// Σ of a[j] · b[j], product j in lane j mod 16.
inline float lane_dot(const float* a, const float* b, index_t k) {
  std::array<float, 16> lane{};
  for (index_t j = 0; j < k; ++j) {
    const float product = a[j] * b[j];
    const auto at = static_cast<size_t>(j % 16);
    lane[at] = lane[at] + product;
  }
  return lane_total(lane);
}

/// Inputs as integers, and the unit of each run of them.
struct run_inputs {
  std::vector<int32_t> integers;
  std::vector<float> units;

  run_inputs(const float* x, index_t k, index_t run) {
    for (index_t first = 0; first < k; first += run) {
      const float *begin = x + first, *end = x + (first + run < k ? first + run : k);
      float largest = 0.0f, unit = 0x1p-126f;
      bool finite = true;
      for (const float* at = begin; at < end; ++at) {
        finite = finite && std::isfinite(*at);
        largest = std::fmax(largest, std::fabs(*at));
      }
      while (finite && unit * 32767.0f < largest) unit *= 2.0f;
      units.push_back(finite ? unit : NAN);
      for (const float* at = begin; at < end; ++at)
        integers.push_back(finite ? static_cast<int32_t>(std::nearbyint(*at / unit)) : 0);
    }
  }
};

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
    for (index_t t = 0; t < x.rows; ++t) y(t, i) = detail::lane_dot(x.row(t), row.data(), w.cols);
  }
}

/// y (m, n) = x (m, k) · Wᵀ of W's codes in words (n, ⌈k·bits/32⌉); scales, zeros (n, groups), the latter null where
/// the packing is symmetric.
template <class Scale>
void gemm(matrix<const float> x, layout::compressed_tensors l, matrix<const uint32_t> words, matrix<const Scale> scales,
          matrix<const uint8_t> zeros, index_t group, matrix<float> y) {
  const index_t k = x.cols, width = group < 0 ? k : group;
  index_t run = l.bits == 2 ? 16 : l.bits == 4 ? 8 : 4;
  if (group > 0 && group % run != 0) run = group % 4 == 0 ? 4 : 1;
  for (index_t t = 0; t < x.rows; ++t) {
    const detail::run_inputs in(x.row(t), k, run);
    for (index_t i = 0; i < words.rows; ++i) {
      std::array<float, 16> lane{};
      for (index_t r = 0; r * run < k; ++r) {
        const index_t g = r * run / width;
        const int zero = zeros.data ? zeros(i, g) : 1 << (l.bits - 1);
        int64_t sum = 0;
        for (index_t j = r * run; j < k && j < (r + 1) * run; ++j)
          sum += (detail::string_code(words.row(i), j, l.bits) - zero) * in.integers[static_cast<size_t>(j)];
        const float counted = static_cast<float>(sum) * in.units[static_cast<size_t>(r)];
        const float product = counted * static_cast<float>(scales(i, g));
        lane[static_cast<size_t>(r % 16)] = lane[static_cast<size_t>(r % 16)] + product;
      }
      y(t, i) = detail::lane_total(lane);
    }
  }
}

}  // namespace reference
NIBBLE_NAMESPACE_END

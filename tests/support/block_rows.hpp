// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of weights and the importance of columns for tests of blocks, from integer hashes, exact in float: the formulas that
/// tests/golden/block/make.py repeats.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "support/weights.hpp"

namespace nibble::test {

inline constexpr std::array row_kind_names = {"normal",   "heavy",    "constant", "zero", "denormal", "tiny",
                                              "positive", "negative", "spike",    "tie",  "range",    "sweeps"};
inline constexpr std::size_t row_kinds = row_kind_names.size();

inline std::size_t row_kind(const std::string& name) {
  std::size_t kind = 0;
  while (row_kind_names.at(kind) != name) ++kind;
  return kind;
}

/// A hash of 32 bits.
inline uint32_t mixed(uint32_t x) {
  x = (x ^ x >> 16) * 2654435761u;
  x = (x ^ x >> 15) * 2246822519u;
  x = (x ^ x >> 13) * 3266489917u;
  return x ^ x >> 16;
}
inline int bits16(uint32_t seed, uint32_t t) {
  return static_cast<int>(mixed(seed * 40503u + t) >> 16);
}
/// An integer in [−262140, 262140], nearly normal.
inline int normal16(uint32_t seed, uint32_t t) {
  int sum = -262140;
  for (uint32_t i = 0; i < 8; ++i) sum += bits16(seed, 8 * t + i);
  return sum;
}

/// Weight `col` of a row; kinds as in row_kind_names.
inline float block_weight(std::size_t kind, uint32_t row, uint32_t col) {
  // rows with a group of Q3_K whose codes still move in the fifth sweep
  if (kind == 11) return block_weight(10, row + 20, col);
  const uint32_t seed = 1000 * static_cast<uint32_t>(kind) + row + 1;
  const int n = normal16(seed, col), u = bits16(seed + 500, col);
  const int magnitude = std::abs(n) + static_cast<int>(row % 2) * 65536;
  const auto scaled = [](int integer, int exponent) { return std::ldexp(static_cast<float>(integer), exponent); };
  switch (kind) {
    case 0:
      return scaled(n, -21);
    case 1:
      return scaled(n, -15) / static_cast<float>(1 + u % 256);
    case 2:
      return scaled(bits16(seed + 500, 0) - 32768, -20);
    case 3:
      return u % 2 == 1 ? -0.0f : 0.0f;
    case 4:
      return scaled(n, -149);
    case 5:
      return scaled(n, -67);
    case 6:
      return scaled(magnitude, -21);
    case 7:
      return scaled(-magnitude, -21);
    case 8:
      return scaled(n, -21) * (u % 32 == 0 ? 16.0f : 0x1p-12f);
    case 9:
      // halves of the step that a largest weight of 127 steps makes
      if (row % 2 == 1) return scaled(col % 32 == 0 ? 254 : u % 509 - 254, -9);
      return scaled(u % 33 - 16, -6);
    default:
      return scaled(n, -16 - bits16(seed + 700, col / 16) % 24);
  }
}

inline owned<float> block_rows(std::size_t kind, index_t rows, index_t k) {
  owned<float> w(rows, k);
  for (index_t row = 0; row < rows; ++row)
    for (index_t col = 0; col < k; ++col)
      w.view()(row, col) = block_weight(kind, static_cast<uint32_t>(row), static_cast<uint32_t>(col));
  return w;
}

/// An eighth of the columns has none.
inline std::vector<float> column_importance(index_t k) {
  std::vector<float> importance(static_cast<std::size_t>(k));
  for (std::size_t col = 0; col < importance.size(); ++col) {
    const int u = bits16(77, static_cast<uint32_t>(col));
    importance[col] = u % 8 == 0 ? 0.0f : std::ldexp(static_cast<float>(u), -12);
  }
  return importance;
}

/// FNV-1a of 64 bits, hexadecimal.
inline std::string fnv(const void* data, std::size_t size) {
  uint64_t state = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < size; ++i) state = (state ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(state));
  return text;
}

}  // namespace nibble::test

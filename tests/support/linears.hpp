// SPDX-License-Identifier: Apache-2.0
/// @file
/// Linears for the tests of AWQ's searches, which host and kernels share.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "nibble/scheme.hpp"
#include "support/weights.hpp"

inline nibble::any_scheme scheme_of(int bits, bool symmetric,
                                    nibble::convention rule = nibble::convention::compressed_tensors) {
  nibble::any_scheme s;
  s.bits = bits;
  s.symmetric = symmetric;
  s.rule = rule;
  return s;
}

/// Positive numbers of several magnitudes; powers of two if asked.
inline std::vector<float> scales(nibble::index_t k, bool powers = false) {
  std::vector<float> s(static_cast<std::size_t>(k));
  for (std::size_t j = 0; j < s.size(); ++j)
    s[j] = powers ? std::ldexp(1.0f, static_cast<int>(j * 5 % 4) - 1) : 0.5f + 0.37f * static_cast<float>(j % 7);
  return s;
}

/// Student's t with 3 degrees of freedom: a group's extremes are far from its bulk.
inline owned<float> heavy_tailed(nibble::index_t rows, nibble::index_t cols) {
  std::mt19937 engine(8);
  std::student_t_distribution<float> draw(3.0f);
  owned<float> w(rows, cols);
  for (float& value : w.data) value = 0.02f * draw(engine);
  return w;
}

/// Numbers on which float arithmetic is exact: 64 tokens of integers up to 2, weights in eighths.
inline owned<float> integer_activations(nibble::index_t channels) {
  std::mt19937 engine(5);
  owned<float> x(64, channels);
  for (nibble::index_t row = 0; row < 64; ++row)
    for (nibble::index_t col = 0; col < channels; ++col)
      x.view()(row, col) = col % 32 == 11                 ? 0.0f
                           : col > 1 && engine() % 2 == 0 ? x.view()(row, col - 1)
                                                          : static_cast<float>(static_cast<int>(engine() % 5) - 2);
  return x;
}
inline owned<float> eighths(nibble::index_t rows, nibble::index_t cols) {
  std::mt19937 engine(6);
  owned<float> w(rows, cols);
  for (float& value : w.data) value = static_cast<float>(static_cast<int>(engine() % 31) - 15) / 8;
  return w;
}

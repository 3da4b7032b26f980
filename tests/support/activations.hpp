// SPDX-License-Identifier: Apache-2.0
/// @file
/// Activations for tests, and how far float sums over them may be from exact ones.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "nibble/host/observe.hpp"
#include "nibble/reference/observe.hpp"
#include "support/weights.hpp"

/// Unit roundoff of float: a sum of n products differs from the exact one by at most n·u·Σ|a·b|, in any order.
constexpr double roundoff = 0x1p-24;

/// Tokens (m, k) of correlated channels: four hidden factors and noise. Channel 7 of 16 is three times as loud as others;
/// channel 11 of 32 is dead.
inline owned<float> activations(nibble::index_t tokens, nibble::index_t channels, unsigned seed = 3) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  owned<float> mix(4, channels), x(tokens, channels);
  for (float& value : mix.data) value = normal(engine);
  for (nibble::index_t row = 0; row < tokens; ++row) {
    float factor[4];
    for (float& value : factor) value = normal(engine);
    for (nibble::index_t col = 0; col < channels; ++col) {
      float sum = 0.5f * normal(engine);
      for (nibble::index_t i = 0; i < 4; ++i) sum += factor[i] * mix.view()(i, col);
      x.view()(row, col) = col % 32 == 11 ? 0.0f : col % 16 == 7 ? 3.0f * sum : sum;
    }
  }
  return x;
}

/// x gathered in chunks. @param announced decides between Gram matrix (>= channels) and tokens.
inline nibble::host::second_moment gathered(const owned<float>& x, nibble::index_t announced, float shrinkage,
                                            nibble::index_t chunk = 1 << 20) {
  nibble::host::second_moment moment(x.cols, announced, shrinkage);
  for (nibble::index_t row = 0; row < x.rows; row += chunk)
    moment.add(x.view().rows_at(row, std::min(chunk, x.rows - row)));
  moment.finish();
  return moment;
}

/// The shrunk Gram matrix of x in double.
inline owned<double> exact_gram(const owned<float>& x, float shrinkage) {
  owned<double> g(x.cols, x.cols, 0.0);
  nibble::reference::gram(x.view(), g.view());
  for (nibble::index_t i = 0; i < x.cols; ++i)
    for (nibble::index_t j = 0; j < x.cols; ++j)
      g.view()(i, j) *= (i == j ? 1.0 : 1.0 - static_cast<double>(shrinkage)) / static_cast<double>(x.rows);
  return g;
}

/// Σ over rows of (Σ_i |d_i|·√G_ii)²: no sum of the loss tr(D·G·Dᵀ) is larger in magnitude (Cauchy-Schwarz).
inline double loss_magnitude(nibble::matrix<const float> d, const owned<double>& g) {
  double total = 0;
  for (nibble::index_t row = 0; row < d.rows; ++row) {
    double sum = 0;
    for (nibble::index_t col = 0; col < d.cols; ++col)
      sum += std::fabs(static_cast<double>(d(row, col))) * std::sqrt(g.view()(col, col));
    total += sum * sum;
  }
  return total;
}

/// f() with 1 thread, then with 2, 3 and 7: whether the results are equal.
template <class F>
bool same_for_any_threads(F f) {
  const int before = nibble::host::pool().size();
  nibble::host::set_threads(1);
  const auto one = f();
  bool same = true;
  for (const int threads : {2, 3, 7}) {
    nibble::host::set_threads(threads);
    same = same && f() == one;
  }
  nibble::host::set_threads(before);
  return same;
}

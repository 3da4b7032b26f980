// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's pieces as plain loops in double: importance of weights, candidate scales, the loss under a Gram matrix, and the
/// sweep over the codes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "nibble/core.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {

/// mean (k) += Σ over the rows of w (n, k) of |w| / (max |w| of its group + 1e-6); divide by all rows that share an input.
template <class T>
void weight_importance(matrix<const T> w, index_t group_size, double* mean) {
  const index_t width = group_size < 0 ? w.cols : group_size;
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t first = 0; first < w.cols; first += width) {
      const index_t last = std::min(w.cols, first + width);
      double largest = 0;
      for (index_t col = first; col < last; ++col)
        largest = std::max(largest, std::fabs(static_cast<double>(static_cast<float>(w(row, col)))));
      for (index_t col = first; col < last; ++col)
        mean[col] += std::fabs(static_cast<double>(static_cast<float>(w(row, col)))) / (largest + 1e-6);
    }
}

/// s (k) of candidate exponent r: x̄^r, with duo / (w̄^(1−r) + 1e-4); at least 1e-4, then / √(max · min).
inline std::vector<double> candidate_scales(const std::vector<double>& activation, const std::vector<double>& weight,
                                            double r, bool duo) {
  std::vector<double> s(activation.size(), 1.0);
  if (r == 0 && !duo) return s;
  for (std::size_t j = 0; j < s.size(); ++j) {
    double value = std::pow(activation[j], r);
    if (duo) value /= std::pow(weight[j], 1 - r) + 1e-4;
    s[j] = std::isfinite(value) ? std::max(value, 1e-4) : 1.0;
  }
  const auto [low, high] = std::minmax_element(s.begin(), s.end());
  const double norm = std::sqrt(*low * *high);
  for (double& value : s) value /= norm;
  return s;
}

/// tr(D·G·Dᵀ), D (n, k), G (k, k) symmetric.
inline double gram_loss(matrix<const float> d, matrix<const double> g) {
  double loss = 0;
  for (index_t row = 0; row < d.rows; ++row)
    for (index_t i = 0; i < d.cols; ++i)
      for (index_t j = 0; j < d.cols; ++j)
        loss += static_cast<double>(d(row, i)) * g(i, j) * static_cast<double>(d(row, j));
  return loss;
}

/// One sweep over the codes q (n, k) of w (n, k) under G (k, k), columns in order: each code becomes the one nearest to
/// the minimiser of its row's loss with the row's other codes fixed; weights are (q − zero)·scale.
inline void sweep(matrix<const float> w, matrix<const params> p, matrix<std::uint8_t> q, index_t group_size, int bits,
                  matrix<const double> g) {
  const index_t width = group_size < 0 ? w.cols : group_size;
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t i = 0; i < w.cols; ++i) {
      if (!(g(i, i) > 0)) continue;
      const auto value = [&](index_t col) {
        const params of = p(row, col / width);
        return (static_cast<double>(q(row, col)) - of.zero) * static_cast<double>(of.scale);
      };
      double slope = 0;
      for (index_t j = 0; j < w.cols; ++j) slope += (value(j) - static_cast<double>(w(row, j))) * g(j, i);
      const params of = p(row, i / width);
      const double wanted = (value(i) - slope / g(i, i)) / static_cast<double>(of.scale) + of.zero;
      q(row, i) = static_cast<std::uint8_t>(std::clamp(std::nearbyint(wanted), 0.0, std::ldexp(1.0, bits) - 1));
    }
}

}  // namespace reference
NIBBLE_NAMESPACE_END

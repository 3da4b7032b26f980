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

/// sum (k) += Σ over the rows of w (n, k) of |w| / (max |w| of its group + 1e-6); NaN and ±inf count as 0. Divide by all
/// rows that share an input for the mean.
template <class T>
void weight_importance(matrix<const T> w, index_t group_size, double* sum) {
  const index_t width = group_size < 0 ? w.cols : group_size;
  const auto magnitude = [&](index_t row, index_t col) {
    const auto value = static_cast<double>(static_cast<float>(w(row, col)));
    return std::isfinite(value) ? std::fabs(value) : 0.0;
  };
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t first = 0; first < w.cols; first += width) {
      const index_t last = std::min(w.cols, first + width);
      double largest = 0;
      for (index_t col = first; col < last; ++col) largest = std::max(largest, magnitude(row, col));
      for (index_t col = first; col < last; ++col) sum[col] += magnitude(row, col) / (largest + 1e-6);
    }
}

/// s (k) of candidate exponent r: x̄^r, with duo / (w̄^(1−r) + 1e-4); at least 1e-4, 1 where that is no finite number;
/// then / √(max · min).
inline std::vector<double> candidate_scales(const std::vector<double>& activation, const std::vector<double>& weight,
                                            double r, bool duo) {
  std::vector<double> s(activation.size(), 1.0);
  if (s.empty() || (r == 0 && !duo)) return s;
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

/// Sweeps over the codes q (n, k) of w (n, k), which is already scaled by s (k), under G (k, k) of the unscaled inputs,
/// columns in order: each code becomes the one nearest to the minimiser of its row's loss with the row's other codes fixed.
/// Weights are (q − zero)·scale.
template <class Scheme>
void sweep(matrix<const float> w, const float* s, matrix<const double> g, matrix<const params> p, index_t group_size,
           Scheme scheme, int rounds, matrix<std::uint8_t> q) {
  const index_t width = group_size < 0 ? w.cols : group_size;
  const double top = std::ldexp(1.0, scheme.bits) - 1;
  const auto difference = [&](index_t row, index_t col) {
    const params of = p(row, col / width);
    const double value = (static_cast<double>(q(row, col)) - of.zero) * static_cast<double>(of.scale);
    return (value - static_cast<double>(w(row, col))) / static_cast<double>(s[col]);
  };
  for (int round = 0; round < rounds; ++round)
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t i = 0; i < w.cols; ++i) {
        if (!(g(i, i) > 0)) continue;
        double slope = 0;
        for (index_t j = 0; j < w.cols; ++j) slope += difference(row, j) * g(j, i);
        const double step = static_cast<double>(p(row, i / width).scale) / static_cast<double>(s[i]);
        const double wanted = static_cast<double>(q(row, i)) - slope / g(i, i) / step;
        q(row, i) = static_cast<std::uint8_t>(std::clamp(std::nearbyint(wanted), 0.0, top));
      }
}

}  // namespace reference
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The measures of nibble/distortion.hpp between matrices, each by its own formula. Rows are summed in order, then
/// their sums in order.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "nibble/half.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace detail {

/// Σ over rows of Σ over columns of f(x, y).
template <class T, class U, class F>
double sum_of(matrix<const T> x, matrix<const U> y, F f) {
  double total = 0.0;
  for (index_t row = 0; row < x.rows; ++row) {
    double sum = 0.0;
    for (index_t col = 0; col < x.cols; ++col)
      sum += f(static_cast<double>(float(x(row, col))), static_cast<double>(float(y(row, col))));
    total += sum;
  }
  return total;
}

template <class T, class U>
double noise(matrix<const T> x, matrix<const U> y) {
  return sum_of(x, y, [](double a, double b) { return (b - a) * (b - a); });
}

}  // namespace detail

/// x, y (n, k).
template <class T, class U>
double mse(matrix<const T> x, matrix<const U> y) {
  return x.size() == 0 ? 0.0 : detail::noise(x, y) / static_cast<double>(x.size());
}

/// In dB; +inf where x = y.
template <class T, class U>
double sqnr(matrix<const T> x, matrix<const U> y) {
  const double noise = detail::noise(x, y);
  if (noise == 0.0) return std::numeric_limits<double>::infinity();
  return 10.0 * std::log10(detail::sum_of(x, y, [](double a, double) { return a * a; }) / noise);
}

/// 1 for two zero vectors, 0 for one.
template <class T, class U>
double cosine(matrix<const T> x, matrix<const U> y) {
  const double xx = detail::sum_of(x, y, [](double a, double) { return a * a; });
  const double yy = detail::sum_of(x, y, [](double, double b) { return b * b; });
  if (std::isnan(xx) || std::isnan(yy)) return std::numeric_limits<double>::quiet_NaN();
  if (xx == 0.0 && yy == 0.0) return 1.0;
  if (xx == 0.0 || yy == 0.0) return 0.0;
  return detail::sum_of(x, y, [](double a, double b) { return a * b; }) / (std::sqrt(xx) * std::sqrt(yy));
}

template <class T, class U>
double max_error(matrix<const T> x, matrix<const U> y) {
  double most = 0.0;
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t col = 0; col < x.cols; ++col) {
      const double distance =
          std::fabs(static_cast<double>(float(y(row, col))) - static_cast<double>(float(x(row, col))));
      if (std::isnan(distance)) return distance;
      most = std::max(most, distance);
    }
  return most;
}

/// @param p, q (m, vocabulary) logits. @param divergence (m) receives KL(softmax(p) ‖ softmax(q)) in nats.
inline void kl_divergence(matrix<const float> p, matrix<const float> q, double* divergence) {
  const auto log_total = [](const float* logits, index_t count) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (index_t j = 0; j < count; ++j) {
      if (std::isnan(logits[j])) return std::numeric_limits<double>::quiet_NaN();
      top = std::max(top, static_cast<double>(logits[j]));
    }
    if (std::isinf(top)) return std::numeric_limits<double>::quiet_NaN();
    for (index_t j = 0; j < count; ++j) sum += std::exp(static_cast<double>(logits[j]) - top);
    return top + std::log(sum);
  };
  for (index_t row = 0; row < p.rows; ++row) {
    double sum = 0.0;
    const double p_total = p.cols > 0 ? log_total(p.row(row), p.cols) : 0.0;
    const double q_total = p.cols > 0 ? log_total(q.row(row), p.cols) : 0.0;
    if (std::isnan(p_total + q_total)) sum = std::numeric_limits<double>::quiet_NaN();
    for (index_t i = 0; i < p.cols; ++i) {
      const double log_p = static_cast<double>(p(row, i)) - p_total, log_q = static_cast<double>(q(row, i)) - q_total;
      if (std::exp(log_p) != 0.0) sum += std::exp(log_p) * (log_p - log_q);
    }
    divergence[row] = sum;
  }
}

}  // namespace reference
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The measures of distortion.hpp between matrices, rows shared out over the threads; equal to the reference bit for
/// bit, because a row is summed in order and the rows' sums are added in order.
#pragma once

#include <vector>

#include "nibble/distortion.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

/// All sums between x and y, both (n, k).
template <class T, class U>
distortion_sums distortion(matrix<const T> x, matrix<const U> y) {
  std::vector<distortion_sums> rows(static_cast<std::size_t>(x.rows));
  parallel_for(x.rows, [&](index_t row) {
    distortion_sums sums;
    for (index_t col = 0; col < x.cols; ++col)
      sums.add(static_cast<double>(static_cast<float>(x(row, col))),
               static_cast<double>(static_cast<float>(y(row, col))));
    rows[static_cast<size_t>(row)] = sums;
  });
  distortion_sums total;
  for (const auto& row : rows) total.add(row);
  return total;
}

template <class T, class U>
double mse(matrix<const T> x, matrix<const U> y) {
  return distortion(x, y).mse();
}
template <class T, class U>
double sqnr(matrix<const T> x, matrix<const U> y) {
  return distortion(x, y).sqnr();
}
template <class T, class U>
double cosine(matrix<const T> x, matrix<const U> y) {
  return distortion(x, y).cosine();
}
template <class T, class U>
double max_error(matrix<const T> x, matrix<const U> y) {
  return distortion(x, y).max_error();
}

/// @param p, q (m, vocabulary) logits. @param divergence (m) receives each row's, in nats.
inline void kl_divergence(matrix<const float> p, matrix<const float> q, double* divergence) {
  parallel_for(p.rows, [&](index_t row) { divergence[row] = nibble::kl_divergence(p.row(row), q.row(row), p.cols); });
}

}  // namespace host
NIBBLE_NAMESPACE_END

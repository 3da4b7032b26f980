// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of a linear that stand for all of them when GPTQ's codes are found for one candidate scale after another.
#pragma once

#include <vector>

#include "nibble/matrix.hpp"

namespace nibble::mistral {

/// Every so many-th row, so that there are 64 at least, where there are, and less than twice as many.
struct judged_rows {
  static index_t apart(index_t n) { return max(index_t(1), n / 64); }

  index_t rows, cols;
  double times;  ///< how many rows of the linear one stands for
  std::vector<float> data;

  /// Of w (n, k), columns times s (k).
  judged_rows(matrix<const float> w, const float* s) : cols(w.cols) {
    const index_t step = apart(w.rows);
    rows = ceil_div(w.rows, step);
    times = static_cast<double>(w.rows) / static_cast<double>(max(rows, index_t(1)));
    data.reserve(static_cast<size_t>(rows * cols));
    for (index_t row = 0; row < w.rows; row += step)
      for (index_t col = 0; col < cols; ++col) data.push_back(w(row, col) * s[col]);
  }
  matrix<const float> scaled() const { return {data.data(), rows, cols}; }
};

}  // namespace nibble::mistral

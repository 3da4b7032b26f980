// SPDX-License-Identifier: Apache-2.0
/// @file
/// How a candidate scale is judged where GPTQ chooses the codes: on rows of a linear that stand for all of them, by what those lose on the
/// calibration text and elsewhere.
#pragma once

#include <vector>

#include "nibble/matrix.hpp"
#include "pass/engine.hpp"

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

/// mean(energy) · ‖ΔW‖², scales undone: what codes q of w · diag(s) lose on a text of which nothing is known but how loud channels are on
/// the mean. Scales that gain on the calibration text alone lose more on texts of another kind than they gain (docs/gptq.md).
/// @param energy (k) E[x²] of each channel.
double loss_elsewhere(matrix<const float> w, const quantized_linear& q, const packed& as, const std::vector<float>& s,
                      const std::vector<float>& energy);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "pass/judged_rows.hpp"

namespace nibble::mistral {

double loss_elsewhere(matrix<const float> w, const quantized_linear& q, const packed& as, const std::vector<float>& s,
                      const std::vector<float>& energy) {
  std::vector<float> coded(static_cast<size_t>(w.size()));
  dequantize(q, as.group, as.scheme, {coded.data(), w.rows, w.cols});
  double error = 0, sum = 0;
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) {
      const auto off =
          static_cast<double>(coded[static_cast<size_t>(row * w.cols + col)]) - static_cast<double>(w(row, col));
      const auto scale = static_cast<double>(s[static_cast<size_t>(col)]);
      error += off * off / (scale * scale);
    }
  for (const float each : energy) sum += static_cast<double>(each);
  return error * sum / static_cast<double>(energy.size());
}

}  // namespace nibble::mistral

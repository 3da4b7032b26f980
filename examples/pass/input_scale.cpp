// SPDX-License-Identifier: Apache-2.0
#include "pass/input_scale.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mistral/rounding.hpp"
#include "nibble/float_code.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/smooth.hpp"

namespace nibble::mistral {
namespace {

/// Scales tried: the one under which nothing saturates, and down to a sixteenth of it, six an octave.
constexpr int octaves = 4, steps = 6;
constexpr double standard_errors = 2;

/// Largest |x| that does not saturate.
float reach(float scale, code_type type) {
  return scale * (type == code_type::integer ? 127.0f : largest(float_format::e4m3));
}

/// @param costs (m)
double upper_mean(const double* costs, index_t count) {
  const auto m = static_cast<double>(count);
  double mean = 0, squares = 0;
  for (index_t i = 0; i < count; ++i) mean += costs[i] / m;
  for (index_t i = 0; i < count; ++i) squares += (costs[i] - mean) * (costs[i] - mean);
  return mean + standard_errors * std::sqrt(squares / (m - 1) / m);
}

/// What the loudest token that could have been loses by saturation.
double saturated(const scaled_inputs& x, float most) {
  double sum = 0;
  for (size_t j = 0; j < x.largest.size(); ++j) {
    const double over = std::max(0.0, static_cast<double>(x.largest[j]) - static_cast<double>(most));
    sum += x.weight[j] * over * over;
  }
  return sum;
}

}  // namespace

std::vector<double> costs_of(matrix<const float> x, const std::vector<double>& importance, code_type type,
                             const std::vector<float>& scales) {
  std::vector<double> costs(scales.size() * static_cast<size_t>(x.rows));
  for (size_t i = 0; i < scales.size(); ++i)
    host::parallel_for(x.rows, [&](index_t token) {
      thread_local std::vector<float> rounded;
      rounded.assign(x.row(token), x.row(token) + x.cols);
      round_row(rounded.data(), x.cols, {input_rounding::tensor, type, scales[i]});
      double sum = 0;
      for (index_t j = 0; j < x.cols; ++j) {
        const double off = static_cast<double>(rounded[static_cast<size_t>(j)]) - static_cast<double>(x(token, j));
        sum += importance[static_cast<size_t>(j)] * off * off;
      }
      costs[i * static_cast<size_t>(x.rows) + static_cast<size_t>(token)] = sum;
    });
  return costs;
}

float choose_input_scale(const scaled_inputs& x, code_type type, dtype stored, const input_costs& costs) {
  static_assert(input_scales_tried == octaves * steps + 1);
  const float amax = *std::max_element(x.largest.begin(), x.largest.end());
  const float whole = input_scale(amax, type, stored);
  if (x.sampled < 2) return whole;
  std::vector<float> scales;
  for (int i = 0; i <= octaves * steps; ++i)
    scales.push_back(input_scale(amax * std::exp2(-static_cast<float>(i) / steps), type, stored));
  const std::vector<double> all = costs(scales);
  float best = whole;
  double least = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < scales.size(); ++i) {
    const double cost = upper_mean(all.data() + static_cast<index_t>(i) * x.sampled, x.sampled) +
                        saturated(x, reach(scales[i], type)) / static_cast<double>(x.tokens);
    if (cost < least) least = cost, best = scales[i];
  }
  return best;
}

}  // namespace nibble::mistral

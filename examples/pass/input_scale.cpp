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

/// Costs of the sample's tokens under one scale.
void costs_of(const scaled_inputs& x, const rounded_inputs& how, std::vector<double>& costs) {
  host::parallel_for(x.sample.rows, [&](index_t token) {
    thread_local std::vector<float> rounded;
    rounded.assign(x.sample.row(token), x.sample.row(token) + x.sample.cols);
    round_row(rounded.data(), x.sample.cols, how);
    double sum = 0;
    for (index_t j = 0; j < x.sample.cols; ++j) {
      const double off = static_cast<double>(rounded[static_cast<size_t>(j)]) - static_cast<double>(x.sample(token, j));
      sum += x.importance[j] * off * off;
    }
    costs[static_cast<size_t>(token)] = sum;
  });
}

double upper_mean(const std::vector<double>& costs) {
  const auto m = static_cast<double>(costs.size());
  double mean = 0, squares = 0;
  for (const double each : costs) mean += each / m;
  for (const double each : costs) squares += (each - mean) * (each - mean);
  return mean + standard_errors * std::sqrt(squares / (m - 1) / m);
}

/// What the loudest token that could have been loses by saturation.
double saturated(const scaled_inputs& x, float most) {
  double sum = 0;
  for (index_t j = 0; j < x.sample.cols; ++j) {
    const double over = std::max(0.0, static_cast<double>(x.largest[j]) - static_cast<double>(most));
    sum += x.importance[j] * over * over;
  }
  return sum;
}

}  // namespace

float choose_input_scale(const scaled_inputs& x, code_type type, dtype stored) {
  const float amax = *std::max_element(x.largest, x.largest + x.sample.cols);
  const float whole = input_scale(amax, type, stored);
  if (x.sample.rows < 2) return whole;
  std::vector<double> costs(static_cast<size_t>(x.sample.rows));
  float best = whole;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i <= octaves * steps; ++i) {
    const float scale = input_scale(amax * std::exp2(-static_cast<float>(i) / steps), type, stored);
    costs_of(x, {input_rounding::tensor, type, scale}, costs);
    const double cost = upper_mean(costs) + saturated(x, reach(scale, type)) / static_cast<double>(x.tokens);
    if (cost < least) least = cost, best = scale;
  }
  return best;
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What rounding linears and their inputs together does to outputs, on the host, over a sample of the calibration tokens.
#pragma once

#include <array>
#include <vector>

#include "pass/engine.hpp"

namespace nibble::mistral {

class host_rounding {
 public:
  explicit host_rounding(const config& c) : c_(c) {}

  /// Samples of every `apart`-th token of what follows.
  void begin(index_t apart);
  /// Adds a chunk of tokens x (m, k) to what is known of an input.
  void take(layer_input input, matrix<const float> x);
  void forget();
  const input_sample& sample(layer_input input) const { return samples_[static_cast<size_t>(input)]; }
  /// (kept tokens, k)
  matrix<const float> rows(layer_input input) const;

  /// Linears of w, which all read one input, as they are.
  void hold(const layer_weights& w, const std::vector<projection>& linears);
  /// engine::rounded_losses, rounded_loss and input_costs.
  std::vector<double> losses(const layer_packing& how, dtype stored, const std::vector<float>& s,
                             const std::vector<rounded_inputs>& inputs) const;
  double loss(const layer_weights& w, projection p, const packing& how, dtype stored, const quantized_linear& q,
              const std::vector<float>& s, const rounded_inputs& inputs, const float* of_row) const;
  std::vector<double> costs(layer_input input, const std::vector<float>& s, const std::vector<double>& importance,
                            code_type type, const std::vector<float>& scales) const;

 private:
  struct linear {
    projection which;
    matrix<const float> w;
    std::vector<float> wanted;  ///< (kept tokens, n): its outputs
  };
  std::vector<float> rows_over(layer_input input, const std::vector<float>& s) const;

  const config& c_;
  index_t apart_ = 1;
  std::array<input_sample, 4> samples_;
  std::array<std::vector<float>, 4> rows_;
  std::vector<linear> held_;
};

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What rounding linears and their inputs together does to outputs, measured on a sample of the calibration tokens.
#pragma once

#include <vector>

#include "pass/layer.hpp"

namespace nibble::mistral {

/// The sample (m, k) over s: what the linears of an input read once s is folded into what comes before.
std::vector<float> sample_over(const input_sample& sample, const std::vector<float>& s);

/// The scale of what linears w read, each x/s, under input_rounding::tensor (choose_input_scale).
/// @param linears (n_i, k), scaled by s. @param whole under which nothing that was seen saturates.
float input_scale_of(const input_sample& sample, const std::vector<float>& s,
                     const std::vector<matrix<const float>>& linears, code_type type, dtype stored, bool whole = false);

/// Mean over the tokens of x (m, k) of ‖rows · (x·wᵀ − wanted)‖². @param wanted (m, n). @param rows (n), or null for 1.
double output_loss(matrix<const float> x, matrix<const float> w, matrix<const float> wanted,
                   const float* rows = nullptr);

/// Linears that read one input, and their outputs as they are.
class rounding_judge {
 public:
  /// @pre `linears` are packed, and nothing was folded into them or what comes before them yet.
  rounding_judge(const layer_task& t, layer_input input, const std::vector<projection>& linears,
                 const layer_weights& w);

  /// output_loss of each linear when W·diag(s) and x/s are rounded, weights in whole ranges. @param whole inputs as well.
  std::vector<double> losses(const std::vector<float>& s, bool whole = false) const;
  double loss(const std::vector<float>& s) const;

 private:
  struct linear {
    packing how;
    matrix<const float> w;
    std::vector<float> wanted;  ///< (m, n)
  };
  const layer_task& t_;
  const input_sample& sample_;
  std::vector<linear> linears_;
};

}  // namespace nibble::mistral

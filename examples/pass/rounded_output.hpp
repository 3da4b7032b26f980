// SPDX-License-Identifier: Apache-2.0
/// @file
/// What rounding linears and their inputs together does to outputs, measured by an engine on a sample of the calibration tokens.
#pragma once

#include <vector>

#include "pass/layer.hpp"

namespace nibble::mistral {

/// Whether one of some linears, all packed, has a scale of its inputs in the checkpoint.
bool scale_in_checkpoint(const layer_packing& how, const std::vector<projection>& linears);

/// Σ of the squares of each column of linears (n_i, k).
std::vector<double> column_energies(const std::vector<matrix<const float>>& linears);

/// The scale of what linears read as `input`, each x/s, under input_rounding::tensor (choose_input_scale).
/// @param energies column_energies of the linears, scaled by s. @param whole under which nothing that was seen saturates.
float input_scale_of(const layer_task& t, layer_input input, const std::vector<float>& s,
                     const std::vector<double>& energies, code_type type, bool whole = false);

/// Linears that read one input, held by an engine as they are.
class rounding_judge {
 public:
  /// @pre `linears` are packed, and nothing was folded into them or what comes before them yet.
  rounding_judge(const layer_task& t, layer_input input, const std::vector<projection>& linears, layer_weights& w);

  /// engine::rounded_losses of each linear under s. @param whole scales of inputs: such that nothing saturates.
  std::vector<double> losses(const std::vector<float>& s, bool whole = false) const;
  double loss(const std::vector<float>& s) const;

 private:
  const layer_task& t_;
  layer_input input_;
  std::vector<projection> linears_;
  std::vector<double> energies_;  ///< where scales of inputs are in the checkpoint
};

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The scale under which all tokens' inputs of a linear are rounded: the one that the checkpoint holds for input_rounding::tensor.
#pragma once

#include <functional>
#include <vector>

#include "mistral/forward.hpp"
#include "nibble/half.hpp"
#include "pass/engine.hpp"

namespace nibble::mistral {

/// Scales that are tried.
inline constexpr index_t input_scales_tried = 25;

/// What a scale is chosen for.
struct scaled_inputs {
  index_t sampled;                    ///< m: every so many-th token
  std::vector<float> largest;         ///< (k): max |x| over all tokens
  index_t tokens;                     ///< that were seen, m at least
  const std::vector<double>& weight;  ///< (k): importance, Σ of the squares of the weights that multiply a channel
};

/// Costs of the sample's tokens x under each scale: (scales, m) of Σ_j importance_j · (x_j − rounded(x_j))².
using input_costs = std::function<std::vector<double>(const std::vector<float>& scales)>;

/// Those of x (m, k).
std::vector<double> costs_of(matrix<const float> x, const std::vector<double>& importance, code_type type,
                             const std::vector<float>& scales);

/// The scale t of `type`, stored as `stored`, of least cost: what is expected of
///     Σ_j importance_j · (x_j − rounded(x_j))²
/// for a token, by the mean over the sample and two standard errors of it, and by one more token among all that were seen, as
/// loud in every channel as the loudest was there, as far as it saturates. Rounding grows with t and saturation falls; a few
/// tokens leave the standard error of what saturates so large that t stays where nothing does, at the largest |x|.
/// @pre what is in the sample is finite.
float choose_input_scale(const scaled_inputs& x, code_type type, dtype stored, const input_costs& costs);

}  // namespace nibble::mistral

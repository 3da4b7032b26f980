// SPDX-License-Identifier: Apache-2.0
/// @file
/// The scale under which all tokens' inputs of a linear are rounded: the one that the checkpoint holds for input_rounding::tensor.
#pragma once

#include <vector>

#include "mistral/forward.hpp"
#include "nibble/half.hpp"
#include "pass/engine.hpp"

namespace nibble::mistral {

/// What a scale is chosen for.
struct scaled_inputs {
  matrix<const float> sample;  ///< (m, k): every so many-th token
  const float* largest;        ///< (k): max |x| over all tokens
  index_t tokens;              ///< that were seen, m at least
  const double* importance;    ///< (k): Σ of the squares of the weights that multiply a channel
};

/// The scale t of `type`, stored as `stored`, of least cost: what is expected of
///     Σ_j importance_j · (x_j − rounded(x_j))²
/// for a token, by the mean over the sample and two standard errors of it, and by one more token among all that were seen, as
/// loud in every channel as the loudest was there, as far as it saturates. Rounding grows with t and saturation falls; a few
/// tokens leave the standard error of what saturates so large that t stays where nothing does, at the largest |x|.
/// @pre what is in the sample is finite.
float choose_input_scale(const scaled_inputs& x, code_type type, dtype stored);

}  // namespace nibble::mistral

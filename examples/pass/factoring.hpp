// SPDX-License-Identifier: Apache-2.0
/// @file
/// What became of the Hessian of one input of linears, and what the user is told of it, whoever factorised it.
#pragma once

#include "mistral/forward.hpp"
#include "pass/options.hpp"

namespace nibble::mistral {

struct factoring {
  bool usable = false;   ///< there is a factor
  bool floored = false;  ///< only with its diagonal raised to the sums of its rows
  double damping = 0;    ///< λ it was tried with last
};

/// Tells the user where the Hessian had to be mended, and names the linears that it is of.
void tell(const pass_options& o, index_t layer, layer_input input, const factoring& of);

}  // namespace nibble::mistral

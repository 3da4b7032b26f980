// SPDX-License-Identifier: Apache-2.0
/// @file
/// What is remembered of a layer while it is quantized.
#pragma once

#include <array>
#include <vector>

#include "mistral/summary.hpp"
#include "pass/engine.hpp"

namespace nibble::mistral {

/// A linear before anything changed it.
struct original {
  weight_histogram weights;
  double rtn_loss = 0;
};
using originals = std::array<original, 7>;  ///< by projection

/// Scales that were folded into a layer.
struct folded_scales {
  std::array<std::vector<float>, 4> of;  ///< by layer_input
  std::array<const float*, 7> rows{};    ///< by what a linear's rows were divided, if not null

  explicit folded_scales(const config& c) {
    for (const layer_input input : layer_inputs) at(input).assign(static_cast<size_t>(width(c, input)), 1.0f);
  }
  std::vector<float>& at(layer_input input) { return of[static_cast<size_t>(input)]; }
  const std::vector<float>& at(layer_input input) const { return of[static_cast<size_t>(input)]; }
};

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scales of a layer's inputs: which linears share one, and where 1/s goes.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "pass/engine.hpp"

namespace nibble::mistral {

/// The linears that read `input` and are packed.
std::vector<projection> packed_readers(const layer_packing& how, layer_input input);

/// Linears that read one input, and what 1/s can be folded into: a norm, or the rows of another linear.
struct scale_group {
  layer_input input;
  std::vector<projection> linears;
  std::vector<float> layer_weights::*norm;  ///< null where `before` is folded into
  projection before;
};

/// Inputs in an order in which each comes after that of the linear it would be folded into.
inline constexpr std::array<layer_input, 4> scaling_order = {layer_input::attention, layer_input::mlp,
                                                             layer_input::down, layer_input::o};

/// Nothing where the input cannot be scaled: a linear that reads it is not packed, or is not what 1/s would be folded into.
std::optional<scale_group> scale_group_of(const config& c, const layer_packing& how, layer_input input);

/// Makes s what folding it into the group's norm amounts to, once that is stored as `stored`.
void round_to_fold(const scale_group& group, const layer_weights& w, dtype stored, std::vector<float>& s);

/// W·diag(s), and 1/s into what comes before.
void fold(const config& c, const scale_group& group, const std::vector<float>& s, dtype stored, layer_weights& w);

}  // namespace nibble::mistral

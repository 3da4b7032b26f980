// SPDX-License-Identifier: Apache-2.0
/// @file
/// How one group of a recipe's linears is packed: a preset's name, or weights and input_activations key by key.
#pragma once

#include <string>

#include "mapping.hpp"
#include "quantization.hpp"

namespace nibble::mistral {

/// Keys of a group, for its mapping.
keys keys_of_group();

/// W4A16 and its like: weights of that many bits, symmetric, groups of 128; and those that round inputs as well.
/// @throws error naming the modifier m.
packing preset_packing(const mapping& m, const std::string& name);

/// @param actorder  gains what the weights say of GPTQ's order; null: GPTQ is not asked for, and they may say nothing
/// @param without_effect  as of mapping
packing read_packing(const mapping& group, std::string* actorder, keys& without_effect);

/// "none", "static" or "group", of the key "actorder".
std::string read_order(const mapping& m);

}  // namespace nibble::mistral

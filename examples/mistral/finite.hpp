// SPDX-License-Identifier: Apache-2.0
/// @file
/// Why a model predicts no numbers. Weights are not looked through before they are used, since that takes as long as reading
/// them; once NaN has come out, that time is well spent.
#pragma once

#include <string>

#include "safetensors.hpp"

namespace nibble::mistral {

/// The first tensor of floats that holds NaN or infinity, by name and file, as a clause; or that none does.
std::string cause_of_nan(const checkpoint& files);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// In which precision the CPU multiplies while a model is calibrated, where that is left to the program.
#pragma once

#include <optional>
#include <string>

#include "nibble/host/matmul.hpp"
#include "safetensors.hpp"

namespace nibble::mistral {

/// `asked`, or else bfloat16 where that is faster on this machine and no weight of the model's linears changes by it: the checkpoint
/// stores them so, and not packed. float32 anywhere else.
host::matmul_precision calibration_precision(std::optional<host::matmul_precision> asked, const checkpoint& files);

/// What a user should know who calibrates in this precision on this CPU; empty: nothing.
std::string precision_note(host::matmul_precision precision);

}  // namespace nibble::mistral

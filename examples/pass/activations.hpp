// SPDX-License-Identifier: Apache-2.0
/// @file
/// The calibration tokens' activations on their way onto the disk and back when a run is interrupted.
#pragma once

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "nibble/core.hpp"

namespace nibble::mistral {

/// Writes the activations before layer `layer` into `directory`; what is returned finds them again.
nlohmann::json save_activations(const std::vector<float>& x, const std::filesystem::path& directory, index_t layer);

/// How much later than the last time it is worth saving so many bytes that only quantized layers give: at once if they are few, and else as soon
/// as a disk takes a hundredth of the time for it, after 30 s at most.
std::chrono::duration<double> worth_saving_after(double bytes);

/// Reads what save_activations() wrote of x.size() numbers. False when it is not there any more or damaged; x is to be made
/// anew then.
bool load_activations(std::vector<float>& x, const std::filesystem::path& directory, const nlohmann::json& saved);

/// Removes what saves wrote into `directory`, but for what `kept` finds; null: everything.
void forget_activations(const std::filesystem::path& directory, const nlohmann::json& kept = {});

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The calibration tokens on their way through the layers, and their way onto the disk and back when a run is interrupted.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "mistral/calibration.hpp"
#include "mistral/forward.hpp"

namespace nibble::mistral {

struct stream {
  batch tokens;
  std::vector<float> data;
  matrix<float> x;  ///< (tokens, hidden), of data

  stream(const checkpoint& files, const config& model, const calibration_set& set);

  /// Writes the activations before layer `layer` into `directory`; what is returned finds them again.
  nlohmann::json save(const std::filesystem::path& directory, index_t layer) const;
  /// Reads what save() wrote. False when it is not there any more or damaged; x is to be made anew then.
  bool load(const std::filesystem::path& directory, const nlohmann::json& saved);
};

/// Removes what saves wrote into `directory`, but for what `kept` finds; null: everything.
void forget_activations(const std::filesystem::path& directory, const nlohmann::json& kept = {});

}  // namespace nibble::mistral

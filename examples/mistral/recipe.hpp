// SPDX-License-Identifier: Apache-2.0
/// @file
/// Recipes as llm-compressor 0.14 writes and reads them: how a model's linears are to be packed, and whether by AWQ or GPTQ.
///     default_stage:
///       default_modifiers:
///         AWQModifier: {duo_scaling: both, n_grid: 20}
///         QuantizationModifier: {scheme: W4A16_ASYM, targets: [Linear], ignore: [lm_head]}
/// GPTQModifier may stand in QuantizationModifier's place, and takes what that takes. Older versions gave AWQModifier what
/// QuantizationModifier takes now; both are read, the pair is written.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "quantization.hpp"

namespace nibble::mistral {

struct recipe {
  bool awq = true;                   ///< scales by AWQ
  std::string duo_scaling = "true";  ///< "true", "false", "both"
  int grid = 20;                     ///< ratios tried
  std::vector<packing_group> groups;
  std::vector<std::string> ignore;
  std::vector<std::string> without_effect;  ///< keys that were read and change nothing here, such as offload_device
  bool gptq = false;                        ///< codes by GPTQ, with or without AWQ's scales
  double dampening = 0.01;                  ///< share of the mean of the Hessian's diagonal
  std::string actorder = "static";          ///< "none", "static" or "group"
};

/// @throws error naming the file, modifier and key for what is unknown, what this project does not do (activations, key-value cache,
/// blocks) and what contradicts itself.
recipe read_recipe(const std::filesystem::path& file);

/// Writes OUT/recipe.yaml as llm-compressor 0.14 reads it.
void write_recipe(const std::filesystem::path& out, const recipe& made);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Recipes as llm-compressor 0.14 writes and reads them: how a model's linears are to be packed, and by which methods.
///     default_stage:
///       default_modifiers:
///         AWQModifier: {duo_scaling: both, n_grid: 20}
///         QuantizationModifier: {scheme: W4A16_ASYM, targets: [Linear], ignore: [lm_head]}
/// SmoothQuantModifier may stand in AWQModifier's place, and GPTQModifier in QuantizationModifier's, whose arguments it takes.
/// Older versions gave AWQModifier what QuantizationModifier takes now; both are read, the pair is written.
#pragma once

#include <filesystem>
#include <optional>
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
  bool smooth = false;                      ///< scales by SmoothQuant
  std::optional<double> strength = std::nullopt;  ///< its α; left out, llm-compressor takes 0.5
  bool rounds_cache = false;                      ///< keys and values in fp8
  bool smooth_up = false, smooth_v = false;       ///< whether it folds scales into up and v, beside the norms

  /// Whether some linear's inputs are rounded, and whether under a scale that the checkpoint holds.
  bool rounds_inputs() const;
  bool has_input_scales() const;
};

/// @throws error naming the file, modifier and key for what is unknown, what this project does not do (inputs, blocks or a
/// key-value cache but in 8 bits) and what contradicts itself.
recipe read_recipe(const std::filesystem::path& file);

/// Writes OUT/recipe.yaml as llm-compressor 0.14 reads it.
void write_recipe(const std::filesystem::path& out, const recipe& made);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model's own calibration: a text goes through the layers as they are, and what each linear reads is added up. Activations are
/// those of the original model throughout, so that what is found for a layer does not depend on how others are rounded.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "gguf/importance.hpp"
#include "mistral/calibration.hpp"
#include "mistral/forward.hpp"
#include "nibble/host/observe.hpp"

namespace nibble::mistral {

/// How far correlations between inputs are distrusted, as passes do unless told otherwise.
inline constexpr float calibration_shrinkage = 0.5f;

/// What was seen of the inputs of a layer's linears.
struct layer_statistics {
  std::array<std::vector<double>, 4> squares;       ///< by layer_input: Σ x² of each channel over all tokens
  std::array<host::second_moment, 4> correlations;  ///< by layer_input, where they were asked for
};

struct calibration_listener {
  bool correlations = false;  ///< whether second moments are wanted
  std::function<void(index_t layer, const layer_weights&, const layer_statistics&)> layer;
  std::function<void(const std::vector<double>& squares)> head;  ///< of what the output matrix reads
};

/// The text that a model is calibrated on. @throws error as read_calibration does.
calibration_set open_calibration(const std::filesystem::path& file, const std::filesystem::path& model,
                                 const calibration_options& options);

/// Runs the samples through the model, multiplying in `precision`. Holds a layer, the tokens' activations (tokens, hidden) and a layer's
/// statistics.
/// @throws error for ids that are not the model's, and for activations that are NaN or infinite.
void calibrate(const checkpoint& files, const config& c, const calibration_set& samples,
               host::matmul_precision precision, const calibration_listener& told);

/// The importance of every linear's columns before anything is known: 1 each. With it a plan can be made; the same vectors hold
/// what calibration finds later. @throws error naming a tensor that the settings do not fit.
importance_matrix blank_importance(const checkpoint& files, const config& c, const std::filesystem::path& text,
                                   const calibration_set& samples);

/// Adds a layer's sums, for each of its linears.
void add_layer(importance_sums& sums, index_t layer, const layer_statistics& seen);

/// Names in a GGUF file of what reads an input of a layer, and of what reads the last norm's output.
std::vector<std::string> readers_of(index_t layer, layer_input input);
std::string head_name(const config& c);

}  // namespace nibble::mistral

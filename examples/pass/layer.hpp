// SPDX-License-Identifier: Apache-2.0
/// @file
/// One layer quantized: what each input of linears is scaled by is folded into what comes before, then each linear gets its ranges
/// and codes.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "pass/engine.hpp"
#include "pass/options.hpp"

namespace nibble::mistral {

/// What was found for the linears that read one input.
struct input_report {
  layer_input input;
  awq_ratio ratio;
  double identity_loss = 0, scaled_loss = 0;  ///< of the search, before sweeps
  bool smoothed = false;                      ///< by SmoothQuant, whose strength is what follows
  std::optional<float> strength;              ///< empty: none loses less than each that was tried
};
struct linear_report {
  projection which;
  double rtn_loss = 0, loss = 0;  ///< tr(ΔW·G'·ΔWᵀ) of min-max rounding of the original weights, and of ours
  weight_histogram before,
      after;  ///< of the original weights, and of what the packed ones stand for with scales undone
  range_kept range;
  float input_scale = 0;  ///< of input_rounding::tensor
};
struct layer_report {
  std::vector<input_report> inputs;
  std::vector<linear_report> linears;
  std::array<channel_profile, 4> channels;  ///< by layer_input
  std::array<float, 4> largest{};           ///< by layer_input: max |x| as it was; 0 where nobody looked
};

/// "attention", "o", "mlp", "down"
const char* name_of(layer_input input);

/// A layer of --json. What was not looked at, such as losses when rounding to nearest, is not in it.
nlohmann::ordered_json to_json(const layer_report& layer, bool calibrated);

/// Told of each finished linear, which may be written and forgotten.
using linear_sink = std::function<void(projection, const quantized_linear&)>;

/// What is to be done to a layer, and by whom.
struct layer_task {
  const config& c;
  const pass_options& o;
  layer_packing how;
  dtype stored;
  engine& on;  ///< which gathered the layer's statistics

  packed as(projection p) const { return {how, p, stored}; }
};

/// Quantizes the projections of w, or of a half of it, that t.how packs, and adds what became of them to `report`. On return that part of w
/// holds what the checkpoint will hold, dequantized: weights scaled by s, and norms divided by it, already rounded to t.stored.
void quantize_layer(const layer_task& t, layer_part part, layer_weights& w, const linear_sink& sink,
                    layer_report& report);

/// quantize_layer for SmoothQuant, whose losses are those of weights and inputs rounded together.
void smooth_layer(const layer_task& t, layer_part part, layer_weights& w, const linear_sink& sink,
                  layer_report& report);

/// Round to nearest with min-max ranges, needing no statistics: w ← dequantized. Sink as above, may be null.
/// @param largest  by layer_input: max |x|, for input_rounding::tensor
void round_layer(const config& c, const layer_packing& how, dtype stored, layer_weights& w, const linear_sink& sink,
                 const std::array<float, 4>& largest = {});

/// round_layer, and the weights' histograms.
layer_report round_reported(const config& c, const layer_packing& how, dtype stored, layer_weights& w,
                            const linear_sink& sink);

}  // namespace nibble::mistral

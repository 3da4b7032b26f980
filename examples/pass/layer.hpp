// SPDX-License-Identifier: Apache-2.0
/// @file
/// One layer quantized: what each input of linears is scaled by is folded into what comes before, then each linear gets its ranges
/// and codes.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "pass/engine.hpp"
#include "pass/layer_state.hpp"
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
  /// tr(ΔW·G'·ΔWᵀ) of min-max rounding of the original weights, and of ours. Where scales are searched and a layer is quantized half by
  /// half, the first of o and down is under what they read before the other linears of the half were quantized.
  double rtn_loss = 0, loss = 0;
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

/// How a layer's linears, of those that t.how packs, become codes. Each input of linears is searched before any linear is rounded whose rows
/// a scale of it divides, which is in the same half; t.on has gathered an input when it is searched, and when its linears are rounded. In the
/// end w holds what the checkpoint will hold, dequantized: weights scaled by s, and norms divided by it, already rounded to t.stored.
class layer_quantizer {
 public:
  virtual ~layer_quantizer() = default;

  /// What rounding to nearest loses of the linears that read one of `inputs`, and scales of these, which are folded into w.
  void search(const std::vector<layer_input>& inputs);
  /// Codes of the linears that read one of `inputs`.
  void round(const std::vector<layer_input>& inputs) {
    for (const layer_input input : inputs) round_input(input);
  }
  /// What rows of a linear were divided by, or null.
  const float* divided(projection p) const { return scales_.rows[static_cast<size_t>(p)]; }
  /// Whether a scale divides rows of linears of a half.
  bool divides_rows(layer_part half) const;
  /// f() while rows of linears of a half that scales divide are as if they were not divided, so that what reads them reads what it did.
  void with_rows_undivided(layer_part half, const std::function<void()>& f);

 protected:
  /// All outlive it. What becomes of w's linears is added to `report`.
  layer_quantizer(const layer_task& t, layer_weights& w, const linear_sink& sink, layer_report& report)
      : t_(t), w_(w), sink_(sink), report_(report), scales_(t.c) {}

  const layer_task& t_;
  layer_weights& w_;
  const linear_sink& sink_;
  layer_report& report_;
  originals before_;
  folded_scales scales_;

 private:
  virtual void search_input(layer_input input, const std::vector<projection>& linears) = 0;
  virtual void round_input(layer_input input) = 0;
};

/// AWQ, GPTQ or both, or SmoothQuant, whose losses are those of weights and inputs rounded together.
std::unique_ptr<layer_quantizer> quantizer_of(const layer_task& t, layer_weights& w, const linear_sink& sink,
                                              layer_report& report);
std::unique_ptr<layer_quantizer> smoother_of(const layer_task& t, layer_weights& w, const linear_sink& sink,
                                             layer_report& report);

/// Round to nearest with min-max ranges, needing no statistics: w ← dequantized. Sink as above, may be null.
/// @param largest  by layer_input: max |x|, for input_rounding::tensor
void round_layer(const config& c, const layer_packing& how, dtype stored, layer_weights& w, const linear_sink& sink,
                 const std::array<float, 4>& largest = {});

/// round_layer, and the weights' histograms.
layer_report round_reported(const config& c, const layer_packing& how, dtype stored, layer_weights& w,
                            const linear_sink& sink);

}  // namespace nibble::mistral

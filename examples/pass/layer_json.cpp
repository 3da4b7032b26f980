// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "pass/layer.hpp"

namespace nibble::mistral {
const char* name_of(layer_input input) {
  constexpr const char* names[] = {"attention", "o", "mlp", "down"};
  return names[static_cast<size_t>(input)];
}

nlohmann::ordered_json to_json(const layer_report& layer, bool calibrated) {
  using json = nlohmann::ordered_json;
  json out = json::object();
  for (const input_report& input : layer.inputs) {
    json& scales = out["scales"][name_of(input.input)];
    if (!input.smoothed)
      scales = {{"ratio", input.ratio.exponent}, {"duo", input.ratio.duo}};
    else
      scales = {{"strength",
                 input.strength ? json(std::round(static_cast<double>(*input.strength) * 1e6) / 1e6) : json(nullptr)}};
    scales.update({{"unscaled_loss", input.identity_loss}, {"loss", input.scaled_loss}});
  }
  for (const linear_report& each : layer.linears) {
    json linear = json::object();
    if (calibrated) {
      linear["round_to_nearest_loss"] = each.rtn_loss;
      linear["loss"] = each.loss;
      linear["range_kept"] = to_json(each.range);
    }
    if (each.input_scale > 0) linear["input_scale"] = each.input_scale;
    linear["weights"] = to_json(each.before, each.after);
    out["linears"][to_string(each.which)] = std::move(linear);
  }
  if (calibrated)
    for (const layer_input input : layer_inputs) {
      json& activations = out["activations"][name_of(input)] = to_json(layer.channels[static_cast<size_t>(input)]);
      if (const float largest = layer.largest[static_cast<size_t>(input)]; largest > 0)
        activations["largest"] = largest;
    }
  return out;
}

}  // namespace nibble::mistral

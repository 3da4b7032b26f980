// SPDX-License-Identifier: Apache-2.0
#include "pass/layer.hpp"

namespace nibble::mistral {
namespace {

const char* name_of(layer_input input) {
  constexpr const char* names[] = {"attention", "o", "mlp", "down"};
  return names[static_cast<size_t>(input)];
}

}  // namespace

nlohmann::ordered_json to_json(const layer_report& layer, bool calibrated) {
  using json = nlohmann::ordered_json;
  json out = json::object();
  for (const input_report& input : layer.inputs)
    out["scales"][name_of(input.input)] = {{"ratio", input.ratio.exponent},
                                           {"duo", input.ratio.duo},
                                           {"unscaled_loss", input.identity_loss},
                                           {"loss", input.scaled_loss}};
  for (const linear_report& each : layer.linears) {
    json linear = json::object();
    if (calibrated) {
      linear["round_to_nearest_loss"] = each.rtn_loss;
      linear["loss"] = each.loss;
      linear["range_kept"] = to_json(each.range);
    }
    linear["weights"] = to_json(each.before, each.after);
    out["linears"][to_string(each.which)] = std::move(linear);
  }
  if (calibrated)
    for (const layer_input input : layer_inputs)
      out["activations"][name_of(input)] = to_json(layer.channels[static_cast<size_t>(input)]);
  return out;
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>

#include "file.hpp"
#include "recipe.hpp"

namespace nibble::mistral {

using json = nlohmann::ordered_json;

namespace {

/// The arguments of SmoothQuantModifier; its mappings where they are more than it has by itself.
std::string smoothing_text(const recipe& made) {
  std::string text = "    SmoothQuantModifier:\n";
  if (made.strength) text += "      smoothing_strength: " + json(*made.strength).dump() + "\n";
  if (!made.smooth_up && !made.smooth_v) return made.strength ? text : "    SmoothQuantModifier: {}\n";
  json mappings = {{{"re:.*q_proj", "re:.*k_proj", "re:.*v_proj"}, "re:.*input_layernorm"},
                   {{"re:.*gate_proj", "re:.*up_proj"}, "re:.*post_attention_layernorm"}};
  if (made.smooth_v) mappings.push_back({json::array({"re:.*o_proj"}), "re:.*v_proj"});
  if (made.smooth_up) mappings.push_back({json::array({"re:.*down_proj"}), "re:.*up_proj"});
  return text + "      mappings: " + mappings.dump() + "\n";
}

std::string weights_text(const packing& how) {
  const bool floats = how.type == code_type::e4m3;
  std::string text = "          weights:\n            num_bits: " + std::to_string(how.bits) +
                     "\n            type: " + (floats ? "float" : "int") +
                     "\n            symmetric: " + (how.symmetric ? "true\n" : "false\n");
  if (how.rows > 1)
    return text +
           "            strategy: block\n            block_structure: " + json::array({how.rows, how.group}).dump() +
           "\n";
  if (how.group > 0)
    return text + "            strategy: group\n            group_size: " + std::to_string(how.group) + "\n";
  return text + (how.rows < 0 ? "            strategy: tensor\n" : "            strategy: channel\n");
}

std::string inputs_text(const packing& how) {
  if (how.inputs == input_rounding::none) return "";
  const bool fixed = how.inputs == input_rounding::tensor;
  return std::string("          input_activations:\n            num_bits: 8\n            type: ") +
         (how.type == code_type::e4m3 ? "float" : "int") + "\n            symmetric: true\n            dynamic: " +
         (fixed ? "false\n            strategy: tensor\n"
          : how.inputs == input_rounding::token
              ? "true\n            strategy: token\n"
              : "true\n            strategy: group\n            group_size: " + std::to_string(how.group) + "\n");
}

}  // namespace

void write_recipe(const std::filesystem::path& out, const recipe& made) {
  std::string text = "default_stage:\n  default_modifiers:\n";
  if (made.awq)
    text += "    AWQModifier:\n      duo_scaling: " + made.duo_scaling +
            "\n      n_grid: " + std::to_string(made.grid) + "\n";
  if (made.smooth) text += smoothing_text(made);
  if (made.gptq)
    text += "    GPTQModifier:\n      dampening_frac: " + nlohmann::json(made.dampening).dump() +
            "\n      actorder: " + (made.actorder == "none" ? "null" : made.actorder) + "\n      config_groups:\n";
  else
    text += "    QuantizationModifier:\n      config_groups:\n";
  for (size_t i = 0; i < made.groups.size(); ++i) {
    const auto& [how, targets] = made.groups[i];
    // JSON's strings and lists are YAML's as well.
    text += "        group_" + std::to_string(i) + ":\n          targets: " + nlohmann::json(targets).dump() + "\n";
    text += weights_text(how) + inputs_text(how);
  }
  if (made.rounds_cache)
    text += "      kv_cache_scheme: {num_bits: 8, type: float, strategy: tensor, dynamic: false, symmetric: true}\n";
  text += "      ignore: " + nlohmann::json(made.ignore).dump() + "\n";
  write_file(out / "recipe.yaml", text);
}

}  // namespace nibble::mistral

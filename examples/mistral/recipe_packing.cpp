// SPDX-License-Identifier: Apache-2.0
#include "recipe_packing.hpp"

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "json.hpp"

namespace nibble::mistral {
namespace {

using json = nlohmann::ordered_json;

const keys weights_used = {"num_bits",        "type",    "symmetric", "group_size", "strategy",
                           "block_structure", "dynamic", "actorder",  "scale_dtype"};
const keys without_effect_here = {"observer", "observer_kwargs", "zp_dtype"};

/// Weights in 8 bits whose inputs are rounded to 8 bits of the same kind.
packing eight_bits(code_type type, index_t rows, index_t group, input_rounding inputs) {
  return {packed_format::compressed_tensors, 8, true, group, type, rows, inputs};
}

void check_format(const mapping& group, const packing& how) {
  const std::string format = group.word("format");
  const std::string ours = how.type == code_type::e4m3          ? "float-quantized"
                           : how.inputs == input_rounding::none ? "pack-quantized"
                                                                : "int-quantized";
  if (!format.empty() && format != ours) group.refuse("format", "and such linears are written " + ours);
}

/// How inputs are rounded beside weights packed as `how`: vLLM has products of 8 bits of one kind.
input_rounding read_inputs(const mapping& inputs, const packing& how) {
  const std::string type = inputs.word("type");
  for (const char* key : {"actorder", "block_structure", "scale_dtype"})
    if (inputs.get(key)) inputs.refuse(key, "which is not done to inputs here; leave it out");
  const bool ints = type.empty() || type == "int";
  if (!ints && type != "float") inputs.refuse("type", "and must be int or float");
  if (how.bits != 8 || !how.symmetric || ints != (how.type == code_type::integer) ||
      inputs.integer("num_bits", 1, 16, 8) != 8)
    throw error(inputs.where() + ": inputs are rounded to 8 bits beside weights of 8 bits of the same type, symmetric");
  if (!inputs.boolean("symmetric", true)) inputs.refuse("symmetric", "and inputs have no zero points here");
  const index_t size = inputs.integer("group_size", -1, largest_group, 0);
  std::string strategy = inputs.word("strategy");
  if (strategy.empty()) strategy = size > 0 ? "group" : size < 0 ? "channel" : "tensor";
  const bool dynamic = inputs.boolean("dynamic", false), blocks = how.rows == block_side;
  if (ints && (how.group >= 0 || how.rows != 1))
    throw error(inputs.where() + ": inputs are rounded to integers beside weights of the strategy channel only");
  if (strategy == "group" && size == block_side && dynamic && blocks) return input_rounding::token_block;
  if (strategy == "token" && size <= 0 && dynamic && !blocks) return input_rounding::token;
  if (strategy == "tensor" && size <= 0 && !dynamic && !blocks) return input_rounding::tensor;
  throw error(
      inputs.where() +
      ": inputs can be rounded by token (dynamic: true), by tensor (dynamic: false) and, beside weights in blocks, "
      "in dynamic groups of 128");
}

void refuse_dynamic(const mapping& w) {
  if (w.get("dynamic") && w.boolean("dynamic", false))
    w.refuse("dynamic", "but weights are quantized once; leave it out");
  if (w.get("scale_dtype")) w.refuse("scale_dtype", "but scales keep the model's dtype; leave it out");
}

packing read_float_weights(const mapping& w) {
  refuse_dynamic(w);
  if (w.integer("num_bits", 1, 16, 8) != 8) w.refuse("num_bits", "and only floats of 8 bits are written");
  if (!w.boolean("symmetric", true)) w.refuse("symmetric", "and floats have no zero points");
  if (w.get("actorder")) w.refuse("actorder", "but only integers have an order of their inputs here; leave it out");
  const index_t size = w.integer("group_size", -1, largest_group, 0);
  std::string strategy = w.word("strategy");
  if (strategy.empty()) strategy = size > 0 ? "group" : size < 0 ? "channel" : "tensor";
  const json* blocks = w.get("block_structure");
  if (strategy == "tensor" && size <= 0 && !blocks) return eight_bits(code_type::e4m3, -1, -1, input_rounding::none);
  if (strategy == "channel" && size <= 0 && !blocks) return eight_bits(code_type::e4m3, 1, -1, input_rounding::none);
  if (strategy == "block" && size <= 0 && blocks &&
      (*blocks == json::array({block_side, block_side}) || *blocks == json("128x128")))
    return eight_bits(code_type::e4m3, block_side, block_side, input_rounding::none);
  throw error(w.where() + ": floats are written with the strategies tensor, channel, and block of [128, 128]");
}

packing read_weights(const mapping& w, std::string* actorder) {
  const std::string type = w.word("type");
  if (type == "float") return read_float_weights(w);
  if (!type.empty() && type != "int") w.refuse("type", "and must be int or float");
  if (w.get("actorder") && *w.get("actorder") != json(false)) {
    if (actorder == nullptr) w.refuse("actorder", "but only GPTQ has an order of its inputs; leave it out");
    *actorder = read_order(w);
  }
  refuse_dynamic(w);
  if (w.get("block_structure"))
    w.refuse("block_structure", "but integers have no blocks here; group and channel are supported");
  packing how{packed_format::compressed_tensors, static_cast<int>(w.integer("num_bits", 2, 8, 8)),
              w.boolean("symmetric", true), w.integer("group_size", -1, largest_group, 0)};
  std::string strategy = w.word("strategy");
  if (strategy.empty()) strategy = how.group > 0 ? "group" : how.group < 0 ? "channel" : "tensor";
  if (strategy != "group" && strategy != "channel")
    throw error(w.where() + ": the strategy " + shown(strategy) + " cannot be written; group and channel can" +
                (w.get("strategy") ? "" : " (without strategy and group_size it is tensor)"));
  if (strategy == "group" && how.group <= 0)
    throw error(w.where() + ": the strategy group needs a \"group_size\" above 0");
  if (strategy == "channel" && how.group > 0)
    throw error(w.where() + ": the strategy channel contradicts the \"group_size\" " + std::to_string(how.group));
  if (strategy == "channel") how.group = -1;
  return how;
}

}  // namespace

keys keys_of_group() {
  return {"targets", "weights", "input_activations", "output_activations", "format"};
}

packing preset_packing(const mapping& m, const std::string& name) {
  const std::string known = lower(name);
  const bool plain =
      known.size() == 5 && known[0] == 'w' && known[1] >= '2' && known[1] <= '8' && known.substr(2) == "a16";
  if (plain) return {packed_format::compressed_tensors, known[1] - '0', true, 128};
  if (known == "w4a16_asym") return {packed_format::compressed_tensors, 4, false, 128};
  if (known == "w8a8" || known == "int8") return eight_bits(code_type::integer, 1, -1, input_rounding::token);
  if (known == "fp8") return eight_bits(code_type::e4m3, -1, -1, input_rounding::tensor);
  if (known == "fp8_dynamic") return eight_bits(code_type::e4m3, 1, -1, input_rounding::token);
  if (known == "fp8_block") return eight_bits(code_type::e4m3, block_side, block_side, input_rounding::token_block);
  throw error(m.where() + ": the scheme " + shown(name) +
              " cannot be written here; W4A16_ASYM, W2A16 to W8A16, W8A8, FP8, FP8_DYNAMIC and FP8_BLOCK can");
}

std::string read_order(const mapping& m) {
  const std::string word = m.get("actorder") && m.get("actorder")->is_string() ? m.word("actorder") : "";
  if (word == "static" || word == "weight") return "static";
  if (word == "group" || word == "dynamic") return "group";
  if (!m.get("actorder") || *m.get("actorder") == nlohmann::ordered_json(false)) return "none";
  m.refuse("actorder", "and must be static, weight, group, dynamic or null");
}

packing read_packing(const mapping& group, std::string* actorder, keys& without_effect) {
  if (group.get("output_activations"))
    group.refuse("output_activations", "but outputs are not quantized here; leave it out");
  if (!group.get("weights")) throw error(group.where() + ": \"weights\" is missing: how to quantize them");
  const auto part = [&](const char* key) {
    return mapping(*group.get(key), group.where() + "." + key, weights_used, without_effect_here, without_effect);
  };
  packing how = read_weights(part("weights"), actorder);
  if (group.get("input_activations")) how.inputs = read_inputs(part("input_activations"), how);
  check_format(group, how);
  return how;
}

}  // namespace nibble::mistral

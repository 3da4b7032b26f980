// SPDX-License-Identifier: Apache-2.0
/// @file
/// Sources: llm-compressor 0.14 (Recipe.from_dict, AWQModifier, SmoothQuantModifier, QuantizationMixin, default_mappings) and
/// compressed-tensors 0.19 (QuantizationScheme, QuantizationArgs, PRESET_SCHEMES).
#include "recipe.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "error.hpp"
#include "file.hpp"
#include "json.hpp"
#include "mapping.hpp"
#include "recipe_packing.hpp"
#include "yaml.hpp"

namespace nibble::mistral {
namespace {

using json = nlohmann::ordered_json;

constexpr int largest_grid = 1000;

const keys of_any_modifier = {"index",        "group",      "start",    "end",   "update", "requires_calibration_data",
                              "initialized_", "finalized_", "started_", "ended_"};
const keys awq_used = {"mappings", "duo_scaling", "n_grid"};
const keys awq_without_effect = {"offload_device", "sequential_targets", "max_chunk_memory"};
const keys smooth_used = {"smoothing_strength", "mappings", "ignore", "algorithm"};
const keys smooth_without_effect = {"num_calibration_steps", "calibration_function"};
const keys gptq_used = {"dampening_frac", "actorder"};
const keys gptq_without_effect = {"block_size", "offload_hessians", "sequential_targets", "sequential_update",
                                  "batched_quantization"};
const keys quantization_used = {"config_groups", "targets", "ignore", "scheme", "kv_cache_scheme"};
const keys quantization_without_effect = {"bypass_divisibility_checks",
                                          "weight_observer",
                                          "input_observer",
                                          "output_observer",
                                          "observer",
                                          "num_calibration_steps",
                                          "disable_quantization_observer_epoch"};
bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// default_stage, and default_stage_1, as llm-compressor numbers the stages of merged recipes.
bool is_stage(std::string key) {
  const size_t digits = key.find_last_not_of("0123456789") + 1;
  if (digits > 0 && digits < key.size() && key[digits - 1] == '_') key.resize(digits - 1);
  return ends_with(key, "_stage");
}

constexpr const char* known_modifiers = "AWQModifier, SmoothQuantModifier, GPTQModifier and QuantizationModifier";

struct modifier {
  std::string name;
  json arguments;
};

class recipe_reader {
 public:
  explicit recipe_reader(std::string file) : file_(std::move(file)) {}

  recipe read() {
    const json top = read_yaml(file_);
    if (!top.is_object())
      throw error(file_ + " must be a mapping of stages, such as default_stage, but is " + excerpt(top));
    for (const auto& [key, value] : top.items()) {
      if (key == "args") {
        if (!is_none(value)) out_.without_effect.push_back(key);
      } else if (is_stage(key)) {
        read_stage(key, value);
      } else if (is_modifiers(key)) {
        read_modifiers(key, value);
      } else {
        throw error(file_ + ": the key " + shown(key) + " is not known; NAME_stage is, and in it NAME_modifiers");
      }
    }
    follow();
    return std::move(out_);
  }

 private:
  static bool is_modifiers(const std::string& key) { return key == "modifiers" || ends_with(key, "_modifiers"); }

  void read_stage(const std::string& stage, const json& value) {
    if (!value.is_object() && !value.is_null())
      throw error(file_ + ": " + shown(stage) + " must be a mapping that holds NAME_modifiers, but is " +
                  excerpt(value));
    for (const auto& [key, modifiers] : value.items()) {
      if (is_modifiers(key))
        read_modifiers(key, modifiers);
      else if (key == "run_type")
        out_.without_effect.push_back(key);
      else
        throw error(file_ + ", " + shown(stage) + ": the key " + shown(key) + " is not known; NAME_modifiers is");
    }
  }

  void read_modifiers(const std::string& group, const json& value) {
    if (!value.is_object() && !value.is_null())
      throw error(file_ + ": " + shown(group) + " must be a mapping of modifiers, but is " + excerpt(value));
    for (const auto& [name, arguments] : value.items()) {
      if (name != "AWQModifier" && name != "SmoothQuantModifier" && name != "GPTQModifier" &&
          name != "QuantizationModifier")
        throw error(file_ + ": the modifier " + shown(name) + " is not known; " + known_modifiers + " are");
      for (const modifier& other : modifiers_)
        if (other.name == name) throw error(file_ + ": " + name + " comes twice, and can be followed only once");
      modifiers_.push_back({name, arguments});
    }
  }

  void follow() {
    const auto named = [&](const char* name) {
      return std::find_if(modifiers_.begin(), modifiers_.end(), [&](const modifier& m) { return m.name == name; });
    };
    const auto awq = named("AWQModifier"), gptq = named("GPTQModifier"), plain = named("QuantizationModifier");
    const auto smooth = named("SmoothQuantModifier");
    if (modifiers_.empty()) throw error(file_ + " holds no modifier; " + known_modifiers + " are known");
    if (gptq != modifiers_.end() && plain != modifiers_.end())
      throw error(file_ + ": GPTQModifier and QuantizationModifier both quantize; give one of them");
    out_.awq = awq != modifiers_.end();
    out_.gptq = gptq != modifiers_.end();
    out_.smooth = smooth != modifiers_.end();
    const auto quantizer = out_.gptq ? gptq : plain;
    if (out_.smooth) follow_smoothing(*smooth, awq != modifiers_.end(), quantizer != modifiers_.end());
    if (out_.smooth && quantizer < smooth)
      throw error(file_ + ": " + quantizer->name +
                  " stands before SmoothQuantModifier, which has to be followed by it");
    if (quantizer == modifiers_.end()) {
      const mapping alone =
          arguments_of(*awq, awq_used + quantization_used, awq_without_effect + quantization_without_effect);
      read_awq(alone);
      return read_quantization(alone);
    }
    if (out_.awq && quantizer < awq)
      throw error(file_ + ": " + quantizer->name + " stands before AWQModifier, which has to be followed by it");
    if (out_.awq) read_awq(arguments_of(*awq, awq_used, awq_without_effect));
    if (!out_.gptq) return read_quantization(arguments_of(*plain, quantization_used, quantization_without_effect));
    const mapping arguments =
        arguments_of(*gptq, gptq_used + quantization_used, gptq_without_effect + quantization_without_effect);
    read_gptq(arguments);
    read_quantization(arguments);
  }

  void follow_smoothing(const modifier& m, bool awq, bool quantizer) {
    if (awq)
      throw error(file_ + ": AWQModifier and SmoothQuantModifier both scale the inputs of linears; give one of them");
    if (!quantizer)
      throw error(file_ + ": SmoothQuantModifier has to be followed by QuantizationModifier or GPTQModifier");
    read_smoothing(arguments_of(m, smooth_used, smooth_without_effect));
  }

  mapping arguments_of(const modifier& m, const keys& used, const keys& ignored) {
    return {m.arguments, file_ + ", " + m.name, used, ignored + of_any_modifier, out_.without_effect};
  }

  void read_awq(const mapping& m) {
    if (const json* mappings = m.get("mappings")) check_mappings(m, *mappings);
    const json* duo = m.get("duo_scaling");
    if (duo && duo->is_string() && *duo != "both") m.refuse("duo_scaling", "and must be true, false or both");
    out_.duo_scaling = duo && duo->is_string() ? "both" : m.boolean("duo_scaling", true) ? "true" : "false";
    out_.grid = static_cast<int>(m.integer("n_grid", 1, largest_grid, 20));
    if (out_.grid > 1 && out_.grid < 4) m.refuse("n_grid", "and must be 1 (no search) or at least 4");
  }

  void read_smoothing(const mapping& m) {
    if (const std::string word = m.word("algorithm"); !word.empty() && word != "smoothquant")
      m.refuse("algorithm", "and only smoothquant is done here");
    if (m.get("ignore")) m.refuse("ignore", "but all layers are smoothed alike here; leave it out");
    if (const json* strength = m.get("smoothing_strength")) {
      if (!strength->is_number() || !(*strength >= 0.0) || !(*strength <= 1.0))
        m.refuse("smoothing_strength", "and must be a number from 0 to 1");
      out_.strength = strength->get<double>();
    }
    if (const json* mappings = m.get("mappings")) read_smoothed(m, *mappings);
  }

  /// Mappings are pairs: the linears that read an input, and what makes it.
  void read_smoothed(const mapping& m, const json& mappings) {
    const std::set<std::string> qkv = {"re:.*q_proj", "re:.*k_proj", "re:.*v_proj"},
                                gate_up = {"re:.*gate_proj", "re:.*up_proj"};
    std::set<std::string> smoothed;
    bool fine = mappings.is_array();
    for (const json& entry : fine ? mappings : json::array()) {
      if (!(fine = fine && entry.is_array() && entry.size() == 2)) break;
      std::set<std::string> readers;
      for (const std::string& name : strings_of(entry[0], m.where() + ", mappings"))
        readers.insert(pattern(name, m.where()));
      const std::string before = pattern(entry[1], m.where());
      const std::set<std::string>* const wanted = before == "re:.*input_layernorm"            ? &qkv
                                                  : before == "re:.*post_attention_layernorm" ? &gate_up
                                                                                              : nullptr;
      const bool linear = (before == "re:.*up_proj" && readers == std::set<std::string>{"re:.*down_proj"}) ||
                          (before == "re:.*v_proj" && readers == std::set<std::string>{"re:.*o_proj"});
      fine = (wanted ? readers == *wanted : linear) && smoothed.insert(before).second;
    }
    if (!fine || smoothed.count("re:.*input_layernorm") == 0 || smoothed.count("re:.*post_attention_layernorm") == 0)
      throw error(
          m.where() +
          ": \"mappings\" differ from those of Mistral and Llama (q, k and v to input_layernorm; gate and up to "
          "post_attention_layernorm; beside them, if wanted, o to v and down to up); leave them out");
    out_.smooth_up = smoothed.count("re:.*up_proj") > 0;
    out_.smooth_v = smoothed.count("re:.*v_proj") > 0;
  }

  void read_gptq(const mapping& m) {
    const json* share = m.get("dampening_frac");
    if (share && (!share->is_number() || !(*share >= 0.0) || !(*share <= 1.0)))
      m.refuse("dampening_frac", "and must be a share from 0 to 1");
    out_.dampening = share ? share->get<double>() : 0.01;
    out_.actorder = m.has("actorder") ? read_order(m) : "static";
  }

  /// A pattern without its "$", which changes nothing about the names that a model of this kind has.
  static std::string pattern(const json& value, const std::string& where) {
    if (!value.is_string()) throw error(where + ": \"mappings\" holds " + excerpt(value) + " where a name is needed");
    auto text = value.get<std::string>();
    if (!text.empty() && text.back() == '$') text.pop_back();
    return text;
  }

  /// @throws error unless the mappings are those that llm-compressor has for Mistral and Llama, in any order.
  void check_mappings(const mapping& m, const json& mappings) {
    const std::set<std::pair<std::string, std::set<std::string>>> ours = {
        {"re:.*input_layernorm", {"re:.*q_proj", "re:.*k_proj", "re:.*v_proj"}},
        {"re:.*v_proj", {"re:.*o_proj"}},
        {"re:.*post_attention_layernorm", {"re:.*gate_proj", "re:.*up_proj"}},
        {"re:.*up_proj", {"re:.*down_proj"}}};
    std::set<std::pair<std::string, std::set<std::string>>> theirs;
    for (const json& entry : mappings.is_array() ? mappings : json::array({mappings})) {
      const mapping one(entry, m.where() + ", mappings", {"smooth_layer", "balance_layers", "activation_hook_target"},
                        {}, out_.without_effect);
      if (one.get("activation_hook_target"))
        one.refuse("activation_hook_target", "which Mistral and Llama have no use for");
      std::set<std::string> balance;
      for (const std::string& name : one.strings("balance_layers", {})) balance.insert(pattern(name, m.where()));
      theirs.insert({one.get("smooth_layer") ? pattern(*one.get("smooth_layer"), m.where()) : "", balance});
    }
    if (theirs != ours)
      throw error(m.where() +
                  ": \"mappings\" differ from those of Mistral and Llama (input_layernorm to q, k and v; v to o; "
                  "post_attention_layernorm to gate and up; up to down), which are the only ones; leave them out");
  }

  void read_cache(const mapping& m) {
    const json* scheme = m.get("kv_cache_scheme");
    if (!scheme) return;
    const mapping s(*scheme, m.where() + ", kv_cache_scheme",
                    {"num_bits", "type", "symmetric", "strategy", "dynamic", "group_size", "block_structure"},
                    {"observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype"}, out_.without_effect);
    const std::string strategy = s.word("strategy");
    if (s.word("type") != "float" || s.integer("num_bits", 1, 64, 8) != 8 || !s.boolean("symmetric", true) ||
        (!strategy.empty() && strategy != "tensor") || (s.get("dynamic") && s.boolean("dynamic", false)) ||
        s.get("group_size") || s.get("block_structure"))
      m.refuse("kv_cache_scheme",
               "and keys and values can be kept in fp8 under one scale each: num_bits 8, type float, "
               "strategy tensor, neither dynamic nor with zero points");
    out_.rounds_cache = true;
  }

  void read_quantization(const mapping& m) {
    read_cache(m);
    const json* scheme = m.get("scheme");
    const json* groups = m.get("config_groups");
    if (scheme && groups) throw error(m.where() + ": \"scheme\" and \"config_groups\" contradict each other; give one");
    if (!scheme && !groups)
      throw error(m.where() + " says nothing of how to quantize: give it \"scheme\" or \"config_groups\"");
    const keys targets = m.strings("targets", {"Linear"});
    out_.ignore = m.strings("ignore", {});
    if (groups) return read_groups(m, *groups);
    if (scheme->is_string()) {
      out_.groups.push_back({preset_packing(m, scheme->get<std::string>()), targets});
      return;
    }
    if (!scheme->is_object()) m.refuse("scheme", "and must be a scheme's name, or a mapping of names to targets");
    for (const auto& [name, of] : scheme->items())
      out_.groups.push_back({preset_packing(m, name), strings_of(of, m.where() + ", scheme, " + shown(name))});
  }

  void read_groups(const mapping& m, const json& groups) {
    if (!groups.is_object()) m.refuse("config_groups", "and must be a mapping of groups");
    for (const auto& [name, value] : groups.items()) {
      const mapping group(value, m.where() + ", " + name, keys_of_group(), {}, out_.without_effect);
      if (!group.get("targets")) throw error(group.where() + ": \"targets\" is missing: the linears that it is about");
      const packing how = read_packing(group, out_.gptq ? &out_.actorder : nullptr, out_.without_effect);
      out_.groups.push_back({how, group.strings("targets", {})});
    }
  }

  std::string file_;
  recipe out_;
  std::vector<modifier> modifiers_;
};

}  // namespace

bool recipe::rounds_inputs() const {
  return std::any_of(groups.begin(), groups.end(),
                     [](const packing_group& each) { return each.how.inputs != input_rounding::none; });
}

bool recipe::has_input_scales() const {
  return std::any_of(groups.begin(), groups.end(),
                     [](const packing_group& each) { return each.how.inputs == input_rounding::tensor; });
}

recipe read_recipe(const std::filesystem::path& file) {
  return recipe_reader(file.string()).read();
}

}  // namespace nibble::mistral

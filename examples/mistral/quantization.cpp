// SPDX-License-Identifier: Apache-2.0
#include "quantization.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include "error.hpp"
#include "json.hpp"
#include "nibble/version.hpp"
#include "regex.hpp"

namespace nibble::mistral {
namespace {

using json = nlohmann::ordered_json;

/// The value of `key`; null when it is absent, null, or an empty object or list, which all mean "none".
const json* value(const json& object, const char* key) {
  const auto found = object.find(key);
  const bool none = found == object.end() || found->is_null() || (found->is_structured() && found->empty());
  return none ? nullptr : &*found;
}

void refuse_unless_none(const json& object, const char* key, const std::string& where) {
  if (value(object, key))
    throw error(where + ": \"" + key + "\" is " + value(object, key)->dump().substr(0, 60) +
                ", a feature that is not supported");
}

std::vector<std::string> strings(const json& object, const char* key, const std::string& where) {
  std::vector<std::string> all;
  const json* list = value(object, key);
  if (!list) return all;
  for (const json& entry : *list) {
    if (!list->is_array() || !entry.is_string()) throw error(where + ": \"" + key + "\" must be a list of strings");
    all.push_back(entry.get<std::string>());
  }
  return all;
}

/// The string under `key`, which must be `wanted`.
void expect(const json& object, const char* key, const char* wanted, const std::string& where) {
  const auto found = json_get<std::string>(object, key, where);
  if (found != wanted)
    throw error(where + ": \"" + key + "\" is \"" + found.substr(0, 60) + "\", but only \"" + wanted +
                "\" is supported");
}

const char* type_name(code_type type) {
  return type == code_type::integer ? "int" : "float";
}

/// compressed-tensors' format of linears so packed.
const char* format_name(const packing& how) {
  return how.type != code_type::integer ? "float-quantized" : is_coded(how) ? "int-quantized" : "pack-quantized";
}

[[noreturn]] void refuse_strategy(const std::string& where, const std::string& strategy, const char* known) {
  throw error(where + ": the strategy \"" + strategy.substr(0, 60) + "\" is not supported; " + known);
}

/// How linears whose weights are of `type` round what they read.
input_rounding read_inputs(const json& scheme, code_type type, const std::string& scheme_where) {
  const json* inputs = value(scheme, "input_activations");
  const std::string where = scheme_where + ", input_activations";
  if (!inputs) return input_rounding::none;
  if (!inputs->is_object()) throw error(where + " must be an object");
  expect(*inputs, "type", type_name(type), where);
  const auto bits = json_get<int>(*inputs, "num_bits", where);
  if (bits != 8) throw error(where + ": \"num_bits\" must be 8, but is " + std::to_string(bits));
  if (!json_get<bool>(*inputs, "symmetric", where, true)) throw error(where + ": only symmetric inputs are supported");
  const bool dynamic = json_get<bool>(*inputs, "dynamic", where, false);
  const auto strategy = json_get<std::string>(*inputs, "strategy", where, dynamic ? "token" : "tensor");
  if (!dynamic && strategy == "tensor") return input_rounding::tensor;
  if (!dynamic) refuse_strategy(where, strategy, "of scales that are fixed, tensor is");
  if (strategy == "token") return input_rounding::token;
  if (strategy != "group") refuse_strategy(where, strategy, "of dynamic scales, token and group are");
  const auto size = json_get<index_t>(*inputs, "group_size", where);
  if (size != block_side) throw error(where + ": \"group_size\" must be 128, but is " + std::to_string(size));
  return input_rounding::token_block;
}

/// fp8: one scale a tensor, an output, or a block.
packing read_float_weights(const json& weights, const std::string& where) {
  const auto bits = json_get<int>(weights, "num_bits", where);
  if (bits != 8) throw error(where + ": floats of " + std::to_string(bits) + " bits are not supported; 8 are");
  packing how{packed_format::compressed_tensors, 8, true, -1, code_type::e4m3, 1, input_rounding::none};
  if (!json_get<bool>(weights, "symmetric", where, true)) throw error(where + ": floats must be symmetric");
  const auto strategy = json_get<std::string>(weights, "strategy", where, "tensor");
  if (strategy == "channel") return how;
  if (strategy == "tensor") {
    how.rows = -1;
    return how;
  }
  if (strategy != "block") refuse_strategy(where, strategy, "of floats, tensor, channel and block are");
  const json* block = value(weights, "block_structure");
  if (!block || *block != json::array({block_side, block_side}))
    throw error(where + ": \"block_structure\" must be [128, 128], but is " + (block ? excerpt(*block) : "missing"));
  how.rows = how.group = block_side;
  return how;
}

packing read_integer_weights(const json& weights, const std::string& where) {
  const auto bits = json_get<int>(weights, "num_bits", where);
  if (bits < 1 || bits > 8) throw error(where + ": \"num_bits\" must be from 1 to 8, but is " + std::to_string(bits));
  packing how{packed_format::compressed_tensors, bits, json_get<bool>(weights, "symmetric", where, true), -1};
  const auto size = json_get<index_t>(weights, "group_size", where, -1);
  const auto strategy = json_get<std::string>(weights, "strategy", where, size > 0 ? "group" : "channel");
  if (strategy == "channel") return how;
  if (strategy != "group")
    throw error(where + ": the strategy \"" + strategy.substr(0, 60) + "\" is not supported; group and channel are");
  if (size < 1 || size > largest_group)
    throw error(where + ": \"group_size\" must be positive for the strategy group, but is " + std::to_string(size));
  how.group = size;
  const json* order = value(weights, "actorder");
  how.reordered = order && (*order == "group" || *order == "dynamic" || *order == true);
  return how;
}

/// @param format  the file's, for groups that have none of their own
packing read_weights(const json& scheme, const std::string& format, const std::string& where) {
  refuse_unless_none(scheme, "output_activations", where);
  const json* weights = value(scheme, "weights");
  if (!weights || !weights->is_object()) throw error(where + ": \"weights\" must be an object");
  const auto type = json_get<std::string>(*weights, "type", where);
  if (type != "int" && type != "float")
    throw error(where + ": \"type\" is \"" + type.substr(0, 60) + "\", but only \"int\" and \"float\" are supported");
  if (json_get<bool>(*weights, "dynamic", where, false)) throw error(where + ": dynamic weights are not supported");
  packing how = type == "int" ? read_integer_weights(*weights, where) : read_float_weights(*weights, where);
  how.inputs = read_inputs(scheme, how.type, where);
  if (how.inputs != input_rounding::none && how.type == code_type::integer &&
      (how.bits != 8 || !how.symmetric || how.group > 0))
    throw error(where +
                ": where inputs are rounded, integer weights must have 8 bits, be symmetric, and have one scale "
                "an output, but these are " +
                to_string(how));
  const auto own = json_get<std::string>(scheme, "format", where, format);
  if (own != format && format != "mixed-precision")
    throw error(where + ": \"format\" is \"" + own.substr(0, 60) + "\", but the whole file's is \"" +
                format.substr(0, 60) + "\"");
  if (own != format_name(how))
    throw error(where + ": \"format\" is \"" + own.substr(0, 60) + "\", but only \"" + format_name(how) +
                "\" is supported for " + to_string(how));
  return how;
}

/// A "weights" or "input_activations".
json numbers_json(code_type type, int bits, bool symmetric, bool dynamic, const char* strategy) {
  return {{"actorder", nullptr},
          {"block_structure", nullptr},
          {"dynamic", dynamic},
          {"group_size", nullptr},
          {"num_bits", bits},
          {"observer", nullptr},
          {"observer_kwargs", json::object()},
          {"strategy", strategy},
          {"symmetric", symmetric},
          {"type", type_name(type)}};
}

json inputs_json(const packing& how) {
  switch (how.inputs) {
    case input_rounding::none:
      return nullptr;
    case input_rounding::token:
      return numbers_json(how.type, 8, true, true, "token");
    case input_rounding::token_block: {
      json inputs = numbers_json(how.type, 8, true, true, "group");
      inputs["group_size"] = block_side;
      return inputs;
    }
    case input_rounding::tensor:
      break;
  }
  json inputs = numbers_json(how.type, 8, true, false, "tensor");
  inputs["observer"] = "static_minmax";
  return inputs;
}

json group_json(const packing_group& group) {
  const packing& how = group.how;
  const bool block = how.rows > 1, grouped = how.group > 0 && !block;
  json weights = numbers_json(how.type, how.bits, how.symmetric, false,
                              block          ? "block"
                              : how.rows < 0 ? "tensor"
                              : grouped      ? "group"
                                             : "channel");
  weights["observer"] = "memoryless_minmax";
  if (how.reordered) weights["actorder"] = "group";
  if (block) weights["block_structure"] = {how.rows, how.group};
  if (grouped) weights["group_size"] = how.group;
  return {{"format", format_name(how)},
          {"input_activations", inputs_json(how)},
          {"output_activations", nullptr},
          {"targets", group.targets},
          {"weights", std::move(weights)}};
}

/// kv_cache_scheme: e4m3 under one scale of a layer's keys and one of its values.
json cache_json() {
  json scheme = numbers_json(code_type::e4m3, 8, true, false, "tensor");
  scheme["observer"] = "static_minmax";
  return scheme;
}

void check_cache(const json& scheme, const std::string& where) {
  if (!scheme.is_object()) throw error(where + " must be an object");
  expect(scheme, "type", "float", where);
  const auto bits = json_get<int>(scheme, "num_bits", where);
  if (bits != 8) throw error(where + ": \"num_bits\" must be 8, but is " + std::to_string(bits));
  if (!json_get<bool>(scheme, "symmetric", where, true)) throw error(where + ": floats must be symmetric");
  if (json_get<bool>(scheme, "dynamic", where, false)) throw error(where + ": dynamic scales are not supported");
  const auto strategy = json_get<std::string>(scheme, "strategy", where, "tensor");
  if (strategy != "tensor") refuse_strategy(where, strategy, "of the key-value cache, tensor is");
}

json compressed_tensors_json(const std::vector<packing_group>& all, const std::vector<std::string>& ignore,
                             bool cache) {
  json groups = json::object();
  for (size_t i = 0; i < all.size(); ++i) groups["group_" + std::to_string(i)] = group_json(all[i]);
  const std::string format = format_name(all.front().how);
  const bool alike =
      std::all_of(all.begin(), all.end(), [&](const packing_group& each) { return format == format_name(each.how); });
  return {{"config_groups", std::move(groups)},
          {"format", alike ? format : "mixed-precision"},
          {"global_compression_ratio", nullptr},
          {"ignore", ignore},
          {"kv_cache_scheme", cache ? cache_json() : json(nullptr)},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}

struct awq_version {
  const char* name;
  packed_format format;
};
constexpr awq_version awq_versions[] = {{"gemm", packed_format::awq_gemm},
                                        {"gemv", packed_format::awq_gemv},
                                        {"gemv_fast", packed_format::awq_gemv_fast},
                                        {"marlin", packed_format::marlin}};

json awq_json(const packing& how, const std::vector<std::string>& ignore) {
  for (const std::string& name : ignore)
    if (name.rfind("re:", 0) == 0)
      throw usage_error("the pattern \"" + name + "\" cannot be written in an AutoAWQ format, which knows names only");
  std::vector<std::string> kept;  // AutoAWQ never converts the head, and its readers need not be told
  std::copy_if(ignore.begin(), ignore.end(), std::back_inserter(kept), [](const auto& n) { return n != "lm_head"; });
  const auto* const known = std::find_if(std::begin(awq_versions), std::end(awq_versions),
                                         [&](const awq_version& v) { return v.format == how.format; });
  return {{"quant_method", "awq"},   {"zero_point", !how.symmetric},
          {"group_size", how.group}, {"bits", how.bits},
          {"version", known->name},  {"modules_to_not_convert", kept.empty() ? json(nullptr) : json(kept)}};
}

/// A pattern that matches these texts, whole, and no other.
std::string exactly(const std::string& name) {
  std::string pattern = "^";
  for (const char letter : name) {
    if (std::string_view(".^$*+?()[]{}|\\").find(letter) != std::string_view::npos) pattern += '\\';
    pattern += letter;
  }
  return pattern + "$";
}

json gptq_json(const packing& how, const json& rules) {
  const char* const format = how.format == packed_format::gptq ? "gptq" : "gptq_v2";
  json out = {
      {"bits", how.bits},          {"group_size", how.group},
      {"desc_act", how.reordered}, {"lm_head", false},
      {"method", "gptq"},          {"quant_method", "gptq"},
      {"format", format},          {"checkpoint_format", format},
      {"pack_dtype", "int32"},     {"meta", {{"quantizer", {"nibble:" NIBBLE_VERSION}}, {"act_group_aware", false}}},
      {"sym", how.symmetric}};
  if (!rules.empty()) out["dynamic"] = rules;
  return out;
}

/// A linear as it is packed; empty where it is left as it was.
struct named_packing {
  std::string name;
  std::optional<packing> how;
};

/// vLLM asks for the linears that it makes of several under names of its own.
void add_fused(std::vector<named_packing>& all) {
  const std::pair<const char*, std::vector<const char*>> fused[] = {{"qkv_proj", {"q_proj", "k_proj", "v_proj"}},
                                                                    {"gate_up_proj", {"gate_proj", "up_proj"}}};
  const size_t count = all.size();
  for (size_t i = 0; i < count; ++i)
    for (const auto& [name, parts] : fused) {
      const std::string first = parts.front();
      const std::string& whole = all[i].name;
      if (whole.size() < first.size() || whole.compare(whole.size() - first.size(), first.size(), first) != 0) continue;
      const std::string prefix = whole.substr(0, whole.size() - first.size());
      const bool alike = std::all_of(parts.begin(), parts.end(), [&](const char* part) {
        return std::any_of(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count),
                           [&](const auto& other) { return other.name == prefix + part && other.how == all[i].how; });
      });
      if (alike) all.push_back({prefix + name, all[i].how});
      break;
    }
}

/// Rules for all that is not packed as `base`: what is left as it was goes first, as GPTQModel sorts them.
json gptq_rules(std::vector<named_packing> linears, const packing& base) {
  add_fused(linears);
  json rules = json::object();
  for (const auto& [name, how] : linears)
    if (!how && name != "lm_head") rules["-:" + exactly(name)] = json::object();
  for (const auto& [name, how] : linears)
    if (how && !(*how == base))
      rules["+:" + exactly(name)] = {
          {"bits", how->bits}, {"group_size", how->group}, {"sym", how->symmetric}, {"desc_act", how->reordered}};
  return rules;
}

}  // namespace

std::string to_string(const packing& how) {
  std::string text = how.type == code_type::e4m3
                         ? "fp8, "
                         : std::to_string(how.bits) + " bits, " + (how.symmetric ? "symmetric, " : "asymmetric, ");
  text += how.rows < 0    ? "one scale"
          : how.rows > 1  ? "blocks of " + std::to_string(how.rows) + " x " + std::to_string(how.group)
          : how.group < 0 ? "one group an output"
                          : "groups of " + std::to_string(how.group);
  if (how.reordered) text += " in the order of activations";
  if (how.inputs == input_rounding::token) text += ", inputs likewise, one scale a token";
  if (how.inputs == input_rounding::token_block) text += ", inputs likewise, one scale a token and 128";
  if (how.inputs == input_rounding::tensor) text += ", inputs likewise, one scale for all";
  return text;
}

const char* to_string(packed_format format) {
  constexpr const char* names[] = {
      "compressed-tensors", "awq-gemm", "awq-gemv", "awq-gemv-fast", "marlin", "gptq", "gptq-v2"};
  return names[static_cast<size_t>(format)];
}

quantization::quantization(const std::vector<packing_group>& groups, const std::vector<std::string>& ignore,
                           std::string where)
    : where_(std::move(where)), ignore_(ignore), ignore_patterns_(compiled(ignore)) {
  for (const packing_group& group : groups) add(group);
}

quantization quantization::uniform(const packing& how, const std::vector<std::string>& ignore,
                                   const std::string& where) {
  if (!is_autoawq(how.format)) return quantization({{how, {"Linear"}}}, ignore, where);
  awq_json(how, ignore);  // refuses patterns
  quantization q;
  q.where_ = where;
  q.awq_ = true;
  q.ignore_ = ignore;
  q.add({how, {"Linear"}});
  return q;
}

quantization::patterns quantization::compiled(const std::vector<std::string>& targets) const {
  patterns all;
  for (const std::string& target : targets) {
    if (target.rfind("re:", 0) != 0) {
      all.push_back(nullptr);
      continue;
    }
    const std::string pattern = target.substr(3);
    const regex whole(pattern, where_);  // what closes a bracket that it did not open would escape the one below
    all.push_back(std::make_shared<const regex>("^(?:" + pattern + ")[\\s\\S]*", where_));
  }
  return all;
}

void quantization::add(packing_group group) {
  target_patterns_.push_back(compiled(group.targets));
  groups_.push_back(std::move(group));
}

void quantization::read_compressed_tensors(const json& file) {
  const auto format = json_get<std::string>(file, "format", where_);
  refuse_unless_none(file, "transform_config", where_);
  if (const json* cache = value(file, "kv_cache_scheme")) {
    check_cache(*cache, where_ + ", kv_cache_scheme");
    rounds_cache_ = true;
  }
  if (const json* sparsity = value(file, "sparsity_config")) expect(*sparsity, "format", "dense", where_);
  const json* groups = value(file, "config_groups");
  if (!groups || !groups->is_object()) throw error(where_ + ": \"config_groups\" must be an object that is not empty");
  for (const auto& [name, scheme] : groups->items()) {
    const std::string where = where_ + ", " + name;
    if (!scheme.is_object()) throw error(where + ": a group must be an object");
    add({read_weights(scheme, format, where), strings(scheme, "targets", where)});
  }
  ignore_ = strings(file, "ignore", where_);
  ignore_patterns_ = compiled(ignore_);
}

void quantization::read_awq(const json& file) {
  awq_ = true;
  const auto bits = json_get<int>(file, "bits", where_);
  const auto size = json_get<index_t>(file, "group_size", where_);
  const auto version = json_get<std::string>(file, "version", where_, "gemm");
  if (bits != 4)
    throw error(where_ + ": \"bits\" must be 4, which is all that AutoAWQ packs, but is " + std::to_string(bits));
  if (size != -1 && (size < 1 || size > largest_group))
    throw error(where_ + ": \"group_size\" must be positive or -1, but is " + std::to_string(size));
  const auto* const known = std::find_if(std::begin(awq_versions), std::end(awq_versions),
                                         [&](const awq_version& v) { return version == v.name; });
  if (known == std::end(awq_versions))
    throw error(where_ + ": the version \"" + version.substr(0, 60) +
                "\" is not supported; gemm, gemv, gemv_fast and marlin are");
  const bool symmetric = known->format == packed_format::marlin;
  if (json_get<bool>(file, "zero_point", where_, !symmetric) == symmetric)
    throw error(where_ + ": \"zero_point\" must be " + (symmetric ? "false" : "true") + ", for AutoAWQ's " + version +
                " kernels take " + (symmetric ? "symmetric" : "asymmetric") + " weights only");
  add({{known->format, bits, symmetric, size}, {"Linear"}});
  ignore_ = strings(file, "modules_to_not_convert", where_);
}

namespace {

/// What a GPTQ config, or a rule in it, says: `how` but where it says otherwise.
packing read_gptq_packing(const json& file, packing how, const std::string& where) {
  how.bits = json_get<int>(file, "bits", where, how.bits);
  if (how.bits != 2 && how.bits != 3 && how.bits != 4 && how.bits != 8)
    throw error(where + ": \"bits\" must be 2, 3, 4 or 8, but is " + std::to_string(how.bits));
  how.group = json_get<index_t>(file, "group_size", where, how.group);
  if (how.group != -1 && (how.group < 1 || how.group > largest_group))
    throw error(where + ": \"group_size\" must be positive or -1, but is " + std::to_string(how.group));
  how.symmetric = json_get<bool>(file, "sym", where, how.symmetric);
  how.reordered = json_get<bool>(file, "desc_act", where, how.reordered);
  return how;
}

}  // namespace

void quantization::read_gptq(const json& file) {
  gptq_ = true;
  json_get<int>(file, "bits", where_);  // has no default
  json_get<index_t>(file, "group_size", where_);
  const char* const key = file.contains("checkpoint_format") ? "checkpoint_format" : "format";
  const auto format = json_get<std::string>(file, key, where_, "gptq");
  if (format != "gptq" && format != "gptq_v2")
    throw error(where_ + ": the \"" + key + "\" \"" + format.substr(0, 60) +
                "\" is not supported; gptq and gptq_v2 are");
  if (value(file, "pack_dtype")) expect(file, "pack_dtype", "int32", where_);
  for (const char* feature : {"modules_in_block_to_quantize", "activation", "adapter"})
    refuse_unless_none(file, feature, where_);
  const packing base =
      read_gptq_packing(file, {format == "gptq" ? packed_format::gptq : packed_format::gptq_v2, 4, true, 128}, where_);
  add({base, {"Linear"}});
  head_ = json_get<bool>(file, "lm_head", where_, false);
  if (const json* rules = value(file, "dynamic")) read_gptq_rules(*rules, base);
}

void quantization::read_gptq_rules(const json& rules, const packing& base) {
  if (!rules.is_object()) throw error(where_ + ": \"dynamic\" must be an object");
  std::vector<rule> positive;
  for (const auto& [key, value] : rules.items()) {
    const bool negative = key.rfind("-:", 0) == 0, marked = negative || key.rfind("+:", 0) == 0;
    const std::string pattern = key.substr(marked ? 2 : 0), where = where_ + ", dynamic, " + key.substr(0, 60);
    const regex whole(pattern, where);
    rule one{std::make_shared<const regex>("^(?:" + pattern + ")[\\s\\S]*", where), std::nullopt};
    if (negative) {
      rules_.push_back(std::move(one));
      continue;
    }
    if (!value.is_object()) throw error(where + " must be an object");
    one.how = read_gptq_packing(value, base, where);
    positive.push_back(std::move(one));
  }
  rules_.insert(rules_.end(), positive.begin(), positive.end());
}

std::optional<packing> quantization::by_rules(const std::string& name) const {
  if (name.rfind("model.layers.", 0) != 0 && !(head_ && name == "lm_head")) return std::nullopt;
  for (const rule& each : rules_) {
    const auto found = each.pattern->matches(name);
    if (!found.empty() && found.front().first == 0) return each.how;
  }
  return groups_.front().how;
}

std::optional<quantization> quantization::read(const config& model, const std::string& where) {
  const auto found = model.json.is_object() ? model.json.find("quantization_config") : model.json.end();
  if (found == model.json.end() || found->is_null()) return std::nullopt;
  quantization q;
  q.where_ = where + ", quantization_config";
  if (!found->is_object()) throw error(q.where_ + " must be an object");
  const auto method = json_get<std::string>(*found, "quant_method", q.where_);
  if (method == "compressed-tensors")
    q.read_compressed_tensors(*found);
  else if (method == "awq")
    q.read_awq(*found);
  else if (method == "gptq")
    q.read_gptq(*found);
  else
    throw error(q.where_ + ": the method \"" + method.substr(0, 60) +
                "\" is not supported; compressed-tensors, awq and gptq are");
  return q;
}

namespace {

/// How specific a match is; compressed-tensors takes the least.
enum class matched { by_name, by_pattern, by_class, not_at_all };

/// torch.nn.Linear and torch.nn.Embedding are both of the class Module.
matched match_target(const std::string& name, const std::string& of_class, const std::string& target,
                     const regex* pattern) {
  if (!pattern && name == target) return matched::by_name;
  if (pattern) {
    const auto found = pattern->matches(name);
    return !found.empty() && found.front().first == 0 ? matched::by_pattern : matched::not_at_all;
  }
  return target == of_class || target == "Module" ? matched::by_class : matched::not_at_all;
}

}  // namespace

std::optional<packing> quantization::match(const std::string& name, const std::string& of_class) const {
  for (size_t i = 0; i < ignore_.size(); ++i)
    if (match_target(name, of_class, ignore_[i], ignore_patterns_[i].get()) != matched::not_at_all) return std::nullopt;
  const packing* best = nullptr;
  std::pair<matched, std::string_view> least = {matched::not_at_all, {}};
  for (size_t g = 0; g < groups_.size(); ++g)
    for (size_t i = 0; i < groups_[g].targets.size(); ++i) {
      const std::string& target = groups_[g].targets[i];
      const std::pair<matched, std::string_view> found = {
          match_target(name, of_class, target, target_patterns_[g][i].get()), target};
      if (found.first == matched::not_at_all || (best && found > least)) continue;
      best = &groups_[g].how;
      least = found;
    }
  return best ? std::optional(*best) : std::nullopt;
}

std::optional<packing> quantization::of(const std::string& name) const {
  if (name == "model.embed_tokens") return std::nullopt;  // an embedding, even where it is the head as well
  if (gptq_) return by_rules(name);
  if (!awq_) return match(name, "Linear");
  // AutoAWQ converts the decoder layers, less those whose name contains a listed one.
  return ignores(name) || name.rfind("model.layers.", 0) != 0 ? std::nullopt : std::optional(groups_.front().how);
}

bool quantization::rounds_inputs() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const packing_group& each) { return each.how.inputs != input_rounding::none; });
}

bool quantization::targets_embedding() const {
  return !awq_ && match("model.embed_tokens", "Embedding").has_value();
}

bool quantization::ignores(const std::string& name) const {
  for (size_t i = 0; i < ignore_.size(); ++i)
    if (awq_ ? name.find(ignore_[i]) != std::string::npos
             : match_target(name, "Linear", ignore_[i], ignore_patterns_[i].get()) != matched::not_at_all)
      return true;
  return false;
}

std::vector<std::string> quantization::unmatched(const std::vector<std::string>& linears) const {
  std::vector<std::string> idle;
  const auto test = [&](const std::vector<std::string>& texts, const patterns& compiled) {
    for (size_t i = 0; i < texts.size(); ++i) {
      const auto matches = [&](const std::string& name, const char* of_class) {
        if (awq_) return texts[i] == of_class || name.find(texts[i]) != std::string::npos;
        return match_target(name, of_class, texts[i], compiled[i].get()) != matched::not_at_all;
      };
      const bool any = matches("model.embed_tokens", "Embedding") ||
                       std::any_of(linears.begin(), linears.end(), [&](const auto& l) { return matches(l, "Linear"); });
      if (!any && std::find(idle.begin(), idle.end(), texts[i]) == idle.end()) idle.push_back(texts[i]);
    }
  };
  for (size_t g = 0; g < groups_.size(); ++g) test(groups_[g].targets, target_patterns_[g]);
  test(ignore_, ignore_patterns_);
  return idle;
}

json quantization_json(const packing& how, const std::vector<std::string>& ignore) {
  if (how.format == packed_format::compressed_tensors)
    return compressed_tensors_json({{how, {"Linear"}}}, ignore, false);
  if (is_autoawq(how.format)) return awq_json(how, ignore);
  json rules = json::object();
  for (const std::string& entry : ignore)
    if (entry != "lm_head")
      rules["-:" + (entry.rfind("re:", 0) == 0 ? entry.substr(3) : exactly(entry))] = json::object();
  return gptq_json(how, rules);
}

json quantization_json(const quantization& q, const std::vector<std::string>& linears) {
  if (q.by_parts()) return awq_json(q.groups().front().how, q.ignore());
  std::vector<packing_group> groups;
  std::vector<std::string> ignore = q.ignore(), dense;
  std::vector<named_packing> all;
  for (const std::string& name : linears) {
    const auto how = q.of(name);
    all.push_back({name, how});
    if (!how) {
      dense.push_back(name);
      if (!q.ignores(name)) ignore.push_back(name);
      continue;
    }
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.how == *how; });
    if (group == groups.end()) group = groups.insert(groups.end(), {*how, {}});
    group->targets.push_back(name);
  }
  const packed_format format = groups.front().how.format;
  if (is_autoawq(format)) {
    if (groups.size() > 1)
      throw usage_error(std::string("--format ") + to_string(format) +
                        " packs all linears alike, but of these some are " + to_string(groups[0].how) + " and some " +
                        to_string(groups[1].how) + "; use --format compressed-tensors");
    return awq_json(groups.front().how, dense);
  }
  const auto most = std::max_element(groups.begin(), groups.end(),
                                     [](const auto& a, const auto& b) { return a.targets.size() < b.targets.size(); });
  if (is_gptq(format)) return gptq_json(most->how, gptq_rules(all, most->how));
  most->targets = {"Linear"};
  std::rotate(groups.begin(), most, most + 1);
  return compressed_tensors_json(groups, ignore, q.rounds_cache());
}

}  // namespace nibble::mistral

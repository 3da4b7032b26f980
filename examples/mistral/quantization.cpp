// SPDX-License-Identifier: Apache-2.0
#include "quantization.hpp"

#include <algorithm>

#include "error.hpp"
#include "json.hpp"
#include "regex.hpp"

namespace nibble::mistral {
namespace {

using json = nlohmann::ordered_json;

constexpr index_t largest_group = 1 << 24;

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

/// Python's re.match for "re:PATTERN" (from the start, not to the end), equality for anything else.
bool matches(const std::string& name, const std::string& target, const std::string& where) {
  if (target.rfind("re:", 0) != 0) return name == target;
  const auto found = regex("^(?:" + target.substr(3) + ")[\\s\\S]*", where).matches(name);
  return !found.empty() && found.front().first == 0;
}

packing read_weights(const json& scheme, const std::string& where) {
  refuse_unless_none(scheme, "input_activations", where);
  refuse_unless_none(scheme, "output_activations", where);
  if (value(scheme, "format")) expect(scheme, "format", "pack-quantized", where);
  const json* weights = value(scheme, "weights");
  if (!weights || !weights->is_object()) throw error(where + ": \"weights\" must be an object");
  expect(*weights, "type", "int", where);
  const auto bits = json_get<int>(*weights, "num_bits", where);
  if (bits < 1 || bits > 8) throw error(where + ": \"num_bits\" must be from 1 to 8, but is " + std::to_string(bits));
  if (json_get<bool>(*weights, "dynamic", where, false)) throw error(where + ": dynamic weights are not supported");
  packing how{packed_format::compressed_tensors, bits, json_get<bool>(*weights, "symmetric", where, true), -1};
  const auto size = json_get<index_t>(*weights, "group_size", where, -1);
  const auto strategy = json_get<std::string>(*weights, "strategy", where, size > 0 ? "group" : "channel");
  if (strategy == "channel") return how;
  if (strategy != "group")
    throw error(where + ": the strategy \"" + strategy.substr(0, 60) + "\" is not supported; group and channel are");
  if (size < 1 || size > largest_group)
    throw error(where + ": \"group_size\" must be positive for the strategy group, but is " + std::to_string(size));
  how.group = size;
  return how;
}

json compressed_tensors_json(const packing& how, const std::vector<std::string>& ignore) {
  const bool grouped = how.group > 0;
  const json weights = {{"actorder", nullptr},
                        {"block_structure", nullptr},
                        {"dynamic", false},
                        {"group_size", grouped ? json(how.group) : json(nullptr)},
                        {"num_bits", how.bits},
                        {"observer", "memoryless_minmax"},
                        {"observer_kwargs", json::object()},
                        {"strategy", grouped ? "group" : "channel"},
                        {"symmetric", how.symmetric},
                        {"type", "int"}};
  json group = {{"format", "pack-quantized"},
                {"input_activations", nullptr},
                {"output_activations", nullptr},
                {"targets", json::array({"Linear"})},
                {"weights", weights}};
  json groups = json::object();
  groups["group_0"] = std::move(group);
  return {{"config_groups", std::move(groups)},  {"format", "pack-quantized"},
          {"global_compression_ratio", nullptr}, {"ignore", ignore},
          {"kv_cache_scheme", nullptr},          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}

json awq_json(const packing& how, const std::vector<std::string>& ignore) {
  for (const std::string& name : ignore)
    if (name.rfind("re:", 0) == 0)
      throw usage_error("the pattern \"" + name + "\" cannot be written in an AutoAWQ format, which knows names only");
  std::vector<std::string> kept;  // AutoAWQ never converts the head, and its readers need not be told
  std::copy_if(ignore.begin(), ignore.end(), std::back_inserter(kept), [](const auto& n) { return n != "lm_head"; });
  return {{"quant_method", "awq"},
          {"zero_point", true},
          {"group_size", how.group},
          {"bits", how.bits},
          {"version", how.format == packed_format::awq_gemm ? "gemm" : "gemv"},
          {"modules_to_not_convert", kept.empty() ? json(nullptr) : json(kept)}};
}

}  // namespace

const char* to_string(packed_format format) {
  constexpr const char* names[] = {"compressed-tensors", "awq-gemm", "awq-gemv"};
  return names[static_cast<size_t>(format)];
}

void quantization::read_compressed_tensors(const json& file) {
  expect(file, "format", "pack-quantized", where_);
  for (const char* key : {"kv_cache_scheme", "transform_config"}) refuse_unless_none(file, key, where_);
  if (const json* sparsity = value(file, "sparsity_config")) expect(*sparsity, "format", "dense", where_);
  const json* groups = value(file, "config_groups");
  if (!groups || !groups->is_object()) throw error(where_ + ": \"config_groups\" must be an object that is not empty");
  for (const auto& [name, scheme] : groups->items()) {
    const std::string where = where_ + ", " + name;
    if (!scheme.is_object()) throw error(where + ": a group must be an object");
    groups_.push_back({read_weights(scheme, where), strings(scheme, "targets", where)});
  }
  ignore_ = strings(file, "ignore", where_);
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
  if (!json_get<bool>(file, "zero_point", where_, true))
    throw error(where_ + ": \"zero_point\" must be true, for AutoAWQ's kernels take asymmetric weights only");
  if (version != "gemm" && version != "gemv")
    throw error(where_ + ": the version \"" + version.substr(0, 60) + "\" is not supported; gemm and gemv are");
  groups_.push_back({{version == "gemm" ? packed_format::awq_gemm : packed_format::awq_gemv, bits, false, size}, {}});
  ignore_ = strings(file, "modules_to_not_convert", where_);
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
  else
    throw error(q.where_ + ": the method \"" + method.substr(0, 60) +
                "\" is not supported; compressed-tensors and awq are");
  return q;
}

std::optional<packing> quantization::of(const std::string& name) const {
  if (name == "model.embed_tokens") return std::nullopt;  // an embedding, even where it is the head as well
  if (awq_) {  // AutoAWQ converts the decoder layers, less those whose name contains a listed one
    const bool kept = std::any_of(ignore_.begin(), ignore_.end(),
                                  [&](const std::string& part) { return name.find(part) != std::string::npos; });
    return kept || name.rfind("model.layers.", 0) != 0 ? std::nullopt : std::optional(groups_.front().how);
  }
  for (const std::string& ignored : ignore_)
    if (ignored == "Linear" || matches(name, ignored, where_)) return std::nullopt;
  // A name goes before a pattern, and a pattern before a class.
  for (const int rank : {0, 1, 2})
    for (const group& g : groups_)
      for (const std::string& target : g.targets) {
        const int kind = target.rfind("re:", 0) == 0 ? 1 : target == "Linear" ? 2 : 0;
        if (kind == rank && (kind == 2 || matches(name, target, where_))) return g.how;
      }
  return std::nullopt;
}

json quantization_json(const packing& how, const std::vector<std::string>& ignore) {
  return how.format == packed_format::compressed_tensors ? compressed_tensors_json(how, ignore) : awq_json(how, ignore);
}

}  // namespace nibble::mistral

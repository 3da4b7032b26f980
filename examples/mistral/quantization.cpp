// SPDX-License-Identifier: Apache-2.0
#include "quantization.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

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

json group_json(const packing_group& group) {
  const bool grouped = group.how.group > 0;
  const json weights = {{"actorder", nullptr},
                        {"block_structure", nullptr},
                        {"dynamic", false},
                        {"group_size", grouped ? json(group.how.group) : json(nullptr)},
                        {"num_bits", group.how.bits},
                        {"observer", "memoryless_minmax"},
                        {"observer_kwargs", json::object()},
                        {"strategy", grouped ? "group" : "channel"},
                        {"symmetric", group.how.symmetric},
                        {"type", "int"}};
  return {{"format", "pack-quantized"},
          {"input_activations", nullptr},
          {"output_activations", nullptr},
          {"targets", group.targets},
          {"weights", weights}};
}

json compressed_tensors_json(const std::vector<packing_group>& all, const std::vector<std::string>& ignore) {
  json groups = json::object();
  for (size_t i = 0; i < all.size(); ++i) groups["group_" + std::to_string(i)] = group_json(all[i]);
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

std::string to_string(const packing& how) {
  return std::to_string(how.bits) + " bits, " + (how.symmetric ? "symmetric, " : "asymmetric, ") +
         (how.group < 0 ? "one group an output" : "groups of " + std::to_string(how.group));
}

const char* to_string(packed_format format) {
  constexpr const char* names[] = {"compressed-tensors", "awq-gemm", "awq-gemv"};
  return names[static_cast<size_t>(format)];
}

quantization::quantization(const std::vector<packing_group>& groups, const std::vector<std::string>& ignore,
                           std::string where)
    : where_(std::move(where)), ignore_(ignore), ignore_patterns_(compiled(ignore)) {
  for (const packing_group& group : groups) add(group);
}

quantization quantization::uniform(const packing& how, const std::vector<std::string>& ignore,
                                   const std::string& where) {
  if (how.format == packed_format::compressed_tensors) return quantization({{how, {"Linear"}}}, ignore, where);
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
  expect(file, "format", "pack-quantized", where_);
  for (const char* key : {"kv_cache_scheme", "transform_config"}) refuse_unless_none(file, key, where_);
  if (const json* sparsity = value(file, "sparsity_config")) expect(*sparsity, "format", "dense", where_);
  const json* groups = value(file, "config_groups");
  if (!groups || !groups->is_object()) throw error(where_ + ": \"config_groups\" must be an object that is not empty");
  for (const auto& [name, scheme] : groups->items()) {
    const std::string where = where_ + ", " + name;
    if (!scheme.is_object()) throw error(where + ": a group must be an object");
    add({read_weights(scheme, where), strings(scheme, "targets", where)});
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
  if (!json_get<bool>(file, "zero_point", where_, true))
    throw error(where_ + ": \"zero_point\" must be true, for AutoAWQ's kernels take asymmetric weights only");
  if (version != "gemm" && version != "gemv")
    throw error(where_ + ": the version \"" + version.substr(0, 60) + "\" is not supported; gemm and gemv are");
  add({{version == "gemm" ? packed_format::awq_gemm : packed_format::awq_gemv, bits, false, size}, {"Linear"}});
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
  if (!awq_) return match(name, "Linear");
  // AutoAWQ converts the decoder layers, less those whose name contains a listed one.
  return ignores(name) || name.rfind("model.layers.", 0) != 0 ? std::nullopt : std::optional(groups_.front().how);
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
  return how.format == packed_format::compressed_tensors ? compressed_tensors_json({{how, {"Linear"}}}, ignore)
                                                         : awq_json(how, ignore);
}

json quantization_json(const quantization& q, const std::vector<std::string>& linears) {
  if (q.by_parts()) return awq_json(q.groups().front().how, q.ignore());
  std::vector<packing_group> groups;
  std::vector<std::string> ignore = q.ignore(), dense;
  for (const std::string& name : linears) {
    const auto how = q.of(name);
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
  if (format != packed_format::compressed_tensors) {
    if (groups.size() > 1)
      throw usage_error(std::string("--format ") + to_string(format) +
                        " packs all linears alike, but of these some are " + to_string(groups[0].how) + " and some " +
                        to_string(groups[1].how) + "; use --format compressed-tensors");
    return awq_json(groups.front().how, dense);
  }
  const auto most = std::max_element(groups.begin(), groups.end(),
                                     [](const auto& a, const auto& b) { return a.targets.size() < b.targets.size(); });
  most->targets = {"Linear"};
  std::rotate(groups.begin(), most, most + 1);
  return compressed_tensors_json(groups, ignore);
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// config.json, key by key, with the defaults of transformers' MistralConfig and LlamaConfig where a key may be absent.
#include "config.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include "error.hpp"
#include "gguf_model.hpp"
#include "json.hpp"

namespace nibble::mistral {
namespace {

using json = nlohmann::ordered_json;

constexpr index_t largest_extent = std::numeric_limits<std::int32_t>::max();  // a product of two still fits index_t

std::string dumped(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 60);
}

/// One object of config.json (the file itself, or rope_parameters in it), read by key.
class config_reader {
 public:
  config_reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  [[noreturn]] void refuse(const std::string& key, const std::string& must) const {
    throw error(where_ + ": \"" + key + "\" must be " + must + ", but is " + dumped(*value(key)));
  }

  /// The value of `key`; null when it is absent or null.
  const json* value(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  /// Whether the key is there, if only as null.
  bool contains(const std::string& key) const { return object_.contains(key); }

  index_t extent(const std::string& key) const {
    const json* found = value(key);
    if (!found) throw error(where_ + ": \"" + key + "\" is missing");
    if (!json_is<index_t>(*found) || found->get<index_t>() < 1 || found->get<index_t>() > largest_extent)
      refuse(key, "a whole number from 1 to " + std::to_string(largest_extent));
    return found->get<index_t>();
  }
  index_t extent(const std::string& key, index_t otherwise) const { return value(key) ? extent(key) : otherwise; }

  double positive(const std::string& key, double otherwise, double largest) const {
    const json* found = value(key);
    if (!found) return otherwise;
    const double number = found->is_number() ? found->get<double>() : 0.0;
    if (!(number > 0.0) || !(number <= largest)) refuse(key, "a positive number of " + dumped(largest) + " at most");
    return number;
  }

  bool flag(const std::string& key, bool otherwise) const {
    const json* found = value(key);
    if (!found) return otherwise;
    if (!found->is_boolean()) refuse(key, "true or false");
    return found->get<bool>();
  }

  std::string text(const std::string& key, const std::string& otherwise) const {
    const json* found = value(key);
    if (!found) return otherwise;
    if (!found->is_string()) refuse(key, "a string");
    return found->get<std::string>();
  }

  /// A token id, the first of a list, or −1 for null. `otherwise` when the key is absent.
  int token(const std::string& key, int otherwise, index_t vocabulary) const {
    if (!contains(key)) return otherwise < vocabulary ? otherwise : -1;
    const json* found = value(key);
    if (!found || (found->is_array() && found->empty())) return -1;
    int first = -1;
    for (const json& id : found->is_array() ? *found : json::array({*found})) {
      if (!json_is<index_t>(id) || id.get<index_t>() < 0 || id.get<index_t>() >= vocabulary)
        refuse(key, "a token id below vocab_size (" + std::to_string(vocabulary) + "), a list of them, or null");
      if (first < 0) first = id.get<int>();
    }
    return first;
  }

  const std::string& where() const { return where_; }

 private:
  const json& object_;
  std::string where_;
};

bool is_llama(const config_reader& file) {
  const json* listed = file.value("architectures");
  const std::string type = file.text("model_type", "");
  std::string name;
  if (listed) {
    if (!listed->is_array() || listed->size() != 1 || !listed->front().is_string())
      file.refuse("architectures", "a list of one name");
    name = listed->front().get<std::string>();
  } else {
    name = type == "llama" ? "LlamaForCausalLM" : type == "mistral" ? "MistralForCausalLM" : "";
    if (name.empty())
      throw error(file.where() + ": \"architectures\" is missing, so what model this is cannot be told");
  }
  if (name != "MistralForCausalLM" && name != "LlamaForCausalLM")
    throw error(file.where() + ": the architecture \"" + name.substr(0, 60) +
                "\" is not supported; MistralForCausalLM and LlamaForCausalLM are");
  const bool llama = name == "LlamaForCausalLM";
  if (!type.empty() && type != (llama ? "llama" : "mistral"))
    file.refuse("model_type", std::string("\"") + (llama ? "llama" : "mistral") + "\" for the architecture " + name);
  return llama;
}

/// rope_theta, after checking that no scaling goes with it. transformers up to 4 writes rope_theta and rope_scaling;
/// transformers 5 writes both into rope_parameters, which then stands above a rope_theta beside it.
double read_rope(const config_reader& file) {
  double theta = file.positive("rope_theta", 10000.0, 1e15);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json* found = file.value(key);
    if (!found) continue;
    if (!found->is_object()) file.refuse(key, "an object or null");
    const config_reader rope(*found, file.where() + ", " + key);
    const std::string type = rope.text("rope_type", rope.text("type", "default"));
    if (type != "default")
      throw error(rope.where() + ": rope scaling of type \"" + type.substr(0, 60) +
                  "\" is not supported; only unscaled (\"default\") rotary embeddings are");
    if (rope.positive("partial_rotary_factor", 1.0, 1.0) != 1.0)
      rope.refuse("partial_rotary_factor", "1, for heads are rotated whole here");
    theta = rope.positive("rope_theta", theta, 1e15);
  }
  if (file.positive("partial_rotary_factor", 1.0, 1.0) != 1.0)
    file.refuse("partial_rotary_factor", "1, for heads are rotated whole here");
  return theta;
}

void refuse_what_the_forward_pass_lacks(const config_reader& file) {
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (file.flag(key, false)) file.refuse(key, "false: linears with a bias are not supported");
  const std::string activation = file.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") file.refuse("hidden_act", "\"silu\"");
}

std::string read_dtype(const config_reader& file) {
  const char* key = file.value("dtype") ? "dtype" : "torch_dtype";
  const std::string dtype = file.text(key, "bfloat16");
  constexpr std::array<std::string_view, 3> known = {"bfloat16", "float16", "float32"};
  for (const auto name : known)
    if (dtype == name) return dtype;
  file.refuse(key, "\"bfloat16\", \"float16\" or \"float32\"");
}

void read_heads(const config_reader& file, bool llama, config& c) {
  c.heads = file.extent("num_attention_heads");
  // MistralConfig's default is 8, but null there means one per head, as everywhere in LlamaConfig.
  const bool as_heads = llama || file.contains("num_key_value_heads");
  c.kv_heads = file.extent("num_key_value_heads", as_heads ? c.heads : 8);
  if (c.heads % c.kv_heads != 0)
    throw error(file.where() + ": \"num_attention_heads\" (" + std::to_string(c.heads) +
                ") must be a multiple of \"num_key_value_heads\" (" + std::to_string(c.kv_heads) + ")");
  if (!file.value("head_dim") && c.hidden % c.heads != 0)
    throw error(file.where() + ": \"hidden_size\" (" + std::to_string(c.hidden) +
                ") must be a multiple of \"num_attention_heads\" (" + std::to_string(c.heads) +
                ") where \"head_dim\" is not given");
  c.head_dim = file.extent("head_dim", c.hidden / c.heads);
  if (c.head_dim % 2 != 0)
    throw error(file.where() + ": \"head_dim\" must be even, for rotary embeddings turn pairs, but is " +
                std::to_string(c.head_dim));
  if (c.q_width() > largest_extent)
    throw error(file.where() + ": \"num_attention_heads\" times \"head_dim\" is " + std::to_string(c.q_width()) +
                ", more than any model has");
}

}  // namespace

config read_config(const std::filesystem::path& model) {
  if (is_gguf(model)) return read_gguf_config(gguf_file(model));
  const std::filesystem::path path = model / "config.json";
  return config_of_json(read_json(path), path.string());
}

config config_of_json(nlohmann::ordered_json json, const std::string& where) {
  config c;
  c.json = std::move(json);
  if (!c.json.is_object()) throw error(where + ": a config must be a JSON object");
  const config_reader file(c.json, where);
  const bool llama = is_llama(file);
  refuse_what_the_forward_pass_lacks(file);
  c.hidden = file.extent("hidden_size");
  c.intermediate = file.extent("intermediate_size");
  c.layers = file.extent("num_hidden_layers");
  c.vocabulary = file.extent("vocab_size");
  c.context = file.extent("max_position_embeddings", llama ? 2048 : 131072);
  read_heads(file, llama, c);
  // MistralConfig takes 4096 where the key is absent and no window where it is null.
  if (!llama) c.sliding_window = file.extent("sliding_window", file.contains("sliding_window") ? 0 : 4096);
  c.rms_norm_eps = static_cast<float>(file.positive("rms_norm_eps", 1e-6, 1.0));
  if (!(c.rms_norm_eps > 0.0f)) file.refuse("rms_norm_eps", "a number that a float can hold");
  c.rope_theta = read_rope(file);
  c.tied_embeddings = file.flag("tie_word_embeddings", false);
  c.bos = file.token("bos_token_id", 1, c.vocabulary);
  c.eos = file.token("eos_token_id", 2, c.vocabulary);
  c.dtype = read_dtype(file);
  return c;
}

}  // namespace nibble::mistral

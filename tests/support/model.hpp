// SPDX-License-Identifier: Apache-2.0
/// @file
/// Small models whose weights follow from a seed, the same here and in tests/golden/forward/make.py.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mistral/forward.hpp"
#include "mistral/places.hpp"
#include "mistral/safetensors.hpp"
#include "nibble/half.hpp"
#include "support/files.hpp"

namespace nibble::test {

/// What to make. Weights are uniform in [−scale, scale), the embedding's in [−1, 1), a norm's in [3/4, 5/4).
struct model_spec {
  index_t hidden = 64, intermediate = 128, layers = 2, heads = 4, kv_heads = 2, head_dim = 16;
  index_t vocabulary = 2048;  ///< the embedded model's tokenizer has as many
  index_t context = 512, sliding_window = 0;
  bool tied = false, llama = false;
  dtype stored = dtype::bf16;
  float scale = 0.25f;
  double rope_theta = 10000;
  std::uint64_t seed = 1;
};

/// SplitMix64's output function. Source: Steele, Lea and Flood, OOPSLA 2014.
inline std::uint64_t mixed(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

/// Tensor `name` of the model `seed`: element i is middle + scale · u, u uniform in [−1, 1) in steps of 2^−23.
inline std::vector<float> random_values(std::uint64_t seed, const std::string& name, index_t count, float middle,
                                        float scale) {
  std::uint64_t state = seed;
  for (const char letter : name) state = mixed(state ^ static_cast<unsigned char>(letter));
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    const float u = static_cast<float>(mixed(state + i) >> 40) * 0x1p-23f - 1.0f;
    values[i] = middle + scale * u;
  }
  return values;
}

inline const char* stored_name(dtype type) {
  return type == dtype::f32 ? "F32" : type == dtype::f16 ? "F16" : "BF16";
}

inline nlohmann::ordered_json config_json(const model_spec& m) {
  nlohmann::ordered_json json = {{"architectures", {m.llama ? "LlamaForCausalLM" : "MistralForCausalLM"}},
                                 {"model_type", m.llama ? "llama" : "mistral"},
                                 {"vocab_size", m.vocabulary},
                                 {"hidden_size", m.hidden},
                                 {"intermediate_size", m.intermediate},
                                 {"num_hidden_layers", m.layers},
                                 {"num_attention_heads", m.heads},
                                 {"num_key_value_heads", m.kv_heads},
                                 {"head_dim", m.head_dim},
                                 {"hidden_act", "silu"},
                                 {"max_position_embeddings", m.context},
                                 {"rms_norm_eps", 1e-5},
                                 {"rope_theta", m.rope_theta},
                                 {"tie_word_embeddings", m.tied},
                                 {"bos_token_id", 1},
                                 {"eos_token_id", 2},
                                 {"torch_dtype", m.stored == dtype::f32   ? "float32"
                                                 : m.stored == dtype::f16 ? "float16"
                                                                          : "bfloat16"}};
  if (!m.llama) json["sliding_window"] = m.sliding_window > 0 ? nlohmann::ordered_json(m.sliding_window) : nullptr;
  return json;
}

/// A tensor on its way into a model: tests change it, or drop it by emptying its shape.
struct made_tensor {
  std::string name;
  std::vector<index_t> shape;
  std::vector<float> values;
};
using tensor_change = std::function<void(made_tensor&)>;

namespace detail {

template <class T>
void add_stored(mistral::safetensors_writer& out, const made_tensor& t, dtype type) {
  const std::vector<T> stored(t.values.begin(), t.values.end());
  out.add(t.name, stored_name(type), t.shape, stored.data(), stored.size() * sizeof(T));
}

}  // namespace detail

/// Writes config.json and the weights into `directory`, which it makes; tensors in the order of a forward pass.
inline void write_weights(const model_spec& m, const fs::path& directory, const tensor_change& change = nullptr,
                          std::uint64_t max_shard_bytes = 5'000'000'000) {
  fs::create_directories(directory);
  const auto json = config_json(m);
  write_bytes(directory / "config.json", json.dump(1));
  const mistral::config c = mistral::read_config(directory);
  mistral::safetensors_writer out(directory, max_shard_bytes);
  const auto add = [&](const std::string& name, const std::vector<index_t>& shape, float middle, float scale) {
    index_t count = 1;
    for (const index_t extent : shape) count *= extent;
    made_tensor t = {name, shape, random_values(m.seed, name, count, middle, scale)};
    if (change) change(t);
    if (t.shape.empty()) return;
    if (m.stored == dtype::f32) return detail::add_stored<float>(out, t, m.stored);
    if (m.stored == dtype::f16) return detail::add_stored<fp16>(out, t, m.stored);
    detail::add_stored<bf16>(out, t, m.stored);
  };
  add("model.embed_tokens.weight", {m.vocabulary, m.hidden}, 0.0f, 1.0f);
  for (index_t layer = 0; layer < m.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {m.hidden}, 1.0f, 0.25f);
    add(prefix + "post_attention_layernorm.weight", {m.hidden}, 1.0f, 0.25f);
    for (const auto p : mistral::projections)
      add(mistral::projection_name(layer, p) + ".weight", {outputs(c, p), inputs(c, p)}, 0.0f, m.scale);
  }
  add("model.norm.weight", {m.hidden}, 1.0f, 0.25f);
  if (!m.tied) add("lm_head.weight", {m.vocabulary, m.hidden}, 0.0f, m.scale);
  out.finish();
}

/// The files of the model that comes with awq_mistral.
inline fs::path embedded(const std::string& name) {
  return fs::path(mistral::source_directory) / "examples/awq_mistral" / name;
}

/// Gives `directory` the embedded model's tokenizer.
inline void copy_tokenizer(const fs::path& directory) {
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                           "generation_config.json"})
    fs::copy_file(embedded("model") / name, directory / name);
}

/// A recipe of GPTQ whose attention is coarse, so that the residual stream drifts far before down reads what the MLP makes of it, and
/// whose down is fine, so that what it gives is what it aims at.
inline constexpr const char* rough_attention = R"(default_stage:
  default_modifiers:
    GPTQModifier:
      ignore: [lm_head, 're:.*gate_proj', 're:.*up_proj']
      config_groups:
        attention:
          targets: ['re:.*self_attn.*']
          weights: {num_bits: 2, type: int, symmetric: false, strategy: group, group_size: 32}
        down:
          targets: ['re:.*down_proj']
          weights: {num_bits: 8, type: int, symmetric: false, strategy: group, group_size: 32}
)";

/// A whole model: config, weights, tokenizer.
inline void write_model(const model_spec& m, const fs::path& directory, const tensor_change& change = nullptr,
                        std::uint64_t max_shard_bytes = 5'000'000'000) {
  write_weights(m, directory, change, max_shard_bytes);
  copy_tokenizer(directory);
}

}  // namespace nibble::test

// SPDX-License-Identifier: Apache-2.0
#include "gguf_model.hpp"

#include <array>
#include <limits>
#include <system_error>

#include "error.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

struct name_pair {
  std::string_view checkpoint, gguf;
};
constexpr std::array<name_pair, 3> model_names = {
    {{"model.embed_tokens", "token_embd"}, {"model.norm", "output_norm"}, {"lm_head", "output"}}};
constexpr std::array<name_pair, 9> layer_names = {{{"input_layernorm", "attn_norm"},
                                                   {"self_attn.q_proj", "attn_q"},
                                                   {"self_attn.k_proj", "attn_k"},
                                                   {"self_attn.v_proj", "attn_v"},
                                                   {"self_attn.o_proj", "attn_output"},
                                                   {"post_attention_layernorm", "ffn_norm"},
                                                   {"mlp.gate_proj", "ffn_gate"},
                                                   {"mlp.up_proj", "ffn_up"},
                                                   {"mlp.down_proj", "ffn_down"}}};
constexpr std::string_view layers = "model.layers.", blocks = "blk.";

template <size_t Count>
std::string translated(const std::array<name_pair, Count>& names, std::string_view name,
                       std::string_view name_pair::*from, std::string_view name_pair::*to) {
  for (const name_pair& each : names) {
    const std::string_view stem = each.*from;
    if (name.size() > stem.size() && name.substr(0, stem.size()) == stem && name[stem.size()] == '.')
      return std::string(each.*to) + std::string(name.substr(stem.size()));
  }
  return "";
}

std::string renamed(std::string_view name, std::string_view prefix, std::string_view new_prefix,
                    std::string_view name_pair::*from, std::string_view name_pair::*to) {
  if (name.substr(0, prefix.size()) != prefix) return translated(model_names, name, from, to);
  name.remove_prefix(prefix.size());
  const size_t dot = name.find('.');
  if (dot == 0 || dot == name.npos || name.substr(0, dot).find_first_not_of("0123456789") != name.npos) return "";
  const std::string rest = translated(layer_names, name.substr(dot + 1), from, to);
  return rest.empty() ? "" : std::string(new_prefix) + std::string(name.substr(0, dot + 1)) + rest;
}

/// A whole number that a config may hold.
index_t extent(const gguf_file& file, std::string_view key) {
  const std::uint64_t value = file.whole(key);
  if (value < 1 || value > static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max()))
    throw error(file.path().string() + ": the key \"" + std::string(key) + "\" must be from 1 to 2147483647, but is " +
                std::to_string(value));
  return static_cast<index_t>(value);
}

void refuse_what_the_forward_pass_lacks(const gguf_file& file) {
  const std::string where = file.path().string();
  if (const auto& arch = file.get<std::string>("general.architecture"); arch != "llama")
    throw error(where + ": the architecture \"" + utf8_repaired(arch.substr(0, 60)) +
                "\" is not supported; \"llama\" is, which Mistral models have too");
  if (file.whole("llama.expert_count", 0) != 0)
    throw error(where + ": \"llama.expert_count\" must be 0: models of experts are not supported");
  if (file.find("llama.rope.scaling.type") && file.get<std::string>("llama.rope.scaling.type") != "none")
    throw error(where + ": \"llama.rope.scaling.type\" must be \"none\": scaled rotary embeddings are not supported");
  if (file.find_tensor("rope_freqs.weight"))
    throw error(where + ": the tensor \"rope_freqs.weight\" scales rotary embeddings, which is not supported");
}

/// tokenizer.ggml.KEY_token_id, or null.
nlohmann::ordered_json token_id(const gguf_file& file, const char* key, index_t vocabulary) {
  const std::string name = std::string("tokenizer.ggml.") + key + "_token_id";
  if (!file.find(name)) return nullptr;
  const std::uint64_t id = file.whole(name);
  if (id >= static_cast<std::uint64_t>(vocabulary))
    throw error(file.path().string() + ": \"" + name + "\" is " + std::to_string(id) + ", no id of the vocabulary of " +
                std::to_string(vocabulary));
  return id;
}

}  // namespace

bool is_gguf(const std::filesystem::path& model) {
  std::error_code failed;
  return model.extension() == ".gguf" && std::filesystem::is_regular_file(model, failed);
}

std::string gguf_name(std::string_view name) {
  return renamed(name, layers, blocks, &name_pair::checkpoint, &name_pair::gguf);
}

std::string checkpoint_name(std::string_view name) {
  return renamed(name, blocks, layers, &name_pair::gguf, &name_pair::checkpoint);
}

bool rows_are_paired(std::string_view name) {
  const auto ends = [&](std::string_view with) {
    return name.size() >= with.size() && name.substr(name.size() - with.size()) == with;
  };
  return ends(".attn_q.weight") || ends(".attn_k.weight");
}

config read_gguf_config(const gguf_file& file) {
  refuse_what_the_forward_pass_lacks(file);
  const gguf_tensor* table = file.find_tensor("token_embd.weight");
  if (!table || table->dims.size() != 2)
    throw error(file.path().string() + ": the tensor \"token_embd.weight\" is missing, or is no matrix");
  const auto vocabulary = static_cast<index_t>(table->dims[1]);
  nlohmann::ordered_json json = {{"architectures", {"LlamaForCausalLM"}}, {"model_type", "llama"}};
  json["vocab_size"] = vocabulary;
  json["hidden_size"] = extent(file, "llama.embedding_length");
  json["intermediate_size"] = extent(file, "llama.feed_forward_length");
  json["num_hidden_layers"] = extent(file, "llama.block_count");
  json["max_position_embeddings"] = extent(file, "llama.context_length");
  const index_t heads = extent(file, "llama.attention.head_count");
  json["num_attention_heads"] = heads;
  json["num_key_value_heads"] =
      file.find("llama.attention.head_count_kv") ? extent(file, "llama.attention.head_count_kv") : heads;
  if (file.find("llama.attention.key_length")) json["head_dim"] = extent(file, "llama.attention.key_length");
  json["rms_norm_eps"] = file.get<float>("llama.attention.layer_norm_rms_epsilon");
  json["rope_theta"] = file.find("llama.rope.freq_base") ? file.get<float>("llama.rope.freq_base") : 10000.0f;
  json["tie_word_embeddings"] = file.find_tensor("output.weight") == nullptr;
  json["bos_token_id"] = token_id(file, "bos", vocabulary);
  json["eos_token_id"] = token_id(file, "eos", vocabulary);
  json["torch_dtype"] = "bfloat16";
  config c = config_of_json(std::move(json), file.path().string());
  for (const char* key : {"llama.attention.value_length", "llama.rope.dimension_count"})
    if (file.whole(key, static_cast<std::uint64_t>(c.head_dim)) != static_cast<std::uint64_t>(c.head_dim))
      throw error(file.path().string() + ": \"" + key + "\" must be the " + std::to_string(c.head_dim) +
                  " of a head's keys, but is " + std::to_string(file.whole(key)));
  return c;
}

std::string read_gguf_chat_template(const gguf_file& file) {
  const auto* value = file.find("tokenizer.chat_template");
  if (!value) return "";
  const auto& source = file.get<std::string>("tokenizer.chat_template");
  if (utf8_error(source) != std::string::npos)
    throw error(file.path().string() + ": \"tokenizer.chat_template\" is not UTF-8");
  return source;
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// config.json of a Mistral (or Llama) model, checked.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "nibble/core.hpp"

namespace nibble::mistral {

/// The architecture. All extents are positive and fit each other once read_config returned them.
struct config {
  index_t hidden = 0;          ///< hidden_size
  index_t intermediate = 0;    ///< intermediate_size
  index_t layers = 0;          ///< num_hidden_layers
  index_t heads = 0;           ///< num_attention_heads
  index_t kv_heads = 0;        ///< num_key_value_heads; divides heads
  index_t head_dim = 0;        ///< even; hidden / heads unless the file says otherwise
  index_t vocabulary = 0;      ///< vocab_size
  index_t context = 0;         ///< max_position_embeddings
  index_t sliding_window = 0;  ///< tokens a query sees, itself included; 0: all
  float rms_norm_eps = 1e-5f;
  double rope_theta = 10000.0;
  bool tied_embeddings = false;    ///< tie_word_embeddings: the head is the embedding
  int bos = 1, eos = 2;            ///< token ids, the first where the file lists several; −1: none
  std::string dtype = "bfloat16";  ///< torch_dtype or dtype
  nlohmann::ordered_json json;     ///< the whole file, as read

  index_t q_width() const { return heads * head_dim; }
  index_t kv_width() const { return kv_heads * head_dim; }
};

/// Reads MODEL/config.json, or the keys of a GGUF file. @throws error naming the file and key, for a value that makes no model, an architecture
/// other than MistralForCausalLM and LlamaForCausalLM, or a feature that the forward pass lacks (rope scaling, biases).
config read_config(const std::filesystem::path& model);

/// The same from what the file holds; `where` names it in messages.
config config_of_json(nlohmann::ordered_json json, const std::string& where);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// A Mistral or Llama model in a GGUF file, as llama.cpp has it: architecture `llama`. Names differ from a checkpoint's, and
/// the rows of the q and k projections lie so that what rotary embeddings turn together are neighbours: in each head of d rows,
///     row 2i + p of the file = row p·d/2 + i of the checkpoint,   p = 0, 1,  i < d/2
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "config.hpp"
#include "gguf.hpp"

namespace nibble::mistral {

/// Whether `model` is a GGUF file and no directory: a file whose name ends in .gguf.
bool is_gguf(const std::filesystem::path& model);

/// "blk.3.attn_q.weight" for "model.layers.3.self_attn.q_proj.weight", and back; empty for a name that has no other.
std::string gguf_name(std::string_view checkpoint_name);
std::string checkpoint_name(std::string_view gguf_name);

/// Whether a tensor of the file is of a projection whose rows are moved.
bool rows_are_paired(std::string_view gguf_name);

/// The row of the file that holds row `row` of the checkpoint. @param head_dim even
constexpr index_t paired_row(index_t row, index_t head_dim) {
  const index_t within = row % head_dim, half = head_dim / 2;
  return row - within + 2 * (within % half) + within / half;
}

/// The settings that the file's keys tell, as read_config has them from config.json.
/// @throws error naming file and key: one that is missing, another architecture, experts, or rotary embeddings that are scaled.
config read_gguf_config(const gguf_file& file);

/// tokenizer.chat_template, empty where there is none.
std::string read_gguf_chat_template(const gguf_file& file);

}  // namespace nibble::mistral

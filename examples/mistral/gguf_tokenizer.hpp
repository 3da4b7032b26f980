// SPDX-License-Identifier: Apache-2.0
/// @file
/// A tokenizer as the keys tokenizer.ggml.* of a GGUF file tell it: model `llama`, SentencePiece's tokens and scores, or
/// `gpt2`, byte-level tokens and merges with the pattern that `pre` names.
#pragma once

#include <filesystem>
#include <memory>

#include "config.hpp"
#include "gguf.hpp"
#include "tokenizer_files.hpp"

namespace nibble::mistral {

/// llama.cpp's types of tokens that it finds in a text before it makes tokens of the rest: <unk>, those such as <s> and [INST], and others
/// that were added.
inline constexpr std::int32_t unknown_token = 2, control_token = 3, user_token = 4;

/// Adds the keys of a model directory's tokenizer, its chat template's included. Ids that only the embedding has become
/// unused tokens [PAD…].
/// @throws error naming the file: more tokens than config.json has, or a tokenizer that llama.cpp has no name for.
void add_tokenizer(gguf_metadata& out, const std::filesystem::path& model, const config& c);

/// Which tokens begin and end a text.
tokenizer_settings read_gguf_tokenizer_settings(const gguf_file& file);

/// @throws error naming the file and key: another model or pattern than those above.
std::unique_ptr<tokenizer> read_gguf_tokenizer(const gguf_file& file);

}  // namespace nibble::mistral

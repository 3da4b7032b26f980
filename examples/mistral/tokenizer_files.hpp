// SPDX-License-Identifier: Apache-2.0
/// @file
/// The two kinds of tokenizer file, and what open_tokenizer reads beside them.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "tokenizer.hpp"

namespace nibble::mistral {

/// What tokenizer_config.json, special_tokens_map.json and config.json say about a tokenizer.
struct tokenizer_settings {
  std::optional<std::string> bos = "<s>", eos = "</s>";
  std::optional<bool> add_bos, add_eos;  ///< unset: as the tokenizer's own file says
  bool mistral = false;                  ///< config.json says that the model is one of Mistral's
};

/// @throws error naming the file that is no JSON object or says something else than it may.
tokenizer_settings read_tokenizer_settings(const std::filesystem::path& model);

/// tokenizer.json, a byte-pair encoding. @throws error naming the file.
std::unique_ptr<tokenizer> read_tokenizer_json(const std::filesystem::path& file, const tokenizer_settings& settings);

/// tokenizer.model, through libsentencepiece. @throws error naming the file.
std::unique_ptr<tokenizer> read_tokenizer_model(const std::filesystem::path& file, const tokenizer_settings& settings);

/// The bytes of a tokenizer.model, before libsentencepiece reads them. @throws error naming `where` for what the library
/// does not survive, and for a normalization or a model type that no Mistral has.
void check_sentencepiece_model(std::string_view bytes, const std::string& where);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The two kinds of tokenizer file, and what open_tokenizer reads beside them.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

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

}  // namespace nibble::mistral

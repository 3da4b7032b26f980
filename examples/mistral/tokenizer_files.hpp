// SPDX-License-Identifier: Apache-2.0
/// @file
/// The two kinds of tokenizer file, and what open_tokenizer reads beside them.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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

/// Split patterns of byte-level tokenizers: what conversions of Tekken wrote for years, which is Llama 3's, and what Mistral
/// trained with.
inline constexpr std::string_view converted_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view tekken_pattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// tokenizer.json, a byte-pair encoding. @throws error naming the file.
std::unique_ptr<tokenizer> read_tokenizer_json(const std::filesystem::path& file, const tokenizer_settings& settings);
/// The same from what the file would hold; `where` names it in messages.
std::unique_ptr<tokenizer> make_json_tokenizer(const nlohmann::json& file, const std::string& where,
                                               const tokenizer_settings& settings);

/// tokenizer.model, through libsentencepiece. @throws error naming the file.
std::unique_ptr<tokenizer> read_tokenizer_model(const std::filesystem::path& file, const tokenizer_settings& settings);
/// The same from the file's bytes; `where` names it in messages.
std::unique_ptr<tokenizer> make_sentencepiece_tokenizer(const std::string& bytes, const std::string& where,
                                                        const tokenizer_settings& settings);

/// A token of a tokenizer.model. Types are SentencePiece's: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
struct sentencepiece_piece {
  std::string text;
  float score = 0;
  int type = 1;
};
/// What a tokenizer.model says of its tokens.
struct sentencepiece_model {
  std::vector<sentencepiece_piece> pieces;  ///< by id
  bool prefixed = true;                     ///< add_dummy_prefix
  bool merges = false;                      ///< BPE, not unigram
};
/// @pre check_sentencepiece_model went through.
sentencepiece_model read_sentencepiece_model(std::string_view bytes, const std::string& where);
/// The bytes of a tokenizer.model (BPE) of these tokens, byte fallback where any token is a byte.
std::string sentencepiece_model_bytes(const sentencepiece_model& model);

/// The bytes of a tokenizer.model, before libsentencepiece reads them. @throws error naming `where` for what the library
/// does not survive, and for a normalization or a model type that no Mistral has.
void check_sentencepiece_model(std::string_view bytes, const std::string& where);

}  // namespace nibble::mistral

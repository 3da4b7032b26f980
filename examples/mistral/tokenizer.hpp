// SPDX-License-Identifier: Apache-2.0
/// @file
/// Text ↔ token ids, from tokenizer.json (BPE: byte-level as in Tekken, or byte-fallback as in Mistral-7B) or
/// tokenizer.model (SentencePiece).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core.hpp"

namespace nibble::mistral {

class tokenizer {
 public:
  virtual ~tokenizer() = default;
  /// Ids of `text`, special tokens written in it recognised as the `tokenizers` package does, none added. Thread-safe.
  /// Bytes that are not UTF-8 count as U+FFFD, as Python's errors="replace" makes of them.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// encode with what the model's tokenizer puts around a text of its own accord: BOS before, for Mistral.
  virtual std::vector<int32_t> encode_framed(std::string_view text) const = 0;
  /// Text of ids; special tokens left out unless asked for. @throws error for an id outside [0, vocabulary()).
  virtual std::string decode(const std::vector<int32_t>& ids, bool keep_special = false) const = 0;
  virtual index_t vocabulary() const = 0;  ///< ids are in [0, vocabulary())
  virtual int32_t bos() const = 0;         ///< −1 where there is none
  virtual int32_t eos() const = 0;
};

/// The tokenizer of a GGUF file, or of a model directory: tokenizer.json if there, else tokenizer.model. Which tokens begin and end a text
/// is read from tokenizer_config.json, else special_tokens_map.json, else they are <s> and </s>.
/// @throws error naming the file.
std::unique_ptr<tokenizer> open_tokenizer(const std::filesystem::path& model);

}  // namespace nibble::mistral

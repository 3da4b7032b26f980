// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a tokenizer.json does around its model, as functions: normalizer, pre_tokenizer, post_processor, decoder.
/// A kind that is not implemented is refused by name, for a guess would give other ids than the model was trained on.
/// Source: the `tokenizers` package, components of these names.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibble::mistral {

/// A part of the text on its way to the model.
struct piece {
  std::string text;
  bool first;  ///< it begins where the whole text begins
};

using normalizer = std::function<std::string(std::string)>;
using pre_tokenizer = std::function<std::vector<piece>(std::vector<piece>)>;
using text_decoder = std::function<std::vector<std::string>(std::vector<std::string>)>;

/// What the post_processor puts around the ids of a text.
struct framing {
  std::vector<int32_t> before, after;
};

/// Each takes the component's JSON, null included. @throws error naming `where` and the kind.
normalizer read_normalizer(const nlohmann::json& component, const std::string& where);  ///< Prepend, Replace, Sequence
/// Metaspace, Split (isolated), ByteLevel, Sequence.
pre_tokenizer read_pre_tokenizer(const nlohmann::json& component, const std::string& where);
/// TemplateProcessing (its single form), ByteLevel (nothing), Sequence.
framing read_post_processor(const nlohmann::json& component, const std::string& where);
/// Replace, ByteFallback, Fuse, Strip, ByteLevel, Metaspace, Sequence. The texts it returns are joined.
text_decoder read_decoder(const nlohmann::json& component, const std::string& where);

}  // namespace nibble::mistral

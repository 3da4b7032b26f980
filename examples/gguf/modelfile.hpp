// SPDX-License-Identifier: Apache-2.0
/// @file
/// The Modelfile that `ollama create` takes beside a GGUF file: where the weights are, how a dialogue becomes a prompt, where
/// answers end. Source: ollama/ollama, docs/modelfile and docs/template.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "mistral/chat.hpp"
#include "mistral/gguf.hpp"
#include "mistral/tokenizer.hpp"

namespace nibble::mistral {

/// The text for a model with this chat template; null: a model without dialogues, whose prompt is the text itself.
/// What stands around messages, where a system message goes and what the template says without one are what it makes of
/// dialogues of known words; dates of today and yesterday in it stay today's and yesterday's.
/// @param weights  the GGUF file, in the same directory. @param bos  what Ollama adds itself, empty for nothing.
/// @param spaced  tokens behind which llama.cpp adds a space: one that the chat template writes there is left out.
/// @param notes  gets what Ollama will do otherwise.
std::string modelfile_text(const std::filesystem::path& weights, const chat_template* chat, const std::string& bos,
                           const std::vector<std::string>& spaced, std::vector<std::string>& notes);

/// Special tokens of the file behind which llama.cpp puts a space into the text, as it does before a text, where the model's own
/// tokenizer puts none, or none before a space. @pre the keys of `file` are those of add_tokenizer().
std::vector<std::string> spaced_tokens(const gguf_metadata& file, const tokenizer& own);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The Modelfile that `ollama create` takes beside a GGUF file: where the weights are, how a dialogue becomes a prompt, where
/// answers end. Source: ollama/ollama, docs/modelfile.
#pragma once

#include <filesystem>
#include <string>

namespace nibble::mistral {

/// The text for a model whose chat template writes dialogues so (chat_template::name()); empty: a model without dialogues,
/// whose prompt is the text itself. @param weights  the GGUF file, in the same directory.
std::string modelfile_text(const std::filesystem::path& weights, const std::string& dialect, const std::string& eos);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The Mistral chat templates, recognised by their text in tokenizer_config.json or chat_template.jinja and rendered as
/// transformers' apply_chat_template does. A template that is none of them is refused: guessing would calibrate on text
/// the model never sees.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace nibble::mistral {

struct message {
  std::string role;     ///< "system", "user", "assistant"
  std::string content;
};

class chat_template {
 public:
  virtual ~chat_template() = default;
  /// The prompt text, special tokens written out (BOS included). @throws error where the template raises one.
  virtual std::string render(const std::vector<message>& messages) const = 0;
  virtual std::string name() const = 0;
};

/// The model's template; null when it has none. @throws error for a template that is not recognised.
std::unique_ptr<chat_template> open_chat_template(const std::filesystem::path& model);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model's chat template, rendered as transformers' apply_chat_template does (no tools). It is
/// taken for one of Mistral's by what it makes of a probe dialogue; any other is refused, since nothing here has seen
/// what such a model was trained on.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace nibble::mistral {

struct message {
  std::string role;  ///< "system", "user", "assistant"
  std::string content;
};

class chat_template {
 public:
  virtual ~chat_template() = default;
  /// The prompt text, special tokens written out (BOS included). A template that asks for the date gets today's, or that
  /// of SOURCE_DATE_EPOCH. @param generation_prompt  whether the assistant is to speak next (add_generation_prompt).
  /// @throws error where the template raises one, with its words.
  virtual std::string render(const std::vector<message>& messages, bool generation_prompt = false) const = 0;
  /// How it writes a dialogue: "v1" ([INST] u [/INST]a), "v3" ([INST] u[/INST] a), "v3-tekken" ([INST]u[/INST]a), "v7"
  /// and "v7-tekken" (the same with [SYSTEM_PROMPT]).
  virtual std::string name() const = 0;
};

/// A template's text, empty where the model has none, and the file that it is from.
struct chat_template_text {
  std::filesystem::path file;
  std::string source;
};

/// As open_chat_template, unread: any model's. @throws error naming the file that is damaged.
chat_template_text read_chat_template(const std::filesystem::path& model);

/// The model's template: chat_template.jinja, else chat_template in tokenizer_config.json (of several, "default"), or
/// a GGUF file's; null when it has none. @throws error naming the file for a template that is none of Mistral's.
std::unique_ptr<chat_template> open_chat_template(const std::filesystem::path& model);

/// A line's "messages": a list of objects with role and content. @throws error naming `where` for anything else.
std::vector<message> read_messages(const nlohmann::ordered_json& list, const std::string& where);

}  // namespace nibble::mistral

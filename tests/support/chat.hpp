// SPDX-License-Identifier: Apache-2.0
/// @file
/// Chat templates beside the embedded model's tokenizer.
#pragma once

#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "mistral/chat.hpp"
#include "mistral/json.hpp"
#include "support/tokens.hpp"

namespace nibble::test {

/// SOURCE_DATE_EPOCH for as long as a test needs one day to be today.
struct fixed_day {
  explicit fixed_day(const char* seconds) { ::setenv("SOURCE_DATE_EPOCH", seconds, 1); }
  ~fixed_day() { ::unsetenv("SOURCE_DATE_EPOCH"); }
};

/// The embedded model's tokenizer and `source` as its template (null: its own).
inline std::unique_ptr<mistral::chat_template> open_chat(const nlohmann::json& source) {
  model_files model;
  auto config = mistral::read_json<nlohmann::json>(embedded_model() / "tokenizer_config.json");
  if (!source.is_null()) config["chat_template"] = source;
  model.add_json("tokenizer_config.json", config);
  return mistral::open_chat_template(model.path());
}

}  // namespace nibble::test

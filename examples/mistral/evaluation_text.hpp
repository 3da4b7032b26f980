// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a model is evaluated on: texts whose ids it predicts, and questions it answers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "evaluate.hpp"
#include "tokenizer.hpp"

namespace nibble::mistral {

/// Tokens of an answer at most.
inline constexpr index_t answer_tokens = 50;

struct question {
  std::string where;                  ///< "path, line 3"
  std::string prompt;                 ///< as it stands in the file
  std::vector<std::int32_t> ids;      ///< of the prompt, with what the tokenizer adds of its own accord (BOS)
  std::vector<std::string> accepted;  ///< answers, normalised
};

struct evaluation_text {
  std::vector<std::string> documents;
  std::vector<std::int32_t> ids;      ///< those of all documents end to end, BOS before each
  std::vector<index_t> starts = {0};  ///< document i has ids [starts[i], starts[i + 1])
  std::vector<question> questions;
  std::string sha256;  ///< of the file
};

/// Reads `file`, which must be UTF-8:
///  - .jsonl: an object a line (blank lines skipped), each a document of its own:
///      "text"                  the text; an empty one is passed over;
///      "prompt" and "answer"   a question; "answer" is an accepted answer or an array of them. Its document is the prompt
///                              and the first accepted answer, a space between unless the prompt ends in white space;
///  - any other name: the whole file is one document. `.json` is refused, which is neither.
/// @throws error naming file and line for anything else, for a file without text, and when the tokenizer has no BOS.
evaluation_text read_evaluation_text(const std::filesystem::path& file, const tokenizer& tok);

/// The windows over each document by itself, in order; window.begin counts from the first document's first id.
/// @throws as plan_windows of evaluate.hpp.
std::vector<window> plan_windows(const evaluation_text& text, index_t context, const window_options& options);

/// @throws error naming the first question that does not fit into the context with its answer.
void check_room(const evaluation_text& text, index_t context);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model answers the questions of an evaluation text and is judged by what it says.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "answers.hpp"
#include "decode.hpp"
#include "evaluation_text.hpp"
#include "tokenizer.hpp"

namespace nibble::mistral {

struct given_answer {
  std::string text;  ///< answer_of what was generated
  verdict judged;
};

struct answered_questions {
  answer_figures figures;
  std::vector<given_answer> answers;  ///< in the questions' order
};

/// Generates an answer to each prompt as it stands, greedily: the most probable token each time, until one of `stop` or
/// answer_tokens of them.
/// @param done told of how many questions are answered.
answered_questions answer_questions(decoder& model, const tokenizer& tok, const std::vector<question>& questions,
                                    const std::vector<std::int32_t>& stop,
                                    const std::function<void(index_t)>& done = nullptr);

/// Each question with what the models gave: {"prompt", "accepted", "given": [{"text", "exact", "contained",
/// "abstained"}, …]}.
nlohmann::ordered_json answers_json(const std::vector<question>& questions,
                                    const std::vector<answered_questions>& models);
/// Shares by model; a row has the model's name.
std::string answers_table(const std::vector<std::pair<std::string, const answer_figures*>>& rows);
/// Adds accuracy, exact_match and abstained, shares of the questions.
void add_answers(nlohmann::ordered_json& out, const answer_figures& f);

}  // namespace nibble::mistral

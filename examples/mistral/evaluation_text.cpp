// SPDX-License-Identifier: Apache-2.0
#include "evaluation_text.hpp"

#include "answers.hpp"
#include "json.hpp"
#include "sha256.hpp"
#include "text_file.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

using nlohmann::ordered_json;

void add_document(evaluation_text& out, std::string text, const tokenizer& tok) {
  const std::vector<int32_t> ids = tok.encode(text);
  if (ids.empty()) return;
  out.ids.push_back(tok.bos());
  out.ids.insert(out.ids.end(), ids.begin(), ids.end());
  out.starts.push_back(static_cast<index_t>(out.ids.size()));
  out.documents.push_back(std::move(text));
}

std::vector<std::string> read_answers(const ordered_json& object, const std::string& where) {
  const auto found = object.find("answer");
  if (found == object.end()) throw error(where + ": the key \"answer\" is missing beside \"prompt\"");
  std::vector<std::string> answers;
  if (found->is_string()) answers.push_back(found->get<std::string>());
  if (found->is_array())
    for (const ordered_json& each : *found)
      if (each.is_string()) answers.push_back(each.get<std::string>());
  if (answers.empty() || (found->is_array() && answers.size() != found->size()))
    throw error(where + ": \"answer\" must be a string or an array of strings, at least one, but is " +
                excerpt(*found));
  return answers;
}

void add_question(evaluation_text& out, const ordered_json& object, const std::string& where, const tokenizer& tok) {
  question q;
  q.where = where;
  q.prompt = json_get<std::string>(object, "prompt", where);
  q.ids = tok.encode_framed(q.prompt);
  if (tok.encode(q.prompt).empty()) throw error(where + ": \"prompt\" is empty");
  const std::vector<std::string> answers = read_answers(object, where);
  for (const std::string& each : answers) {
    q.accepted.push_back(normalised_answer(each));
    if (q.accepted.back().empty())
      throw error(where + ": the answer " + excerpt(ordered_json(each)) +
                  " has no letter or digit left once punctuation is removed, so no answer could be compared with it");
  }
  size_t last = q.prompt.size() - 1;
  while (utf8_length(q.prompt, last) == 0) --last;
  const bool apart = is_white_space(utf8_value(q.prompt, last));
  add_document(out, q.prompt + (apart ? "" : " ") + answers.front(), tok);
  out.questions.push_back(std::move(q));
}

void add_line(evaluation_text& out, const jsonl_line& line, const tokenizer& tok) {
  const auto object = parse_json(line.text, line.where);
  const bool has_text = object.is_object() && object.contains("text");
  const bool has_prompt = object.is_object() && object.contains("prompt");
  if (has_text && has_prompt)
    throw error(line.where + " has both \"text\" and \"prompt\"; a line is either a text or a question");
  if (has_text) return add_document(out, json_get<std::string>(object, "text", line.where), tok);
  if (has_prompt) return add_question(out, object, line.where, tok);
  throw error(line.where + " has neither \"text\" nor \"prompt\" and \"answer\"");
}

}  // namespace

evaluation_text read_evaluation_text(const std::filesystem::path& file, const tokenizer& tok) {
  if (tok.bos() < 0)
    throw error(file.string() + " cannot be scored: the model's tokenizer has no BOS to begin it with");
  const std::string kind = file.extension().string();
  if (kind == ".json")
    throw error(file.string() + " is JSON, not a text; give a text, or a .jsonl with an object a line");
  const std::string text = read_text(file);
  evaluation_text out;
  out.sha256 = sha256_of_file(file);
  if (kind != ".jsonl") add_document(out, text, tok);
  if (kind == ".jsonl")
    for (const jsonl_line& line : read_lines(text, file)) add_line(out, line, tok);
  if (out.documents.empty()) throw error(file.string() + " is empty; a text to score is needed");
  return out;
}

std::vector<window> plan_windows(const evaluation_text& text, index_t context, const window_options& options) {
  std::vector<window> all;
  for (size_t i = 0; i + 1 < text.starts.size(); ++i) {
    window_options rest = options;
    if (options.max_windows > 0) rest.max_windows = options.max_windows - static_cast<index_t>(all.size());
    if (options.max_windows > 0 && rest.max_windows == 0) break;
    for (window w : plan_windows(text.starts[i + 1] - text.starts[i], context, rest)) {
      w.begin += text.starts[i];
      all.push_back(w);
    }
  }
  return all;
}

void check_room(const evaluation_text& text, index_t context) {
  for (const question& q : text.questions)
    if (static_cast<index_t>(q.ids.size()) + answer_tokens > context)
      throw error(q.where + ": the prompt has " + std::to_string(q.ids.size()) + " tokens, which with " +
                  std::to_string(answer_tokens) + " for the answer are more than the model's context of " +
                  std::to_string(context));
}

}  // namespace nibble::mistral

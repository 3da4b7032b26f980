// SPDX-License-Identifier: Apache-2.0
#include "answers.hpp"

#include "words.hpp"

namespace nibble::mistral {
namespace {

bool is_article(const std::string& word) {
  return word == "a" || word == "an" || word == "the";
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

/// Whether `words`, one space apart, are among those of `text`, whole and in a row.
bool has_words(const std::string& text, const std::string& words) {
  return (" " + text + " ").find(" " + words + " ") != std::string::npos;
}

/// Takes `words` off the beginning of `text`, if they stand there whole.
bool take_off(std::string& text, std::string_view words) {
  if (text.compare(0, words.size(), words) != 0) return false;
  if (text.size() != words.size() && text[words.size()] != ' ') return false;
  text.erase(0, words.size() + 1);
  return true;
}

bool refuses(std::string text) {
  if (text.empty()) return true;
  for (const char* whole : {"unknown", "unanswerable", "no answer", "not sure"})
    if (text == whole) return true;
  bool apology = false;
  for (const char* sorry : {"sorry", "im sorry", "i am sorry"}) apology = apology || take_off(text, sorry);
  if (apology) take_off(text, "but");
  if (apology && text.empty()) return true;
  for (const char* start : {"i dont know", "i do not know", "i cannot", "i cant", "i can not", "i could not",
                            "im not sure", "i am not sure", "im unable", "i am unable", "im not able", "i am not able",
                            "as an ai", "there is no answer", "it is not possible"})
    if (take_off(text, start)) return true;
  return false;
}

}  // namespace

std::string normalised_answer(std::string_view text) {
  const std::vector<std::string> words = words_of(text);
  std::vector<std::string> kept;
  for (const std::string& word : words)
    if (!is_article(word)) kept.push_back(word);
  return joined(kept.empty() ? words : kept);
}

std::string answer_of(std::string_view generated) {
  constexpr std::string_view blanks = " \t\r\n\v\f";
  const size_t begin = generated.find_first_not_of(blanks);
  if (begin == std::string_view::npos) return "";
  const std::string_view line = generated.substr(begin, generated.find('\n', begin) - begin);
  return std::string(line.substr(0, line.find_last_not_of(blanks) + 1));
}

verdict judge(std::string_view answer, const std::vector<std::string>& accepted) {
  const std::string said = normalised_answer(answer);
  verdict v;
  for (const std::string& right : accepted) {
    v.exact = v.exact || said == right;
    v.contained = v.contained || has_words(said, right);
  }
  // Articles matter to refusals: "as an ai".
  v.abstained = !v.contained && refuses(joined(words_of(answer)));
  return v;
}

void answer_figures::add(const verdict& v) {
  ++questions;
  exact += v.exact ? 1 : 0;
  contained += v.contained ? 1 : 0;
  abstained += v.abstained ? 1 : 0;
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Targets between text and token ids.
#include <memory>
#include <vector>

#include "mistral/calibration.hpp"
#include "mistral/chat.hpp"
#include "mistral/evaluation_text.hpp"
#include "mistral/jinja.hpp"
#include "mistral/json.hpp"
#include "mistral/places.hpp"
#include "mistral/regex.hpp"
#include "mistral/tokenizer_files.hpp"
#include "mistral/utf8.hpp"
#include "support.hpp"
#include "support/places.hpp"
#include "targets.hpp"

namespace nibble::fuzz {
namespace {

using mistral::tokenizer;

const fs::path embedded = fs::path(mistral::source_directory) / "examples/awq_mistral/model";

/// Ids are tokens, and tokens make UTF-8. @returns the text of the ids.
std::string check_encoding(const tokenizer& tok, std::string_view text) {
  const std::vector<int32_t> ids = tok.encode(text);
  for (const int32_t id : ids) promise(id >= 0 && id < tok.vocabulary(), "an id is no token");
  const std::vector<int32_t> framed = tok.encode_framed(text);
  promise(framed.size() >= ids.size(), "framing takes tokens away");
  for (const int32_t id : framed) promise(id >= 0 && id < tok.vocabulary(), "a framing id is no token");
  promise(mistral::utf8_error(tok.decode(framed)) == std::string::npos, "decoded text is not UTF-8");
  return tok.decode(ids, true);
}

std::unique_ptr<tokenizer> byte_level() {
  return mistral::read_tokenizer_json(fs::path(nibble::test::golden_directory) / "tokenizer/byte-level.json", {});
}

}  // namespace

void read_tokenizer_json_file(std::string_view bytes) {
  static const scratch_directory model;
  const auto [file, text] = parted(bytes);
  model.write("tokenizer.json", file);
  model.write("tokenizer_config.json", R"({"bos_token": null, "eos_token": null})");
  accepts([&, text = text] {
    const auto tok = mistral::open_tokenizer(model.path());
    for (const std::string_view each : {text, std::string_view("a b [INST] \xe4\xbd\xa0\n\n<s>")})
      check_encoding(*tok, each);
  });
}

void read_tokenizer_model_file(std::string_view bytes) {
  static const scratch_directory model;
  model.write("tokenizer.model", bytes);
  accepts([] {
    const auto tok = mistral::open_tokenizer(model.path());
    check_encoding(*tok, "The state of the [INST] union, \xe4\xbd\xa0\xe5\xa5\xbd \xff\n <s>");
  });
}

void encode_text(std::string_view bytes) {
  static const auto tiny = mistral::read_tokenizer_json(embedded / "tokenizer.json", {});
  static const auto bytewise = byte_level();
  static const auto sentencepiece = mistral::read_tokenizer_model(embedded / "tokenizer.model", {});
  const std::string repaired = mistral::utf8_repaired(bytes);
  promise(mistral::utf8_error(repaired) == std::string::npos, "a repaired text is not UTF-8");
  check_encoding(*sentencepiece, bytes);
  check_encoding(*tiny, bytes);
  check_encoding(*bytewise, bytes);
}

void read_calibration_lines(std::string_view bytes) {
  static const scratch_directory work;
  static const auto tok = mistral::open_tokenizer(embedded);
  static const auto chat = mistral::open_chat_template(embedded);
  work.write("a.jsonl", bytes);
  for (const index_t samples : {index_t{1}, index_t{100}})
    accepts([&] {
      const auto set = mistral::read_calibration(work.path() / "a.jsonl", *tok, chat.get(), {samples, 64, 42});
      promise(!set.sequences.empty() && set.longest() <= 64 && set.tokens() >= 1, "a set is empty or too long");
    });
}

void read_questions(std::string_view bytes) {
  static const scratch_directory work;
  static const auto tok = mistral::open_tokenizer(embedded);
  work.write("a.jsonl", bytes);
  accepts([] {
    const auto text = mistral::read_evaluation_text(work.path() / "a.jsonl", *tok);
    promise(text.starts.size() == text.documents.size() + 1, "documents and their starts differ in number");
    promise(text.starts.back() == static_cast<index_t>(text.ids.size()), "ids belong to no document");
    for (const auto& w : mistral::plan_windows(text, 64, {}))
      promise(w.begin >= 0 && w.length >= 1 && w.scored >= 1 && w.scored <= w.length &&
                  w.begin + w.length < static_cast<index_t>(text.ids.size()),
              "a window lies outside the text");
    mistral::check_room(text, 64);
  });
}

void render_template(std::string_view bytes) {
  using mistral::jinja::value;
  static const scratch_directory model;
  if (bytes.size() > 4096) return;
  const auto message = [](const char* role, const char* content) {
    return value{{"role", role}, {"content", content}};
  };
  const value variables = {{"messages", {message("system", "S"), message("user", " U\n"), message("assistant", "A")}},
                           {"bos_token", "<s>"},
                           {"eos_token", "</s>"},
                           {"tools", nullptr},
                           {"add_generation_prompt", false}};
  accepts([&] {
    const auto program = mistral::jinja::parse(bytes, "FILE");
    mistral::jinja::render(program, variables, "FILE");
  });
  model.write("chat_template.jinja", bytes);
  accepts([] { mistral::open_chat_template(model.path()); });
}

void match_pattern(std::string_view bytes) {
  const auto [pattern, text] = parted(bytes);
  const std::string repaired = mistral::utf8_repaired(text);
  accepts([&, pattern = pattern] {
    const mistral::regex expression(std::string(pattern), "FILE");
    size_t last = 0;
    for (const auto& [begin, end] : expression.matches(repaired)) {
      promise(end > last && end <= repaired.size() && begin <= end, "matches do not follow each other");
      promise(mistral::utf8_error(std::string_view(repaired).substr(begin, end - begin)) == std::string::npos,
              "a match cuts a character");
      last = end;
    }
  });
}

}  // namespace nibble::fuzz

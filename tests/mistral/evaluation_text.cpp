// SPDX-License-Identifier: Apache-2.0
#include "mistral/evaluation_text.hpp"

#include <catch2/catch.hpp>

#include "mistral/sha256.hpp"
#include "support/tokens.hpp"

namespace evaluation_text_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using ids_t = std::vector<int32_t>;

namespace {

struct fixture {
  std::unique_ptr<tokenizer> tok = open_tokenizer(test::embedded_model());
  test::temporary_directory directory;

  evaluation_text read(const char* name, std::string_view bytes) const {
    test::write_bytes(directory / name, bytes);
    return read_evaluation_text(directory / name, *tok);
  }
  ids_t document(const std::string& text) const {
    ids_t ids = tok->encode(text);
    ids.insert(ids.begin(), tok->bos());
    return ids;
  }
  static ids_t ids_of(const evaluation_text& text, size_t i) {
    return {text.ids.begin() + text.starts[i], text.ids.begin() + text.starts[i + 1]};
  }
};

}  // namespace

TEST_CASE_METHOD(fixture, "a text is one document whatever its name, its byte order mark no part of it") {
  for (const char* name : {"a.txt", "wiki.test.raw", "README"}) {
    const auto text = read(name, "\xef\xbb\xbfWe the people\n\nof the United States");
    CHECK(text.documents == std::vector<std::string>{"We the people\n\nof the United States"});
    CHECK(text.ids == document("We the people\n\nof the United States"));
    CHECK(text.starts == std::vector<index_t>{0, static_cast<index_t>(text.ids.size())});
    CHECK(text.questions.empty());
    CHECK(text.sha256 == sha256("\xef\xbb\xbfWe the people\n\nof the United States"));
  }
}

TEST_CASE_METHOD(fixture, "each line of a .jsonl is a document of its own, texts and questions in the file's order") {
  const auto text = read("a.jsonl",
                         "{\"text\": \"We the people\"}\r\n\n{\"text\": \"\"}\n"
                         "{\"prompt\": \"Who is it?\", \"answer\": [\"The King!\", \"Mr. X\"], \"id\": 4}\n"
                         "{\"prompt\": \"It is \", \"answer\": \"so\"}");
  REQUIRE(text.documents == std::vector<std::string>{"We the people", "Who is it? The King!", "It is so"});
  REQUIRE(text.starts.size() == 4);
  for (size_t i = 0; i < 3; ++i) CHECK(ids_of(text, i) == document(text.documents[i]));
  CHECK(text.starts.back() == static_cast<index_t>(text.ids.size()));
  REQUIRE(text.questions.size() == 2);
  CHECK(text.questions[0].prompt == "Who is it?");
  CHECK(text.questions[0].ids == document("Who is it?"));
  CHECK(text.questions[0].accepted == std::vector<std::string>{"king", "mr x"});
  CHECK(text.questions[0].where == (directory / "a.jsonl").string() + ", line 4");
  CHECK(text.questions[1].accepted == std::vector<std::string>{"so"});
}

TEST_CASE_METHOD(fixture,
                 "no window reads or predicts across the end of a document, and each id but BOS is scored once") {
  std::string file;
  for (const size_t words : {1, 3, 40, 7, 90}) {
    std::string text;
    for (size_t i = 0; i < words; ++i) text += "people ";
    file += test::json{{"text", text}}.dump() + "\n";
  }
  const auto text = read("a.jsonl", file);
  const auto windows = plan_windows(text, 512, {32, 16, 0});
  std::vector<int> scored(text.ids.size());
  for (const window& w : windows) {
    const auto end = std::upper_bound(text.starts.begin(), text.starts.end(), w.begin);
    REQUIRE(end != text.starts.end());
    CHECK(w.begin + w.length < *end);
    for (index_t i = w.begin + w.length + 1 - w.scored; i <= w.begin + w.length; ++i) ++scored[static_cast<size_t>(i)];
  }
  for (size_t i = 0; i < scored.size(); ++i) CHECK(scored[i] == (text.ids[i] == tok->bos() ? 0 : 1));
  for (const index_t most : {1, 3, 5}) {
    const auto first = plan_windows(text, 512, {32, 16, most});
    REQUIRE(static_cast<index_t>(first.size()) == most);
    for (size_t i = 0; i < first.size(); ++i) CHECK(first[i].begin == windows[i].begin);
  }
}

TEST_CASE_METHOD(fixture, "a question that leaves no room for its answer in the context is refused by its line") {
  std::string prompt;
  for (int i = 0; i < 30; ++i) prompt += "people ";
  const auto text = read("a.jsonl", "\n" + test::json{{"prompt", prompt}, {"answer", "x"}}.dump());
  const auto length = static_cast<index_t>(text.questions[0].ids.size());
  CHECK_NOTHROW(check_room(text, length + 50));
  const std::string said = test::refusal([&] { check_room(text, length + 49); });
  CHECK_THAT(said, Contains("a.jsonl, line 2") && Contains(std::to_string(length)));
}

TEST_CASE_METHOD(fixture, "an evaluation file that cannot serve says why in one sentence with file and line") {
  const std::pair<const char*, const char*> lines[] = {
      {"", "a.jsonl is empty"},
      {"\n \n", "a.jsonl is empty"},
      {"{\"text\": \"\"}", "a.jsonl is empty"},
      {"{\"text\": \"a\"}\n\n{\"text\": \"b\"", "a.jsonl, line 3: not valid JSON"},
      {"{\"text\": \"a\"}\n[1]", "a.jsonl, line 2 has neither"},
      {"7", "line 1 has neither"},
      {"{\"messages\": []}", "line 1 has neither"},
      {"{\"answer\": \"a\"}", "line 1 has neither"},
      {"{\"text\": 7}", "line 1: \"text\" must be a string"},
      {"{\"text\": \"a\", \"prompt\": \"b\", \"answer\": \"c\"}", "line 1 has both"},
      {"{\"prompt\": \"a\"}", "line 1: the key \"answer\" is missing"},
      {"{\"prompt\": 1, \"answer\": \"a\"}", "line 1: \"prompt\" must be a string"},
      {"{\"prompt\": \"\", \"answer\": \"a\"}", "line 1: \"prompt\" is empty"},
      {"{\"prompt\": \"a\", \"answer\": 4}", "line 1: \"answer\" must be"},
      {"{\"prompt\": \"a\", \"answer\": []}", "line 1: \"answer\" must be"},
      {"{\"prompt\": \"a\", \"answer\": [\"b\", 4]}", "line 1: \"answer\" must be"},
      {"{\"prompt\": \"a\", \"answer\": {\"b\": 4}}", "line 1: \"answer\" must be"},
      {"{\"prompt\": \"a\", \"answer\": [\"b\", \"?!\"]}", "line 1: the answer \"?!\""},
      {"{\"prompt\": \"a\", \"answer\": \"caf\xe9\"}", "a.jsonl is not UTF-8 at byte 30"}};
  for (const auto& [bytes, part] : lines) {
    CAPTURE(bytes);
    const std::string said = test::refusal([&, &bytes = bytes] { read("a.jsonl", bytes); });
    CHECK_THAT(said, Contains(part) && Contains(directory.path().string()));
  }
  CHECK_THAT(test::refusal([&] { read("a.json", "[]"); }), Contains("a.json") && Contains(".jsonl"));
  CHECK_THAT(test::refusal([&] { read("a.txt", ""); }), Contains("a.txt is empty"));
  CHECK_THAT(test::refusal([&] { read_evaluation_text(directory / "none.txt", *tok); }), Contains("none.txt"));
}

}  // namespace evaluation_text_tests

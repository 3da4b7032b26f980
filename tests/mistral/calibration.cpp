// SPDX-License-Identifier: Apache-2.0
#include "mistral/calibration.hpp"
#include "mistral/places.hpp"

#include <catch2/catch.hpp>

#include "support/tokens.hpp"

namespace calibration_tests {

using namespace nibble;
using namespace nibble::mistral;
namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using test::json;
using ids_t = std::vector<int32_t>;

namespace {

/// The embedded model's tokenizer and template, and a directory for calibration files.
struct fixture {
  std::unique_ptr<tokenizer> tok = open_tokenizer(test::embedded_model());
  std::unique_ptr<chat_template> chat = open_chat_template(test::embedded_model());
  test::temporary_directory directory;

  calibration_set read(const char* name, std::string_view bytes, const calibration_options& options = {},
                       bool with_chat = true) const {
    test::write_bytes(directory / name, bytes);
    return read_calibration(directory / name, *tok, with_chat ? chat.get() : nullptr, options);
  }
  std::string refusal(const char* name, std::string_view bytes, bool with_chat = true) const {
    return test::refusal([&] { read(name, bytes, {}, with_chat); });
  }
};

calibration_options wanted(index_t samples, index_t max_length, std::uint64_t seed = 42) {
  calibration_options options;
  options.samples = samples;
  options.max_length = max_length;
  options.seed = seed;
  return options;
}

}  // namespace

TEST_CASE_METHOD(fixture, "a text's windows are its ids in order, without overlap, and only whole ones") {
  const fs::path file =
      fs::path(mistral::source_directory) / "examples/awq_mistral/text/calibration-state-of-the-union-2000-2012.txt";
  const ids_t ids = tok->encode(test::read_bytes(file));
  const calibration_set all = read_calibration(file, *tok, nullptr, wanted(1'000'000, 512));
  REQUIRE(all.sequences.size() == ids.size() / 512);
  CHECK(all.longest() == 512);
  CHECK(all.tokens() == static_cast<index_t>(ids.size() / 512 * 512));
  for (size_t i = 0; i < all.sequences.size(); ++i)
    REQUIRE(std::equal(all.sequences[i].begin(), all.sequences[i].end(),
                       ids.begin() + static_cast<std::ptrdiff_t>(i * 512)));
  const calibration_set some = read_calibration(file, *tok, nullptr, wanted(3, 512, 7));
  CHECK(some.sequences == std::vector<ids_t>(all.sequences.begin(), all.sequences.begin() + 3));
}

TEST_CASE_METHOD(fixture, "a text shorter than a window is one window, and one of just its length too") {
  const ids_t ids = tok->encode("We the people");
  const auto length = static_cast<index_t>(ids.size());
  CHECK(read("a.txt", "We the people", wanted(9, length + 1)).sequences == std::vector<ids_t>{ids});
  CHECK(read("a.txt", "We the people", wanted(9, length)).sequences == std::vector<ids_t>{ids});
  const auto cut = read("a.txt", "We the people", wanted(9, length - 1));
  CHECK(cut.sequences == std::vector<ids_t>{ids_t(ids.begin(), ids.end() - 1)});
  CHECK(read("a.txt", "\xef\xbb\xbfWe the people").sequences ==
        std::vector<ids_t>{ids});  // a byte order mark is no text
}

TEST_CASE_METHOD(fixture, "each kind of line gives the ids that transformers and llm-compressor give") {
  const json golden = test::golden_tokens("calibration.json");
  std::string file;
  std::vector<ids_t> expected;
  for (const json& row : golden["lines"]) {
    CAPTURE(row["line"]);
    expected.push_back(row["ids"].get<ids_t>());
    CHECK(read("one.jsonl", row["line"].dump()).sequences == std::vector<ids_t>{expected.back()});
    file += row["line"].dump() + "\n \t\r\n";  // and blank lines between
  }
  CHECK(read("all.jsonl", file).sequences == expected);
}

TEST_CASE_METHOD(fixture, "of a line's keys text counts before messages, and messages before instruction") {
  const json messages = json::array({{{"role", "user"}, {"content", "Hi"}}});
  json line = {{"text", "T"}, {"messages", messages}, {"instruction", "I"}, {"more", 1}};
  CHECK(read("a.jsonl", line.dump()).sequences[0] == tok->encode_framed("T"));
  line.erase("text");
  CHECK(read("a.jsonl", line.dump()).sequences[0] == tok->encode(chat->render({{"user", "Hi"}})));
}

TEST_CASE_METHOD(fixture, "a line is cut at max_length") {
  const ids_t ids = tok->encode_framed("The state of the Union is strong");
  const auto set = read("a.jsonl", R"({"text": "The state of the Union is strong"})", wanted(1, 4));
  CHECK(set.sequences == std::vector<ids_t>{ids_t(ids.begin(), ids.begin() + 4)});
}

TEST_CASE_METHOD(fixture, "the seed draws the lines that the documented shuffle puts first, in its order") {
  for (const json& draw : test::golden_tokens("calibration.json").at("draws").get<std::vector<json>>()) {
    CAPTURE(draw);
    std::string file;
    for (index_t i = 0; i < draw["lines"].get<index_t>(); ++i) file += json{{"text", std::to_string(i)}}.dump() + "\n";
    const auto set = read("a.jsonl", file, wanted(draw["samples"], 512, draw["seed"]));
    std::vector<ids_t> expected;
    for (const index_t line : draw["order"].get<std::vector<index_t>>())
      expected.push_back(tok->encode_framed(std::to_string(line)));
    CHECK(set.sequences == expected);
  }
}

TEST_CASE_METHOD(fixture, "with no more lines than samples all come in the file's order, whatever the seed") {
  const std::string file = "{\"text\": \"a\"}\r\n\n{\"text\": \"b\"}\n{\"text\": \"c\"}";  // no newline at the end
  const std::vector<ids_t> all = {tok->encode_framed("a"), tok->encode_framed("b"), tok->encode_framed("c")};
  CHECK(read("a.jsonl", file, wanted(3, 512, 1)).sequences == all);
  CHECK(read("a.jsonl", file, wanted(4, 512, 2)).sequences == all);
}

TEST_CASE_METHOD(fixture, "lines without text are passed over, and others drawn for them") {
  std::string file;
  for (int i = 0; i < 20; ++i) file += i % 2 == 0 ? "{\"text\": \"\"}\n" : "{\"text\": \"x\"}\n";
  CHECK(read("a.jsonl", file, wanted(10, 512)).sequences == std::vector<ids_t>(10, tok->encode_framed("x")));
}

TEST_CASE_METHOD(fixture, "a calibration file that cannot serve says why in one sentence with file and line") {
  const auto names = [&](const std::string& said) { return said.find(directory.path().string()) != std::string::npos; };
  const std::pair<std::string, const char*> said[] = {
      {refusal("a.txt", ""), "a.txt gives no tokens"},
      {refusal("a.jsonl", ""), "a.jsonl gives no tokens"},
      {refusal("a.jsonl", "\n \n\t\n"), "gives no tokens"},
      {refusal("a.jsonl", "{\"text\": \"\"}\n"), "gives no tokens"},
      {refusal("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\"\n"), "a.jsonl, line 3: not valid JSON"},
      {refusal("a.jsonl", "{\"texts\": \"a\"}"), "line 1 has none of the keys"},
      {refusal("a.jsonl", "[1, 2]"), "line 1 has none of the keys"},
      {refusal("a.jsonl", "7"), "line 1 has none of the keys"},
      {refusal("a.jsonl", "{\"text\": 7}"), "line 1: \"text\" must be a string"},
      {refusal("a.jsonl", "{\"text\": null}"), "line 1: \"text\" must be a string"},
      {refusal("a.jsonl", "{\"messages\": \"hi\"}"), "line 1: \"messages\" must be an array"},
      {refusal("a.jsonl", "{\"messages\": []}"), "line 1: \"messages\" must be an array"},
      {refusal("a.jsonl", "{\"messages\": [\"hi\"]}"), "line 1: the key \"role\" is missing"},
      {refusal("a.jsonl", R"({"messages": [{"role": "user"}]})"), "line 1: the key \"content\" is missing"},
      {refusal("a.jsonl", R"({"messages": [{"role": "user", "content": ["hi"]}]})"), "\"content\" must be a string"},
      {refusal("a.jsonl", R"({"messages": [{"role": "tool", "content": "hi"}]})"), "line 1: "},
      {refusal("a.jsonl", R"({"messages": [{"role": "user", "content": "hi"}]})", false), "no chat template"},
      {refusal("a.jsonl", "{\"instruction\": 1}"), "line 1: \"instruction\" must be a string"},
      {refusal("a.jsonl", "{\"instruction\": \"a\", \"input\": 1}"), "line 1: \"input\" must be a string"},
      {refusal("a.txt", "caf\xe9"), "a.txt is not UTF-8 at byte 3"},
      {refusal("a.jsonl", "{\"text\": \"caf\xe9\"}"), "a.jsonl is not UTF-8 at byte 13"},
      {refusal("a.csv", "a"), "a.csv must end in .txt"},
      {refusal("a", "a"), "must end in .txt"}};
  for (const auto& [sentence, part] : said) {
    CHECK_THAT(sentence, Contains(part));
    CHECK(names(sentence));
  }
  CHECK_THAT(test::refusal([&] { read_calibration(directory / "none.txt", *tok, nullptr, {}); }),
             Contains("no calibration file") && Contains("none.txt"));
  fs::create_directory(directory / "folder.txt");
  CHECK_THAT(test::refusal([&] { read_calibration(directory / "folder.txt", *tok, nullptr, {}); }),
             Contains("is a directory"));
  for (const auto& options : {wanted(0, 512), wanted(1, 0), wanted(-1, 512)})
    CHECK_THROWS_AS(read("a.txt", "a", options), usage_error);
}

}  // namespace calibration_tests

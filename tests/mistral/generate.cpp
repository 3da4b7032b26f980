// SPDX-License-Identifier: Apache-2.0
/// @file
/// The program generate as its user meets it, and the text it streams.
#include <sys/resource.h>

#include <catch2/catch.hpp>
#include <sstream>

#include "mistral/chat.hpp"
#include "mistral/generation.hpp"
#include "mistral/text_stream.hpp"
#include "mistral/utf8.hpp"
#include "support/places.hpp"
#include "support/program.hpp"
#include "support/tokens.hpp"

namespace generate_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using ids_t = std::vector<int32_t>;
using test::json;
using strings = std::vector<std::string>;

namespace {

constexpr const char* replacement = "\xef\xbf\xbd";

/// What a stream gives out for ids[begin …] after ids[… begin); every piece must be whole characters.
std::string streamed(const tokenizer& tok, const ids_t& ids, size_t begin) {
  const auto middle = ids.begin() + static_cast<std::ptrdiff_t>(begin);
  text_stream stream(tok, ids_t(ids.begin(), middle));
  std::string text;
  const auto take = [&](const std::string& piece) {
    CHECK(utf8_error(piece) == std::string::npos);
    text += piece;
  };
  for (auto id = middle; id != ids.end(); ++id) take(stream.add(*id));
  take(stream.finish());
  return text;
}

/// The embedded model's answer to ids, through the library.
std::string expected_text(const ids_t& prompt, index_t count) {
  const auto directory = test::embedded_model();
  const config settings = read_config(directory);
  const checkpoint files(directory);
  decoder model(files, settings);
  const ids_t answer = greedy(model, {prompt}, count, stop_ids(directory, settings)).front();
  ids_t ids = prompt;
  ids.insert(ids.end(), answer.begin(), answer.end());
  const auto tok = open_tokenizer(directory);
  return tok->decode(ids).substr(tok->decode(prompt).size());
}

test::outcome generate(const strings& arguments) {
  return test::run_program("generate", arguments);
}

std::string refused(const strings& arguments, int status) {
  return test::refused_by("generate", arguments, status);
}

const std::string dialogues =
    R"({"messages": [{"role": "user", "content": "What is liberty?"}]})"
    "\n"
    R"({"messages": [{"role": "user", "content": "Who is Sir Walter?"}, {"role": "assistant", "content": "A man."},)"
    R"( {"role": "user", "content": "And who is Anne?"}]})"
    "\n"
    R"({"messages": [{"role": "user", "content": "Where is Bath?"}]})"
    "\n";

}  // namespace

TEST_CASE("text streams in whole characters, and the pieces are the text, wherever the prompt ends") {
  const std::string text =
      "Plain words,  two spaces; naïve façade — 這是一個沒有空格的很長的中文句子，每個字都是三個位元組。"
      "👩‍👩‍👧‍👦🎉🎊 Ελληνικά и русский.\n\nend ";
  test::model_files byte_level;
  byte_level.add("tokenizer.json", test::read_bytes(test::golden_tokenizer("byte-level.json")));
  for (const auto& directory : {test::embedded_model(), byte_level.path()}) {
    CAPTURE(directory);
    const auto tok = open_tokenizer(directory);
    const ids_t ids = tok->encode(text);
    REQUIRE(tok->decode(ids) == text);
    size_t tried = 0;
    for (size_t begin = 1; begin <= ids.size(); ++begin) {
      const std::string prompt = tok->decode(ids_t(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(begin)));
      if (text.compare(0, prompt.size(), prompt) != 0) continue;  // it ends inside a character
      CHECK(prompt + streamed(*tok, ids, begin) == text);
      ++tried;
    }
    CHECK(tried > 30);
  }
}

TEST_CASE("a character that never ends is written as U+FFFD at the end, and one a prompt began is finished") {
  const auto tok = open_tokenizer(test::embedded_model());
  const auto byte = [](int value) { return 5 + value; };  // <0x00> is id 5
  ids_t ids = tok->encode("word");
  const size_t begin = ids.size();
  ids.push_back(byte(0xe9));
  ids.push_back(byte(0x80));
  CHECK(streamed(*tok, ids, begin) == std::string(replacement) + replacement);
  ids.push_back(byte(0x99));
  CHECK(streamed(*tok, ids, begin) == "\u9019");
  CHECK(streamed(*tok, ids, begin + 1) == "\u9019");
}

TEST_CASE("generate prints the greedy continuation of --prompt and nothing else on stdout, figures on stderr") {
  const auto tok = open_tokenizer(test::embedded_model());
  const auto result = generate({"--prompt", "The state of the union is", "--max-new-tokens", "12"});
  CHECK(result.status == 0);
  CHECK(result.out == expected_text(tok->encode_framed("The state of the union is"), 12) + "\n");
  CHECK_THAT(result.err, Contains("first token after") && Contains("tokens/s") && Contains("peak memory"));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  CHECK(result.out ==
        generate({"--prompt", "The state of the union is", "--max-new-tokens", "12", "--threads", "1"}).out);
}

TEST_CASE("generate answers dialogues in their order, as the chat template asks, the same in any batch") {
  const test::temporary_directory directory;
  const std::string file = (directory / "chat.jsonl").string();
  test::write_bytes(file, dialogues);
  const auto by = [&](const strings& more) {
    strings all = {"--chat", file, "--max-new-tokens", "10", "--json"};
    all.insert(all.end(), more.begin(), more.end());
    const auto result = generate(all);
    REQUIRE(result.status == 0);
    CHECK(result.err.empty());
    return json::parse(result.out);
  };
  const json answers = by({});
  REQUIRE(answers["answers"].size() == 3);
  const auto tok = open_tokenizer(test::embedded_model());
  const auto chat = open_chat_template(test::embedded_model());
  const std::string rendered = chat->render({{"user", "Where is Bath?"}}, true);
  CHECK(answers["answers"][2]["prompt"] == rendered);
  CHECK(answers["answers"][2]["text"] == expected_text(tok->encode(rendered), 10));
  CHECK(answers["answers"][2]["ids"].size() == 10);
  CHECK(answers["answers"][2]["ended_by"] == "length");
  for (const char* figure :
       {"load_seconds", "first_token_seconds", "tokens_per_second", "prompt_tokens_per_second", "peak_memory_bytes"})
    CHECK(answers[figure].get<double>() > 0);
  for (const char* batch : {"1", "2", "3"}) CHECK(by({"--batch", batch})["answers"] == answers["answers"]);

  const auto shown = generate({"--chat", file, "--max-new-tokens", "10"});
  std::string expected;
  for (size_t i = 0; i < 3; ++i)
    expected +=
        (i > 0 ? "\n[" : "[") + std::to_string(i + 1) + "] " + answers["answers"][i]["text"].get<std::string>() + "\n";
  CHECK(shown.out == expected);
}

TEST_CASE("generate draws by its seed, and writes JSON to a file beside the text") {
  const test::temporary_directory directory;
  const auto file = directory / "answer.json";
  const strings base = {"--prompt", "It was", "--max-new-tokens", "20", "--temperature", "0.9", "--top-p", "0.95"};
  const auto by = [&](const strings& more) {
    strings all = base;
    all.insert(all.end(), more.begin(), more.end());
    const auto result = generate(all);
    CHECK(result.status == 0);
    return result.out;
  };
  const std::string text = by({"--seed", "3", "--json", file.string()});
  CHECK(text == by({"--seed", "3"}));
  CHECK(text != by({"--seed", "4"}));
  const json written = json::parse(test::read_bytes(file));
  CHECK(written["answers"][0]["text"].get<std::string>() + "\n" == text);
  CHECK(written["seed"] == 3);
  CHECK(test::listing(directory.path()) == "answer.json");
  // Bytes on a command line need not be UTF-8; JSON must be.
  const auto odd = generate({"--prompt", "\xff", "--max-new-tokens", "1", "--json"});
  CHECK(odd.status == 0);
  CHECK(json::parse(odd.out)["answers"][0]["prompt"] == replacement);
}

TEST_CASE("generate refuses wrong options with status 2, and bad files with status 1, in one sentence") {
  CHECK_THAT(refused({}, 2), Contains("--prompt TEXT or --chat FILE"));
  CHECK_THAT(refused({"--prompt", "a", "--chat", "b"}, 2), Contains("exclude each other"));
  for (const char* option : {"--max-new-tokens", "--batch", "--threads", "--seed", "--temperature"})
    for (const char* value : {"-1", "x", "1e99999", "nan", ""})
      CHECK_THAT(refused({"--prompt", "a", option, value}, 2), Contains(option));
  for (const char* option : {"--max-new-tokens", "--batch", "--threads"})
    CHECK_THAT(refused({"--prompt", "a", option, "0"}, 2), Contains(option));
  for (const char* value : {"0", "1.5", "-1", "nan"})
    CHECK_THAT(refused({"--prompt", "a", "--temperature", "1", "--top-p", value}, 2), Contains("--top-p"));
  CHECK_THAT(refused({"--prompt", "a", "--top-p", "0.5"}, 2), Contains("--temperature above 0"));
  CHECK_THAT(refused({"--prompt", "a", "--nope"}, 2), Contains("--nope"));

  const test::temporary_directory directory;
  const std::string file = (directory / "chat.jsonl").string();
  const auto chat = [&](const std::string& bytes) {
    test::write_bytes(file, bytes);
    return refused({"--chat", file}, 1);
  };
  CHECK_THAT(refused({"--chat", (directory / "missing").string()}, 1), Contains("missing"));
  CHECK_THAT(refused({"--prompt", "a", "--model", (directory / "missing").string()}, 1), Contains("missing"));
  CHECK_THAT(refused({"--prompt", "a", "--json", (directory / "none/x").string()}, 1), Contains("none/x"));
  CHECK_THAT(chat(""), Contains("chat.jsonl holds no dialogue"));
  CHECK_THAT(chat("{\"text\": \"a\"}\n"), Contains("line 1") && Contains("\"messages\""));
  CHECK_THAT(chat(dialogues + "nope\n"), Contains("line 4"));
  CHECK_THAT(chat(R"({"messages": []})"), Contains("line 1"));
  CHECK_THAT(chat(R"({"messages": [{"role": "user"}]})"), Contains("line 1") && Contains("content"));
  CHECK_THAT(chat(R"({"messages": [{"role": "elf", "content": "a"}]})"),
             Contains("line 1") && Contains("Only user and assistant"));
  std::string long_text;
  for (int i = 0; i < 2000; ++i) long_text += "word ";
  CHECK_THAT(refused({"--prompt", long_text}, 1), Contains("--prompt has") && Contains("512"));
}

TEST_CASE("generate says so when what takes its text is full") {
  const auto result = test::run_program("generate", {"--prompt", "a", "--json"}, test::fs::current_path(), [] {
    const rlimit most{200, 200};  // of a file's bytes: the JSON is longer, the complaint shorter
    ::setrlimit(RLIMIT_FSIZE, &most);
  });
  CHECK(result.status == 1);
  CHECK_THAT(result.err, Contains("standard output"));
}

TEST_CASE("greedy ids and text are transformers', from the embedded model and from packed codes, but for ties") {
  const json golden = read_json<json>(test::fs::path(nibble::test::golden_directory) / "generate/greedy.json");
  std::istringstream lines(test::read_bytes(test::fs::path(nibble::test::golden_directory) / "generate/prompts.txt"));
  const test::temporary_directory root;
  REQUIRE(test::run_program("awq_mistral", {"--method", "rtn", "--output", (root / "packed").string()}).status == 0);
  const auto tok = open_tokenizer(test::embedded_model());
  std::vector<std::string> texts;
  std::vector<ids_t> prompts;
  for (std::string line; std::getline(lines, line); prompts.push_back(tok->encode_framed(line))) texts.push_back(line);
  REQUIRE(prompts.size() == 20);
  for (const json& checkpoint_row : golden["checkpoints"]) {
    const bool packed = checkpoint_row["checkpoint"] == "packed";
    const test::fs::path directory = packed ? root / "packed" : test::embedded_model();
    const config settings = read_config(directory);
    const checkpoint files(directory);
    decoder model(files, settings);
    const auto ours = greedy(model, prompts, 50, stop_ids(directory, settings), 7);
    for (size_t i = 0; i < prompts.size(); ++i) {
      CAPTURE(packed, texts[i]);
      const json& answer = checkpoint_row["answers"][i];
      const auto theirs = answer["ids"].get<ids_t>();
      const auto part = std::mismatch(ours[i].begin(), ours[i].end(), theirs.begin(), theirs.end());
      if (part.second == theirs.end() && part.first == ours[i].end()) {
        ids_t all = prompts[i];
        all.insert(all.end(), theirs.begin(), theirs.end());
        CHECK(streamed(*tok, all, prompts[i].size()) == answer["text"].get<std::string>());
        continue;
      }
      // Sums of fp32 products in another order move logits by some 1e-5; only closer ones may change places.
      const auto step = part.second - theirs.begin();
      json tie;
      for (const json& close : answer["close"])
        if (close[0] == step && close[2] < 1e-4) tie = close;
      REQUIRE_FALSE(tie.is_null());
      REQUIRE(part.first != ours[i].end());
      CHECK(*part.first == tie[1].get<int32_t>());
      WARN("after \"" << texts[i] << "\" token " << step + 1 << " is another: the best two logits are " << tie[2]
                      << " apart");
    }
  }
}

}  // namespace generate_tests

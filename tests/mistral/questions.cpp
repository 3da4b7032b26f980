// SPDX-License-Identifier: Apache-2.0
/// @file
/// Questions asked of models: what they answer, and that awq_mistral and perplexity count it alike.
#include "mistral/questions.hpp"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

#include "mistral/generation.hpp"
#include "support/golden.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace questions_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;
using test::words;

namespace {

const test::fs::path model_directory = test::embedded("model");

std::vector<std::string> golden_prompts() {
  std::istringstream lines(test::read_bytes(test::fs::path(test::golden_directory) / "generate/prompts.txt"));
  std::vector<std::string> all;
  for (std::string line; std::getline(lines, line);) all.push_back(line);
  return all;
}

/// What transformers answered to them; empty where two logits were so close that another answer is as good.
std::vector<std::string> golden_answers() {
  const json all = json::parse(test::read_bytes(test::fs::path(test::golden_directory) / "generate/greedy.json"));
  std::vector<std::string> texts;
  for (const json& each : all.at("checkpoints").at(0).at("answers"))
    texts.push_back(each.at("close").empty() ? each.at("text").get<std::string>() : "");
  return texts;
}

/// Questions as lines of a .jsonl.
std::string jsonl(const std::vector<std::pair<std::string, json>>& questions) {
  std::string lines;
  for (const auto& [prompt, answer] : questions) lines += json{{"prompt", prompt}, {"answer", answer}}.dump() + "\n";
  return lines;
}

json ran(const std::string& program, words arguments, const test::fs::path& figures, int status = 0) {
  arguments.insert(arguments.end(), {"--json", figures.string()});
  const auto result = test::run_program(program, arguments);
  INFO(result.err);
  CHECK(result.status == status);
  json all = json::parse(test::read_bytes(figures));
  all["printed"] = result.out, all["told"] = result.err;
  return all;
}

/// Shares counted from what "answers" lists of model `at`.
void check_shares(const json& figures, const json& answers, size_t at) {
  double exact = 0, contained = 0, abstained = 0;
  for (const json& each : answers) {
    const json& given = each.at("given").at(at);
    const verdict v = judge(given.at("text").get<std::string>(), each.at("accepted").get<std::vector<std::string>>());
    CHECK(given.at("exact") == v.exact);
    CHECK(given.at("contained") == v.contained);
    CHECK(given.at("abstained") == v.abstained);
    exact += v.exact, contained += v.contained, abstained += v.abstained;
  }
  const auto all = static_cast<double>(answers.size());
  CHECK(figures.at("exact_match") == exact / all);
  CHECK(figures.at("accuracy") == contained / all);
  CHECK(figures.at("abstained") == abstained / all);
}

}  // namespace

TEST_CASE("a model answers what transformers generates greedily, up to the end of a line, and is right by that") {
  const auto prompts = golden_prompts(), expected = golden_answers();
  REQUIRE(prompts.size() == expected.size());
  std::vector<std::pair<std::string, json>> asked;
  std::vector<std::string> lines;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::string line = answer_of(expected[i]);
    if (normalised_answer(line).empty()) continue;
    asked.emplace_back(prompts[i], json::array({"never said", line}));
    lines.push_back(line);
  }
  REQUIRE(asked.size() >= 10);
  asked.emplace_back("We the people", "never said");
  const test::temporary_directory work;
  test::write_bytes(work / "questions.jsonl", jsonl(asked));
  const auto tok = open_tokenizer(model_directory);
  const auto text = read_evaluation_text(work / "questions.jsonl", *tok);
  const config settings = read_config(model_directory);
  const checkpoint files(model_directory);
  decoder model(files, settings);
  std::vector<index_t> told;
  const auto given = answer_questions(model, *tok, text.questions, stop_ids(model_directory, settings),
                                      [&](index_t done) { told.push_back(done); });
  REQUIRE(given.answers.size() == asked.size());
  for (size_t i = 0; i < lines.size(); ++i) CHECK(given.answers[i].text == lines[i]);
  CHECK(given.figures.questions == static_cast<index_t>(asked.size()));
  CHECK(given.figures.exact == static_cast<index_t>(lines.size()));
  CHECK(given.figures.contained == given.figures.exact);
  for (size_t i = 0; i < told.size(); ++i) CHECK(told[i] == static_cast<index_t>(i + 1));
  CHECK(told.size() == asked.size());
}

TEST_CASE("awq_mistral asks the original, its rounding to nearest and its AWQ, and perplexity finds the same of each") {
  const test::temporary_directory work;
  const auto prompts = golden_prompts(), expected = golden_answers();
  std::vector<std::pair<std::string, json>> asked;
  for (size_t i = 0; i < prompts.size() && asked.size() < 6; ++i)
    if (!normalised_answer(expected[i]).empty()) asked.emplace_back(prompts[i], answer_of(expected[i]));
  asked.emplace_back("Mr. Speaker, the state of our Union is", json::array({"strong", "the"}));
  const test::fs::path questions = work / "questions.jsonl";
  test::write_bytes(questions, jsonl(asked));
  const auto quantized = [&](const char* name, const words& how) {
    words arguments = {"--output",
                       (work / name).string(),
                       "--evaluate",
                       questions.string(),
                       "--scheme",
                       "W2A16_ASYM",
                       "--n-grid",
                       "4",
                       "--sweeps",
                       "1",
                       "--max-seq-length",
                       "128",
                       "--num-calibration-samples",
                       "4"};
    arguments.insert(arguments.end(), how.begin(), how.end());
    return ran("awq_mistral", arguments, work / (std::string(name) + ".json"));
  };
  const json awq = quantized("awq", {}), rtn = quantized("rtn", {"--method", "rtn"});
  REQUIRE(awq.at("models").size() == 3);
  REQUIRE(awq.at("answers").size() == asked.size());
  CHECK(awq.at("evaluation").at("questions") == asked.size());
  for (size_t at = 0; at < 3; ++at) check_shares(awq.at("models").at(at), awq.at("answers"), at);
  CHECK(awq.at("models").at(0).at("exact_match").get<double>() >= 6.0 / 7);
  CHECK(awq.at("models").at(0) == rtn.at("models").at(0));
  for (size_t i = 0; i < asked.size(); ++i) {
    CHECK(awq.at("answers").at(i).at("prompt") == asked[i].first);
    const json &three = awq.at("answers").at(i).at("given"), &two = rtn.at("answers").at(i).at("given");
    CHECK(three.at(0) == two.at(0));
    CHECK(three.at(1) == two.at(1));
  }
  CHECK_THAT(awq.at("printed").get<std::string>(), Contains("of 7 answers"));
  for (const json* run : {&awq, &rtn}) {
    const std::string name = run == &awq ? "awq" : "rtn";
    const json own =
        ran("perplexity",
            {"--model", (work / name).string(), "--text", questions.string(), "--against", model_directory.string()},
            work / "own.json");
    const json& last = run->at("models").back();
    for (const char* key : {"perplexity", "increase", "kl_divergence", "kl_divergence_99", "top_token_agreement",
                            "kl_by_position", "accuracy", "exact_match", "abstained"})
      CHECK(own.at(key) == last.at(key));
    CHECK(own.at("against").at("accuracy") == run->at("models").front().at("accuracy"));
    for (size_t i = 0; i < asked.size(); ++i) {
      CHECK(own.at("answers").at(i).at("given").at(0) == run->at("answers").at(i).at("given").front());
      CHECK(own.at("answers").at(i).at("given").at(1) == run->at("answers").at(i).at("given").back());
    }
    CHECK_THAT(own.at("printed").get<std::string>(), Contains("of 7 answers") && Contains((work / name).string()));
  }
}

TEST_CASE("of one model alone perplexity tells its answers, and without questions nothing of answers") {
  const test::temporary_directory work;
  test::write_bytes(work / "questions.jsonl", jsonl({{"We the people", "people"}, {"It is", "so"}}));
  const json alone =
      ran("perplexity", {"--model", model_directory.string(), "--text", work / "questions.jsonl"}, work / "own.json");
  REQUIRE(alone.at("answers").size() == 2);
  CHECK(alone.at("answers").at(0).at("given").size() == 1);
  check_shares(alone, alone.at("answers"), 0);
  test::write_bytes(work / "text.jsonl", "{\"text\": \"We the people\"}\n");
  const json none =
      ran("perplexity", {"--model", model_directory.string(), "--text", work / "text.jsonl"}, work / "none.json");
  for (const char* key : {"answers", "accuracy", "exact_match", "abstained"}) CHECK_FALSE(none.contains(key));
  CHECK_THAT(none.at("printed").get<std::string>(), !Contains("answers"));
}

TEST_CASE("questions that cannot be asked end both programs with status 1, file and line, and nothing is written") {
  const test::temporary_directory work;
  std::string longest;
  for (int i = 0; i < 480; ++i) longest += "people ";
  const std::pair<std::string, const char*> hostile[] = {
      {"", "is empty"},
      {"{\"prompt\": \"a\"}\n", "line 1: the key \"answer\" is missing"},
      {"{\"text\": \"a\"}\n{\"text\": \"a\", \"prompt\": \"b\", \"answer\": \"c\"}\n", "line 2 has both"},
      {"{\"prompt\": \"a\", \"answer\": \"caf\xe9\"}\n", "is not UTF-8 at byte 30"},
      {"{\"prompt\": \"a\", \"answer\": \"...\"}\n", "line 1: the answer \"...\""},
      {"{\"prompt\": \"a\", \"answer\": {}}\n", "line 1: \"answer\" must be"},
      {"{\"prompt\": \"a\", \"answer\": \"b\"\n", "line 1: not valid JSON"},
      {jsonl({{longest, "x"}}), "line 1: the prompt has"}};
  for (const auto& [bytes, part] : hostile) {
    CAPTURE(part);
    const std::string file = (work / "questions.jsonl").string();
    test::write_bytes(file, bytes);
    CHECK_THAT(test::refused_by("perplexity", {"--model", model_directory.string(), "--text", file}, 1),
               Contains(file) && Contains(part));
    CHECK_THAT(test::refused_by("awq_mistral", {"--output", (work / "out").string(), "--evaluate", file}, 1),
               Contains(file) && Contains(part));
    CHECK(test::listing(work.path()) == "questions.jsonl");
  }
}

}  // namespace questions_tests

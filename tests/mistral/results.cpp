// SPDX-License-Identifier: Apache-2.0
/// @file
/// Runs compared with earlier ones, and the gate on what may get worse.
#include "mistral/results.hpp"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/model.hpp"
#include "support/program.hpp"

namespace results_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;
using test::words;

namespace {

measured_on some_text(index_t questions = 0) {
  measured_on on;
  on.sha256 = std::string(64, 'a'), on.model = std::string(64, 'b');
  on.documents = 3, on.questions = questions, on.tokens = 100, on.windows = 4, on.window = 32, on.stride = 16;
  return on;
}

json figures_of(const measured_on& on) {
  json all;
  on.add_to(all["evaluation"]);
  json last = {{"name", "AWQ"}};
  double value = 1;
  for (const figure_kind& kind : figure_kinds)
    if (!kind.answers || on.questions > 0) last[kind.key] = value++;
  all["models"] = {{{"name", "original"}}, last};
  return all;
}

}  // namespace

TEST_CASE("what got worse by more than the limit is told, of perplexity and of accuracy, and no more") {
  const auto found = [](double limit, gated_figures before, gated_figures now) {
    return regressions(limit, before, now, "the original");
  };
  CHECK(found(0.05, {10, 0.8}, {10.5, 0.77}).empty());
  CHECK(found(0, {10, 0.8}, {9, 0.9}).empty());
  CHECK(found(0, {10, 0}, {10, 0}).empty());
  const auto both = found(0.05, {10, 0.8}, {10.51, 0.75});
  REQUIRE(both.size() == 2);
  CHECK(both[0] == "perplexity rose by 5.10 % against the original, more than --max-regression allows (5.00 %)");
  CHECK(both[1] == "accuracy fell by 6.25 % against the original, more than --max-regression allows (5.00 %)");
  CHECK(found(0.05, {10, 0.8}, {10, 0}).size() == 1);
}

TEST_CASE("an earlier run is read back, and compared figure by figure") {
  const test::temporary_directory work;
  for (const index_t questions : {0, 5}) {
    const measured_on on = some_text(questions);
    test::write_bytes(work / "then.json", figures_of(on).dump());
    const earlier_run then = read_earlier_run(work / "then.json", on);
    CHECK(then.model.name == "AWQ");
    json now_json = figures_of(on).at("models").at(1);
    now_json["perplexity"] = 3.5;
    const auto now = model_results::read(now_json, "now", questions > 0);
    const json compared = comparison_json(then, now);
    CHECK(compared.at("file") == (work / "then.json").string());
    CHECK(compared.at("perplexity") == json{{"then", 1.0}, {"now", 3.5}, {"difference", 2.5}});
    CHECK(compared.at("bytes").at("difference") == 0.0);
    CHECK(compared.contains("accuracy") == (questions > 0));
    const std::string table = comparison_table(then, now);
    CHECK_THAT(table, Contains("baseline") && Contains("+2.500"));
    CHECK((table.find("answers right") != table.npos) == (questions > 0));
  }
}

TEST_CASE("an earlier run of another text, another model or other windows is refused, and what is no run as well") {
  const test::temporary_directory work;
  const test::fs::path file = work / "then.json";
  const auto refused = [&](const json& then) {
    test::write_bytes(file, then.dump());
    const std::string said = test::refusal([&] { read_earlier_run(file, some_text(2)); });
    CHECK_THAT(said, Contains(file.string()));
    return said;
  };
  const auto with = [&](const char* key, const json& value) {
    json then = figures_of(some_text(2));
    then["evaluation"][key] = value;
    return refused(then);
  };
  CHECK_THAT(with("text_sha256", std::string(64, 'c')), Contains("another text") && Contains("cannot be compared"));
  CHECK_THAT(with("model_fingerprint", std::string(64, 'c')), Contains("another model"));
  CHECK_THAT(with("window", 64), Contains("other windows") && Contains("64") && Contains("32"));
  CHECK_THAT(with("tokens", "many"), Contains("\"tokens\""));
  CHECK_THAT(refused(json::array()), Contains("\"evaluation\" is missing") && Contains("--json"));
  CHECK_THAT(refused(json::object()), Contains("\"evaluation\" is missing"));
  json then = figures_of(some_text(2));
  then["models"].back().erase("accuracy");
  CHECK_THAT(refused(then), Contains("\"accuracy\""));
  then["models"] = json::array();
  CHECK_THAT(refused(then), Contains("\"models\""));
  then.erase("models");
  CHECK_THAT(refused(then), Contains("\"models\" is missing"));
  test::write_bytes(file, std::string(100'000, '['));
  CHECK_THAT(test::refusal([&] { read_earlier_run(file, some_text()); }), Contains("nested"));
  test::write_bytes(file, "{\"models\": ");
  CHECK_THAT(test::refusal([&] { read_earlier_run(file, some_text()); }), Contains("then.json"));
  CHECK_THAT(test::refusal([&] { read_earlier_run(work / "none.json", some_text()); }), Contains("none.json"));
}

TEST_CASE("a fingerprint tells models apart whose config and shapes are the same") {
  const test::temporary_directory work;
  test::write_weights({}, work / "a");
  test::write_weights({}, work / "b");
  test::write_weights({}, work / "c", [](test::made_tensor& t) {
    if (t.name == "model.layers.1.mlp.down_proj.weight") t.values[3] += 1;
  });
  const std::string a = fingerprint(checkpoint(work / "a"));
  CHECK(a == fingerprint(checkpoint(work / "b")));
  CHECK(a != fingerprint(checkpoint(work / "c")));
  CHECK(a.size() == 64);
}

TEST_CASE("awq_mistral shows an earlier run beside its own, and gates perplexity and accuracy against it") {
  const test::temporary_directory work;
  const test::fs::path text = work / "text.jsonl";
  // Any answer but none has one of these words, so the original is right nearly always.
  const json often = {"the", "of", "to", "and", "a", "in", "we", "it", "i", "was"};
  std::string lines;
  for (const char* prompt : {"We the people", "It was", "The state of the Union", "In order to", "My fellow citizens"})
    lines += json{{"prompt", prompt}, {"answer", often}}.dump() + "\n";
  test::write_bytes(text, lines);
  const auto run = [&](const std::string& name, const std::string& scheme, const words& more) {
    words arguments = {"--output",   (work / name).string(),
                       "--evaluate", text.string(),
                       "--method",   "rtn",
                       "--scheme",   scheme,
                       "--json",     (work / (name + ".json")).string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return test::run_program("awq_mistral", arguments);
  };
  REQUIRE(run("fine", "W8A16", {}).status == 0);
  const std::string fine = (work / "fine.json").string();
  const auto same = run("same", "W8A16", {"--baseline-results", fine, "--max-regression", "0.5"});
  CHECK(same.status == 0);
  CHECK_THAT(same.out, Contains("baseline") && Contains("+0.000") && Contains("answers right"));
  const json compared = json::parse(test::read_bytes(work / "same.json")).at("baseline");
  for (const char* key : {"perplexity", "kl_divergence", "accuracy", "exact_match", "abstained", "bytes"})
    CHECK(compared.at(key).at("difference") == 0.0);

  const auto coarse = run("coarse", "W2A16_ASYM", {"--baseline-results", fine, "--max-regression", "0.02"});
  CHECK(coarse.status == 3);
  CHECK_THAT(coarse.err, Contains("perplexity rose by") && Contains("against the original") &&
                             Contains("against " + fine) && Contains("--max-regression"));
  const json worse = json::parse(test::read_bytes(work / "coarse.json"));
  const double then = worse.at("baseline").at("perplexity").at("then"),
               now = worse.at("models").back().at("perplexity");
  CHECK(worse.at("baseline").at("perplexity").at("difference") == now - then);
  CHECK(now > 1.1 * then);
  CHECK(test::fs::exists(work / "coarse/model.safetensors"));

  // The same questions with answers that only the original gives: what it says is right, and all else is wrong.
  lines.clear();
  for (const json& each : worse.at("answers"))
    lines += json{{"prompt", each.at("prompt")}, {"answer", each.at("given").at(0).at("text")}}.dump() + "\n";
  test::write_bytes(text, lines);
  const auto other = run("other", "W8A16", {"--baseline-results", fine});
  CHECK(other.status == 1);
  CHECK_THAT(other.err, Contains(fine) && Contains("another text"));
  CHECK_FALSE(test::fs::exists(work / "other"));
  const auto wrong = run("wrong", "W2A16_ASYM", {"--max-regression", "0.02"});
  CHECK(wrong.status == 3);
  CHECK_THAT(wrong.err, Contains("accuracy fell by") && Contains("against the original"));
  const json answers = json::parse(test::read_bytes(work / "wrong.json"));
  CHECK(answers.at("models").front().at("accuracy") == 1.0);
  CHECK(answers.at("models").back().at("accuracy") < 0.5);
}

TEST_CASE("options --baseline-results and --allow-overlap without a text to evaluate are refused") {
  for (const words& more : {words{"--baseline-results", "figures.json"}, {"--allow-overlap"}}) {
    words arguments = {"--output", "never-written"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    CHECK_THAT(test::refused_by("awq_mistral", arguments, 2), Contains(more.front()) && Contains("--evaluate"));
  }
}

}  // namespace results_tests

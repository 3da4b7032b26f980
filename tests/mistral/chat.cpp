// SPDX-License-Identifier: Apache-2.0
#include "mistral/chat.hpp"

#include <catch2/catch.hpp>

#include "mistral/jinja.hpp"
#include "mistral/tokenizer.hpp"
#include "support/chat.hpp"
#include "support/tokens.hpp"

namespace chat_tests {

using namespace nibble;
using namespace nibble::mistral;
namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using test::json;

namespace {

std::vector<message> dialogue(const json& list) {
  std::vector<message> messages;
  for (const json& m : list) messages.push_back({m["role"], m["content"]});
  return messages;
}

std::string rendered(const std::string& source, const jinja::value& variables = jinja::value::object()) {
  return jinja::render(jinja::parse(source, "FILE"), variables, "FILE");
}

}  // namespace

TEST_CASE("dialogues have the text and ids of apply_chat_template, or its refusal in its words") {
  const test::fixed_day day("1740000000");
  const json golden = test::golden_tokens("chat.json");
  const auto tok = open_tokenizer(test::embedded_model());
  for (const json& row : golden["templates"]) {
    CAPTURE(row["name"]);
    if (row["dialect"].is_null()) {
      CHECK_THAT(test::refusal([&] { test::open_chat(row["source"]); }),
                 Contains("tokenizer_config.json: the chat template is none of Mistral's; give plain text instead"));
      continue;
    }
    const auto chat = test::open_chat(row["source"]);
    CHECK(chat->name() == row["dialect"].get<std::string>());
    for (size_t i = 0; i < row["text"].size(); ++i) {
      CAPTURE(golden["dialogues"][i]);
      const auto messages = dialogue(golden["dialogues"][i]);
      if (row["text"][i].is_string()) {
        const std::string text = chat->render(messages);
        CHECK(text == row["text"][i].get<std::string>());
        CHECK(test::fnv_ids(tok->encode(text)) == row["ids"][i].get<std::string>());
      } else {
        CHECK_THAT(test::refusal([&] { chat->render(messages); }),
                   Contains(row["text"][i]["refused"].get<std::string>()));
      }
    }
    CHECK_THAT(test::refusal([&] { chat->render({}); }), Contains("at least one message"));
  }
}

TEST_CASE("256 dialogues have the text and ids of apply_chat_template") {
  const fs::path data = test::shared_data();
  if (data.empty()) {
    WARN("left out: the dialogues of ../shared/data are not there");
    return;
  }
  const json golden = test::golden_tokens("texts.json");
  int seen = 0;
  for (const json& row : golden["texts"]) {
    if (row["file"] != "chat-256.jsonl") continue;
    CAPTURE(row["model"]);
    const fs::path model =
        row["model"] == "tiny-mistral" ? test::embedded_model() : data / "tokenizers" / row["model"].get<std::string>();
    const auto chat = open_chat_template(model);
    const auto tok = open_tokenizer(model);
    std::string text;
    std::vector<int32_t> ids;
    std::ifstream lines(data / "text/chat-256.jsonl");
    for (std::string line; std::getline(lines, line);) {
      const std::string one = chat->render(dialogue(json::parse(line)["messages"]));
      const std::vector<int32_t> own = tok->encode(one);
      text += one + "\n";
      ids.insert(ids.end(), own.begin(), own.end());
    }
    CHECK(ids.size() == row["count"].get<size_t>());
    CHECK(test::fnv_ids(ids) == row["hash"].get<std::string>());
    CHECK(test::fnv(text) == row["text"].get<std::string>());
    ++seen;
  }
  CHECK(seen == 2);
}

TEST_CASE("a template's language means what it means to Jinja2") {
  const auto golden = read_json(test::golden_tokenizer("chat.json"));
  for (const auto& row : golden["language"]) {
    const auto source = row["source"].get<std::string>();
    CAPTURE(source);
    if (row["text"].is_string())
      CHECK(rendered(source, golden["variables"]) == row["text"].get<std::string>());
    else
      CHECK_THAT(test::refusal([&] { rendered(source, golden["variables"]); }), Contains("FILE: the template "));
  }
}

TEST_CASE("chat_template.jinja comes before tokenizer_config.json, and of several templates the default counts") {
  const json own = read_json<json>(test::embedded_model() / "tokenizer_config.json")["chat_template"];
  const json chatml = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}";
  test::model_files model;
  CHECK(open_chat_template(model.path()) == nullptr);
  model.add_json("tokenizer_config.json", json::object());
  CHECK(open_chat_template(model.path()) == nullptr);
  model.add_json("tokenizer_config.json", json{{"chat_template", chatml}});
  model.add("chat_template.jinja", own.get<std::string>());
  CHECK(open_chat_template(model.path())->name() == "v3");
  model.add("chat_template.jinja", "\xff");
  CHECK_THAT(test::refusal([&] { open_chat_template(model.path()); }), Contains("chat_template.jinja is not UTF-8"));

  const json rag = {{"name", "rag"}, {"template", chatml}}, normal = {{"name", "default"}, {"template", own}};
  CHECK(test::open_chat(json::array({rag, normal}))->name() == "v3");
  CHECK_THAT(test::refusal([&] { test::open_chat(json::array({rag})); }),
             Contains("none of the chat templates is named \"default\""));
  CHECK_THAT(test::refusal([&] { test::open_chat(7); }), Contains("\"chat_template\" must be a string"));
  CHECK_THAT(test::refusal([&] { test::open_chat(json::array({7})); }), Contains("the key \"name\" is missing"));
}

TEST_CASE("a template beyond what is implemented is refused by name, if it gets that far") {
  CHECK_THAT(test::refusal([] { test::open_chat("{% include 'x' %}"); }),
             Contains("uses {% include %}") && Contains("plain text instead"));
  CHECK_THAT(test::refusal([] { test::open_chat("{{ messages | frobnicate }}"); }),
             Contains("uses the filter frobnicate"));
  CHECK_THAT(test::refusal([] { test::open_chat("{{ frobnicate(1) }}"); }), Contains("uses the function frobnicate"));
  CHECK_THAT(test::refusal([] { test::open_chat("{{ 'a'.frobnicate() }}"); }), Contains("uses the method frobnicate"));
  CHECK_THAT(test::refusal([] { test::open_chat("{{ 1 is frobnicated }}"); }), Contains("uses the test frobnicated"));
  CHECK_THAT(test::refusal([] { test::open_chat("{{ [1] }}"); }), Contains("the text of a number, list or dict"));
  CHECK(rendered("{% if false %}{{ messages | frobnicate }}{% endif %}x") == "x");
}

TEST_CASE("a hostile template ends in a sentence, not in a stack or a machine used up") {
  const auto refusal = [](const std::string& source) { return test::refusal([&] { rendered(source); }); };
  const auto many = [](const std::string& what, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += what;
    return all;
  };
  CHECK_THAT(refusal("{{ " + many("(", 100'000)), Contains("nests deeper") || Contains("more than 1000 words"));
  CHECK_THAT(refusal("{{ " + many("not ", 900) + "1 }}"), Contains("nests deeper"));
  CHECK_THAT(refusal("{{ " + many("- ", 900) + "1 }}"), Contains("nests deeper"));
  CHECK_THAT(refusal("{{ 1" + many(" + 1", 100'000) + " }}"), Contains("more than 1000 words"));
  CHECK(rendered("{{ 1" + many(" + 1", 400) + " }}") == "401");
  CHECK_THAT(refusal(many("{% if true %}", 100'000)), Contains("nests deeper"));
  CHECK_THAT(refusal(many("{% for x in 'ab' %}", 150) + many("{% endfor %}", 150)), Contains("steps"));
  CHECK_THAT(refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), Contains("macros within macros"));
  CHECK_THAT(refusal("{% set ns = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}"
                     "{% endfor %}"),
             Contains("steps"));
  CHECK_THAT(refusal("{{ range(100000) | join('" + many("a", 1000) + "') }}"), Contains("bytes"));
  CHECK_THAT(refusal("{% for i in range(100001) %}{% endfor %}"), Contains("the function range"));
  CHECK_THAT(refusal("{{ 12345678901 }}"), Contains("nine digits"));
  CHECK_THAT(refusal("{{ 999999999 * 999999999 * 999999999 }}"), Contains("operator *"));
  CHECK_THAT(refusal("{{ 1 // 0 }}"), Contains("operator //"));
  CHECK_THAT(refusal("{{ '\\ud800' }}"), Contains("no character"));
  CHECK_THAT(refusal("{{ '\\x4' }}"), Contains("broken escape"));
}

TEST_CASE("a template that asks for the date gets the day of SOURCE_DATE_EPOCH, else today") {
  {
    const test::fixed_day day("951782400");
    CHECK(rendered("{{ strftime_now('%Y-%m-%d') }}") == "2000-02-29");
  }
  CHECK(rendered("{{ strftime_now('%Y') }}") >= "2024");
}

}  // namespace chat_tests

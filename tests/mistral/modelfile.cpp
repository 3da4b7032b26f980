// SPDX-License-Identifier: Apache-2.0
#include "gguf/modelfile.hpp"

#include <catch2/catch.hpp>

#include "mistral/error.hpp"
#include "mistral/gguf_tokenizer.hpp"
#include "support/chat.hpp"
#include "support/golden.hpp"
#include "support/model.hpp"
#include "support/tokens.hpp"

namespace modelfile_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;

namespace {

/// A template that writes dialogues as it likes.
struct scripted_chat : chat_template {
  std::string (*write)(const std::vector<message>&);
  explicit scripted_chat(std::string (*how)(const std::vector<message>&)) : write(how) {}
  std::string render(const std::vector<message>& messages, bool) const override { return write(messages); }
  std::string name() const override { return "scripted"; }
};

std::string text_of(const scripted_chat& chat, std::vector<std::string>& notes) {
  return modelfile_text("dir/a b.gguf", &chat, "<s>", {}, notes);
}

}  // namespace

TEST_CASE("a Modelfile writes dialogues as the chat template does, in the words that Ollama was seen to follow") {
  const test::fixed_day day("1740000000");
  const auto golden = ::golden("gguf/modelfiles.json")["templates"];
  const auto chats = test::golden_tokens("chat.json");
  size_t compared = 0;
  for (const auto& row : chats["templates"]) {
    if (row["dialect"].is_null()) continue;
    CAPTURE(row["name"]);
    const auto chat = test::open_chat(row["source"]);
    std::vector<std::string> notes;
    const std::string text = modelfile_text("dir/a.gguf", chat.get(), "<s>", {}, notes);
    const std::string expected = "FROM ./a.gguf\n" + golden.at(row["name"].get<std::string>()).get<std::string>() +
                                 "\nPARAMETER stop [INST]\nPARAMETER stop [/INST]\n";
    CHECK(text == expected);
    CHECK(notes.empty());
    ++compared;
  }
  CHECK(compared == golden.size());
}

TEST_CASE("a model without a chat template gets a Modelfile that takes prompts as they are, and no note") {
  std::vector<std::string> notes;
  CHECK(modelfile_text("dir/a b.gguf", nullptr, "<s>", {}, notes) ==
        "FROM ./a b.gguf\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n");
  CHECK(notes.empty());
}

TEST_CASE("braces and days of a chat template are Ollama's in a Modelfile") {
  const test::fixed_day day("1740000000");
  const scripted_chat chat([](const std::vector<message>& all) {
    std::string text = "<s>{{x}} 2025-02-19 after 2025-02-18;";
    for (const message& m : all) {
      if (m.role == "system") throw error("no system");
      text += m.role == "user" ? "[INST]" + m.content + "[/INST]" : m.content + "</s>";
    }
    return text;
  });
  std::vector<std::string> notes;
  CHECK_THAT(text_of(chat, notes),
             Contains("{{ if eq $i 0 }}{{ \"{{\" }}x}} {{ currentDate }} after {{ yesterdayDate }};{{ end }}"));
  CHECK_THAT(text_of(chat, notes),
             Contains("{{ if and $.System (le $i 1) }}{{ $.System }}\n\n{{ end }}{{ .Content }}"));
  CHECK(notes.empty());
}

TEST_CASE("a Modelfile leaves out the spaces that llama.cpp adds behind control tokens, and no others") {
  const test::fixed_day day("1740000000");
  const auto template_of = [](const char* name, const std::vector<std::string>& spaced) {
    const auto chats = test::golden_tokens("chat.json");
    for (const auto& row : chats["templates"])
      if (row["name"] == name) {
        std::vector<std::string> notes;
        return modelfile_text("dir/a.gguf", test::open_chat(row["source"]).get(), "<s>", spaced, notes);
      }
    FAIL("no template " << name);
    return std::string();
  };
  const std::vector<std::string> plain = {"<s>", "</s>"}, instructed = {"<s>", "</s>", "[INST]", "[/INST]"};
  CHECK_THAT(template_of("tiny-mistral", instructed),
             Contains("{{ if eq .Role \"user\" }}[INST]{{ if and $.System (le $i 1) }}") &&
                 Contains("{{ .Content }}[/INST]{{ end }}{{ if eq .Role \"assistant\" }}{{ .Content }}</s>{{ end }}"));
  // Where [INST] is text as any other, what follows on it keeps its space; messages follow on <s> and </s>.
  CHECK_THAT(
      template_of("v1 with a system message", plain),
      Contains("{{ if eq .Role \"user\" }}[INST] {{ if and") &&
          Contains("{{ .Content }} [/INST]{{ end }}{{ if eq .Role \"assistant\" }} {{ .Content }}</s>{{ end }}"));
  CHECK_THAT(template_of("old v1 with gaps", plain),
             Contains("{{ if eq .Role \"user\" }}[INST] {{") && Contains("}}{{ .Content }}</s>{{ end }}{{ end }}"));
  CHECK_THAT(
      template_of("v7 by a macro", {"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "</s>"}),
      Contains("[SYSTEM_PROMPT]{{ .Content }}[/SYSTEM_PROMPT]{{ end }}") && Contains("[INST]{{ .Content }}[/INST]"));
  const scripted_chat shouts([](const std::vector<message>& all) {
    std::string text = "<s> Answer.";
    for (const message& m : all) {
      if (m.role == "system") throw error("no system");
      text += m.role == "user" ? "<u>  " + m.content + "<e>" : " \n" + m.content + "</s>";
    }
    return text;
  });
  std::vector<std::string> notes;
  const std::string text = modelfile_text("a.gguf", &shouts, "<s>", {"<u>", "</s>"}, notes);
  CHECK_THAT(text, Contains("{{ if eq $i 0 }}Answer.{{ end }}") && Contains("}}<u> {{ if and $.System"));
  CHECK_THAT(text, Contains("<e>{{ end }}{{ if eq .Role \"assistant\" }} \n{{ .Content }}</s>{{ end }}"));
}

TEST_CASE(
    "llama.cpp puts spaces of its own behind control tokens where the tokenizer puts none, or none before a space") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  test::fs::remove(root / "model/tokenizer.model");
  const config c = read_config(root / "model");
  const auto spaced = [&](const config& settings) {
    gguf_metadata keys;
    add_tokenizer(keys, root / "model", settings);
    return spaced_tokens(keys, *open_tokenizer(root / "model"));
  };
  const std::vector<std::string> control = {"<unk>", "<s>", "</s>", "[INST]", "[/INST]"};
  CHECK(spaced(c) == control);
  auto file = read_json<nlohmann::json>(root / "model/tokenizer.json");
  REQUIRE(file["pre_tokenizer"]["prepend_scheme"] == "first");
  for (const char* scheme : {"always", "never"}) {  // always: but not before a space
    CAPTURE(scheme);
    file["pre_tokenizer"]["prepend_scheme"] = scheme;
    test::write_bytes(root / "model/tokenizer.json", file.dump());
    CHECK(spaced(c) == (std::string(scheme) == "always" ? control : std::vector<std::string>()));
  }
  file["pre_tokenizer"] = nullptr;
  file["normalizer"] = nlohmann::json::parse(
      R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                               {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})");
  test::write_bytes(root / "model/tokenizer.json", file.dump());
  CHECK(spaced(c).empty());
  config wide = c;
  wide.vocabulary = 4096;
  test::write_bytes(root / "model/tokenizer.json",
                    read_json<nlohmann::json>(test::golden_tokenizer("byte-level.json")).dump());
  CHECK(spaced(wide).empty());
}

TEST_CASE("a chat template that no Modelfile can follow leaves prompts as they are, with a note") {
  std::vector<std::string> notes;
  const scripted_chat swallows([](const std::vector<message>&) { return std::string("<s>nothing"); });
  CHECK_THAT(text_of(swallows, notes), Contains("{{ .Prompt }}"));
  const scripted_chat quotes([](const std::vector<message>& all) {
    std::string text = "<s>\"\"\"";
    for (const message& m : all) text += m.role == "user" ? "[INST]" + m.content + "[/INST]" : m.content + "</s>";
    return text;
  });
  CHECK_THAT(text_of(quotes, notes), Contains("{{ .Prompt }}"));
  REQUIRE(notes.size() == 2);
  for (const std::string& note : notes) CHECK_THAT(note, Contains("none that Ollama's could follow"));
}

}  // namespace modelfile_tests

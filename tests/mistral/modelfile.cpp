// SPDX-License-Identifier: Apache-2.0
#include "gguf/modelfile.hpp"

#include <catch2/catch.hpp>

#include "mistral/error.hpp"
#include "support/chat.hpp"
#include "support/golden.hpp"
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
  return modelfile_text("dir/a b.gguf", &chat, "<s>", notes);
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
    const std::string text = modelfile_text("dir/a.gguf", chat.get(), "<s>", notes);
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
  CHECK(modelfile_text("dir/a b.gguf", nullptr, "<s>", notes) ==
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

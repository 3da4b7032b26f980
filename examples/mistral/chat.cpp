// SPDX-License-Identifier: Apache-2.0
#include "chat.hpp"

#include "gguf_model.hpp"
#include "jinja.hpp"
#include "json.hpp"
#include "tokenizer_files.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;

constexpr const char* advice = "; give plain text instead of messages";

/// What follows BOS when a user says U, the assistant A, the user V; $ stands for EOS.
struct dialect {
  const char* name;
  const char* dialogue;
};
constexpr dialect dialects[] = {
    {"v1", "[INST] U [/INST]A$ [INST] V [/INST]"},     // Mistral-7B-Instruct-v0.1
    {"v1", "[INST] U [/INST]A$[INST] V [/INST]"},      // Mistral-7B-Instruct-v0.2, Mixtral-8x7B
    {"v1", "[INST] U [/INST] A$[INST] V [/INST]"},     //
    {"v1", " [INST] U [/INST] A$ [INST] V [/INST]"},   // the same models since system messages are allowed
    {"v3", "[INST] U[/INST] A$[INST] V[/INST]"},       // Mistral-7B-Instruct-v0.3, Mistral-Large; v7: Large-2411
    {"v3-tekken", "[INST]U[/INST]A$[INST]V[/INST]"},   // Mistral-Nemo; v7-tekken: Mistral-Small-24B
    {"v3-tekken", "[INST]U[/INST] A$[INST]V[/INST]"},  // Ministral-8B
};

class mistral_chat final : public chat_template {
 public:
  mistral_chat(const std::string& source, std::string where, const tokenizer_settings& settings)
      : where_(std::move(where)), bos_(settings.bos.value_or("")), eos_(settings.eos.value_or("")) {
    try {
      program_ = jinja::parse(source, where_);
      name_ = recognised();
    } catch (const error& unknown) {
      throw error(unknown.what() + std::string(advice));
    }
  }

  std::string render(const std::vector<message>& messages, bool generation_prompt) const override {
    if (messages.empty()) throw error("a dialogue needs at least one message");
    jinja::value variables = {{"messages", jinja::value::array()},
                              {"tools", nullptr},
                              {"documents", nullptr},
                              {"add_generation_prompt", generation_prompt}};
    if (!bos_.empty()) variables["bos_token"] = bos_;
    if (!eos_.empty()) variables["eos_token"] = eos_;
    for (const message& m : messages) variables["messages"].push_back({{"role", m.role}, {"content", m.content}});
    return jinja::render(program_, variables, where_);
  }

  std::string name() const override { return name_; }

 private:
  std::string recognised() const {
    std::string told = render({{"user", "U"}, {"assistant", "A"}, {"user", "V"}}, false);
    if (!bos_.empty() && told.compare(0, bos_.size(), bos_) == 0) told.erase(0, bos_.size());
    for (const std::string tag : {"SYSTEM_PROMPT]", "MODEL_SETTINGS]"}) {  // what the template brings itself
      const size_t end = told.find("[/" + tag);
      if (told.rfind("[" + tag, 0) == 0 && end != std::string::npos) told.erase(0, end + tag.size() + 2);
    }
    for (const dialect& known : dialects) {
      std::string expected = known.dialogue;
      expected.replace(expected.find('$'), 1, eos_);
      if (told != expected) continue;
      const std::string name = known.name;
      return name.substr(0, 2) == "v3" && marks_system() ? "v7" + name.substr(2) : name;
    }
    throw error(where_ + ": the chat template is none of Mistral's");
  }

  bool marks_system() const {
    try {
      return render({{"system", "S"}, {"user", "U"}}, false).find("[SYSTEM_PROMPT]") != std::string::npos;
    } catch (const error&) {  // it allows none
      return false;
    }
  }

  std::string where_, bos_, eos_;
  std::vector<jinja::statement> program_;
  std::string name_;
};

/// chat_template of tokenizer_config.json: a string, or a list of named ones, of which "default" counts.
std::string configured(const jinja::value& config, const std::string& where) {
  const auto found = config.is_object() ? config.find("chat_template") : config.end();
  if (found == config.end() || found->is_null()) return "";
  if (!found->is_array()) return json_get<std::string>(config, "chat_template", where);
  for (const jinja::value& one : *found)
    if (json_get<std::string>(one, "name", where) == "default") return json_get<std::string>(one, "template", where);
  throw error(where + ": none of the chat templates is named \"default\"" + advice);
}

}  // namespace

chat_template_text read_chat_template(const fs::path& model) {
  if (is_gguf(model)) return {model, read_gguf_chat_template(gguf_file(model))};
  constexpr std::uint64_t most = 1 << 20;
  fs::path file = model / "chat_template.jinja";
  std::string source;
  if (fs::exists(file)) {
    source = read_file(file, most);
    if (utf8_error(source) != std::string::npos) throw error(file.string() + " is not UTF-8" + advice);
  } else if (file = model / "tokenizer_config.json"; fs::exists(file)) {
    source = configured(read_json(file), file.string());
  }
  return {file, source};
}

std::unique_ptr<chat_template> open_chat_template(const fs::path& model) {
  const chat_template_text text = read_chat_template(model);
  if (text.source.empty()) return nullptr;
  return std::make_unique<mistral_chat>(text.source, text.file.string(), read_tokenizer_settings(model));
}

std::vector<message> read_messages(const nlohmann::ordered_json& list, const std::string& where) {
  if (!list.is_array() || list.empty())
    throw error(where + ": \"messages\" must be an array of objects with \"role\" and \"content\"");
  std::vector<message> messages;
  for (const nlohmann::ordered_json& entry : list)
    messages.push_back({json_get<std::string>(entry, "role", where), json_get<std::string>(entry, "content", where)});
  return messages;
}

}  // namespace nibble::mistral

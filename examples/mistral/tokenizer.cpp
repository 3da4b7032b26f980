// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.hpp"

#include <algorithm>
#include <array>

#include "gguf_model.hpp"
#include "gguf_tokenizer.hpp"
#include "json.hpp"
#include "tokenizer_files.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;

/// A special token as the settings write it: a string, an object with "content", or null for none.
void read_special(const nlohmann::json& json, const char* key, const std::string& where,
                  std::optional<std::string>& token) {
  const auto found = json.find(key);
  if (found == json.end()) return;
  if (found->is_null())
    token.reset();
  else
    token =
        found->is_object() ? json_get<std::string>(*found, "content", where) : json_get<std::string>(json, key, where);
}

void read_flag(const nlohmann::json& json, const char* key, const std::string& where, std::optional<bool>& flag) {
  if (const auto found = json.find(key); found != json.end() && !found->is_null())
    flag = json_get<bool>(json, key, where);
}

/// A JSON object, or an empty one where there is no such file.
nlohmann::json read_object(const fs::path& file) {
  if (!fs::exists(file)) return nlohmann::json::object();
  auto json = read_json<nlohmann::json>(file);
  if (!json.is_object()) throw error(file.string() + " must hold a JSON object");
  return json;
}

}  // namespace

tokenizer_settings read_tokenizer_settings(const fs::path& model) {
  if (is_gguf(model)) return read_gguf_tokenizer_settings(gguf_file(model));
  tokenizer_settings settings;
  for (const char* name : {"special_tokens_map.json", "tokenizer_config.json"}) {  // the last one counts
    const fs::path file = model / name;
    const nlohmann::json json = read_object(file);
    read_special(json, "bos_token", file.string(), settings.bos);
    read_special(json, "eos_token", file.string(), settings.eos);
    read_flag(json, "add_bos_token", file.string(), settings.add_bos);
    read_flag(json, "add_eos_token", file.string(), settings.add_eos);
  }
  const fs::path file = model / "config.json";
  const auto type = json_get<std::string>(read_object(file), "model_type", file.string(), "");
  constexpr std::array<std::string_view, 5> family = {"mistral", "mistral3", "voxtral", "ministral", "pixtral"};
  settings.mistral = std::find(family.begin(), family.end(), type) != family.end();
  return settings;
}

std::unique_ptr<tokenizer> open_tokenizer(const fs::path& model) {
  if (is_gguf(model)) return read_gguf_tokenizer(gguf_file(model));
  if (!fs::is_directory(model)) throw error("there is no model directory " + model.string());
  const tokenizer_settings settings = read_tokenizer_settings(model);
  if (fs::exists(model / "tokenizer.json")) return read_tokenizer_json(model / "tokenizer.json", settings);
  if (fs::exists(model / "tokenizer.model")) return read_tokenizer_model(model / "tokenizer.model", settings);
  if (fs::exists(model / "tekken.json"))
    throw error(model.string() + " has only tekken.json; save its tokenizer.json there (transformers converts it)");
  throw error(model.string() + " has no tokenizer: neither tokenizer.json nor tokenizer.model");
}

}  // namespace nibble::mistral

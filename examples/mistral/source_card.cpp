// SPDX-License-Identifier: Apache-2.0
#include "source_card.hpp"

#include <algorithm>

#include "error.hpp"
#include "json.hpp"
#include "yaml.hpp"

namespace nibble::mistral {

namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

constexpr std::uint64_t max_card_bytes = std::uint64_t(1) << 24;

/// A README's metadata: what stands between its first line "---" and the next. An object, empty where there is none.
json front_matter(const fs::path& card) {
  try {
    const std::string text = read_file(card, max_card_bytes);
    if (text.rfind("---\n", 0) != 0) return json::object();
    const size_t end = text.find("\n---", 3);
    if (end == std::string::npos) return json::object();
    json found = parse_yaml(text.substr(4, end + 1 - 4), card.string());
    return found.is_object() ? found : json::object();
  } catch (const error&) {
    return json::object();  // a card is for people; one that cannot be read is no reason to refuse its model
  }
}

std::string string_of(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

/// Letters, digits, '-', '_' and '.', as a hub names users and models.
bool hub_word(const std::string& word) {
  const auto good = [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.'; };
  return !word.empty() && word.size() <= 96 && word.front() != '.' && std::all_of(word.begin(), word.end(), good);
}

/// ORG/NAME, or nothing.
std::string hub_name(const std::string& text) {
  const size_t slash = text.find('/');
  const bool named = slash != std::string::npos && hub_word(text.substr(0, slash)) && hub_word(text.substr(slash + 1));
  return named ? text : "";
}

std::string cached_name(const fs::path& model) {
  for (const fs::path& part : model) {
    const std::string word = part.string(), prefix = "models--";
    const size_t split = word.find("--", prefix.size());
    if (word.rfind(prefix, 0) == 0 && split != std::string::npos)
      return hub_name(word.substr(prefix.size(), split - prefix.size()) + "/" + word.substr(split + 2));
  }
  return "";
}

}  // namespace

json describe_source(const fs::path& model, const config& c) {
  std::error_code failed;
  fs::path place = fs::absolute(model, failed).lexically_normal();
  if (!place.has_filename()) place = place.parent_path();
  const json card = front_matter(model / "README.md");
  std::string base = cached_name(place);
  if (base.empty()) base = hub_name(string_of(c.json, "_name_or_path"));
  std::string name = base.empty() ? string_of(card, "model_name") : base.substr(base.find('/') + 1);
  if (name.empty()) name = place.filename().string();
  json out = {{"name", name}};
  if (!base.empty()) out["base_model"] = base;
  for (const char* key : {"license", "license_name", "license_link"})
    if (const std::string found = string_of(card, key); !found.empty()) out[key] = found;
  json languages = json::array();
  if (const auto found = card.find("language"); found != card.end())
    for (const json& each : found->is_array() ? *found : json::array({*found}))
      if (each.is_string()) languages.push_back(each);
  if (!languages.empty()) out["language"] = std::move(languages);
  return out;
}

}  // namespace nibble::mistral

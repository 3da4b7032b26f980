// SPDX-License-Identifier: Apache-2.0
#include "mapping.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>

#include "error.hpp"
#include "json.hpp"

namespace nibble::mistral {
namespace {

using json = nlohmann::ordered_json;

bool contains(const keys& all, const std::string& key) {
  return std::find(all.begin(), all.end(), key) != all.end();
}

/// "a, b and c"; pydantic's private fields, which end in _, are no one's to give.
std::string listed(keys all) {
  all.erase(std::remove_if(all.begin(), all.end(), [](const std::string& key) { return key.back() == '_'; }),
            all.end());
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) text += (i == 0 ? "" : i + 1 == all.size() ? " and " : ", ") + all[i];
  return text;
}

}  // namespace

keys operator+(keys a, const keys& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

bool is_none(const json& value) {
  return value.is_null() || (value.is_structured() && value.empty());
}

std::string shown(const std::string& text) {
  return excerpt(json(text));
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

keys strings_of(const json& value, const std::string& where) {
  if (value.is_string()) return {value.get<std::string>()};
  if (!value.is_array()) throw error(where + " must be a list of names, but is " + excerpt(value));
  keys all;
  for (const json& entry : value) {
    if (!entry.is_string()) throw error(where + " must be a list of names, but holds " + excerpt(entry));
    all.push_back(entry.get<std::string>());
  }
  return all;
}

mapping::mapping(const json& value, std::string where, const keys& used, const keys& ignored, keys& without_effect)
    : value_(value.is_null() ? json::object() : value), where_(std::move(where)) {
  if (!value_.is_object()) throw error(where_ + " must be a mapping of keys, but is " + excerpt(value_));
  for (const auto& [key, given] : value_.items()) {
    if (contains(used, key)) continue;
    if (!contains(ignored, key))
      throw error(where_ + ": the key " + shown(key) + " is not known; " + listed(used + ignored) + " are");
    const std::string name = where_.substr(where_.rfind(", ") + 2) + "." + key;
    if (!is_none(given) && !contains(without_effect, name)) without_effect.push_back(name);
  }
}

const json* mapping::get(const char* key) const {
  const auto found = value_.find(key);
  return found == value_.end() || is_none(*found) ? nullptr : &*found;
}

void mapping::refuse(const char* key, const std::string& why) const {
  throw error(where_ + ": \"" + key + "\" is " + excerpt(*get(key)) + ", " + why);
}

index_t mapping::integer(const char* key, index_t low, index_t high, index_t otherwise) const {
  const json* found = get(key);
  if (!found) return otherwise;
  double number = std::nan("");
  if (found->is_number()) number = found->get<double>();
  if (const auto* text = found->get_ptr<const std::string*>()) {
    char* end = nullptr;
    number = std::strtod(text->c_str(), &end);
    if (text->empty() || *end != '\0') number = std::nan("");
  }
  const bool fits = number >= static_cast<double>(low) && number <= static_cast<double>(high);
  if (!fits || number != std::floor(number))
    refuse(key, "and must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
  return static_cast<index_t>(number);
}

bool mapping::boolean(const char* key, bool otherwise) const {
  const json* found = get(key);
  if (!found) return otherwise;
  if (found->is_boolean()) return found->get<bool>();
  const std::string text = found->is_string() ? lower(found->get<std::string>()) : "";
  if (text == "true" || text == "yes" || text == "on") return true;
  if (text == "false" || text == "no" || text == "off") return false;
  refuse(key, "and must be true or false");
}

std::string mapping::word(const char* key) const {
  const json* found = get(key);
  if (!found) return "";
  if (!found->is_string()) refuse(key, "and must be a word");
  return lower(found->get<std::string>());
}

keys mapping::strings(const char* key, const keys& otherwise) const {
  const json* found = get(key);
  return found ? strings_of(*found, where_ + ": \"" + key + "\"") : otherwise;
}

}  // namespace nibble::mistral

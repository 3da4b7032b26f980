// SPDX-License-Identifier: Apache-2.0
/// @file
/// JSON from files that nobody vouches for: read whole, checked for size and nesting before a tree is built, and taken
/// apart by type, so that whatever a file holds ends as a value or as one sentence that names the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>

#include "error.hpp"

namespace nibble::mistral {

inline constexpr std::uint64_t max_json_bytes = std::uint64_t{1} << 28;  ///< 256 MiB; Tekken's tokenizer.json has 17 MB
inline constexpr int max_json_depth = 512;                               ///< a tree is copied and printed recursively

/// The bytes of a file. @throws error naming it when it cannot be read or holds more than `max_bytes`.
std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes = max_json_bytes);

/// Parses `text`; `where` names it in messages: a path, or "path, line 3".
/// Json is nlohmann::ordered_json (keeps the order of keys; finding one is linear) or nlohmann::json (for objects of
/// many keys, such as vocabularies).
/// @throws error naming `where` and the byte for a syntax error, bytes that are not UTF-8, or nesting beyond
/// max_json_depth; for an object that has a key twice, since readers differ in which one counts.
template <class Json = nlohmann::ordered_json>
Json parse_json(std::string_view text, const std::string& where);

/// parse_json of a file.
template <class Json = nlohmann::ordered_json>
Json read_json(const std::filesystem::path& path, std::uint64_t max_bytes = max_json_bytes) {
  return parse_json<Json>(read_file(path, max_bytes), path.string());
}

/// `value` as it may stand in a message: ASCII, at most 60 bytes.
template <class Json>
std::string excerpt(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 4) return "an array";
  const std::string text = value.dump(-1, ' ', true);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

/// `json` as the text of a file. Names of files may be no UTF-8, which JSON has to be: what is none is replaced.
std::string json_text(const nlohmann::ordered_json& json);

/// Whether `value` is a T: bool, an integer type (a JSON integer in its range), a floating-point type, std::string.
template <class T, class Json>
bool json_is(const Json& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value.is_boolean();
  } else if constexpr (std::is_integral_v<T>) {
    using limits = std::numeric_limits<T>;
    if (value.is_number_unsigned())
      return value.template get<std::uint64_t>() <= static_cast<std::uint64_t>((limits::max)());
    if (!value.is_number_integer() || std::is_unsigned_v<T>) return false;
    const auto integer = value.template get<std::int64_t>();  // negative: the parser calls all others unsigned
    return integer >= static_cast<std::int64_t>((limits::min)());
  } else if constexpr (std::is_floating_point_v<T>) {
    return value.is_number();
  } else {
    static_assert(std::is_same_v<T, std::string>, "json_is knows bool, numbers and strings");
    return value.is_string();
  }
}

template <class T>
constexpr const char* json_kind() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_integral_v<T>) return "an integer in range";
  if constexpr (std::is_floating_point_v<T>) return "a number";
  return "a string";
}

/// `object[key]` as a T. @throws error naming `where` and the key when it is missing or something else.
template <class T, class Json>
T json_get(const Json& object, const char* key, const std::string& where) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end()) throw error(where + ": the key \"" + key + "\" is missing");
  if (!json_is<T>(*found))
    throw error(where + ": \"" + key + "\" must be " + json_kind<T>() + ", but is " + excerpt(*found));
  return found->template get<T>();
}

/// As json_get, but `otherwise` when the key is missing or null.
template <class T, class Json>
T json_get(const Json& object, const char* key, const std::string& where, T otherwise) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found == object.end() || found->is_null() ? otherwise : json_get<T>(object, key, where);
}

}  // namespace nibble::mistral

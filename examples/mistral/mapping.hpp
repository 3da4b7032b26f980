// SPDX-License-Identifier: Apache-2.0
/// @file
/// A mapping of a recipe, read key by key: what is neither used nor known to change nothing is refused by name, and values
/// are taken as pydantic takes them ("4" for 4, "false" for false).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nibble/core.hpp"

namespace nibble::mistral {

using keys = std::vector<std::string>;

keys operator+(keys a, const keys& b);

/// null, or a list or mapping that is empty.
bool is_none(const nlohmann::ordered_json& value);

/// `text` quoted as it may stand in a message.
std::string shown(const std::string& text);

class mapping {
 public:
  /// @param where  "FILE, MODIFIER, …"; names it in messages
  /// @param without_effect  gains those of the keys `ignored` that are given
  /// @throws error for a value that is no mapping, and for a key that is neither in `used` nor in `ignored`.
  mapping(const nlohmann::ordered_json& value, std::string where, const keys& used, const keys& ignored,
          keys& without_effect);

  const std::string& where() const { return where_; }

  /// The value of `key`; null when it is absent, null or empty.
  const nlohmann::ordered_json* get(const char* key) const;
  /// Whether `key` is there, be it null.
  bool has(const char* key) const { return value_.is_object() && value_.contains(key); }
  /// @throws error: WHERE: "key" is VALUE, WHY. @pre get(key) is not null.
  [[noreturn]] void refuse(const char* key, const std::string& why) const;

  index_t integer(const char* key, index_t low, index_t high, index_t otherwise) const;
  bool boolean(const char* key, bool otherwise) const;
  /// A word, in lower case; empty when there is none.
  std::string word(const char* key) const;
  /// A list of strings, or one string.
  keys strings(const char* key, const keys& otherwise) const;

 private:
  nlohmann::ordered_json value_;
  std::string where_;
};

/// A list of strings, or one string. @throws error naming `where`.
keys strings_of(const nlohmann::ordered_json& value, const std::string& where);

std::string lower(std::string text);

}  // namespace nibble::mistral

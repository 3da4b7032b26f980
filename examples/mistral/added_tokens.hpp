// SPDX-License-Identifier: Apache-2.0
/// @file
/// The added tokens of a tokenizer: found in a text by leftmost-longest matching before anything else looks at it.
/// Source: the `tokenizers` package, AddedVocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nibble::mistral {

struct added_token {
  int32_t id = 0;
  std::string content;
  bool special = false;      ///< left out by decode
  bool normalized = false;   ///< looked for in the normalized text
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< takes the white space behind it
};

class added_tokens {
 public:
  /// A piece of text (id −1) or a token; [begin, end) in the text.
  struct part {
    int32_t id;
    size_t begin, end;
  };

  /// `pattern` is what is looked for: the token's content, or what the normalizer makes of it. Empty ones never match.
  void add(const added_token& token, const std::string& pattern);

  /// `text` cut into tokens and what is between them, in order; pieces are never empty. @pre text is UTF-8.
  std::vector<part> split(std::string_view text) const;

 private:
  /// The longest pattern at text[at], or null.
  const added_token* longest(std::string_view text, size_t at, size_t& end) const;

  std::vector<added_token> tokens_;
  std::vector<int32_t> ends_{-1};                // by trie node: index of the token that ends there
  std::unordered_map<uint64_t, uint32_t> next_;  // node << 8 | byte → node; 0 is the root
};

}  // namespace nibble::mistral

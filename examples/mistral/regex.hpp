// SPDX-License-Identifier: Apache-2.0
/// @file
/// The regular expressions of tokenizer.json's Split, by PCRE2. `tokenizers` matches them with Oniguruma; both read
/// \p{…} by Unicode properties, but \s differs (PCRE2 counts U+180E), so \s is spelled out as White_Space.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::mistral {

class regex {
 public:
  /// @throws error naming `where` when `pattern` is none.
  regex(const std::string& pattern, std::string where);
  ~regex();
  regex(regex&&) noexcept;

  /// The [begin, end) of all matches that follow each other in `text`; empty ones are left out. Thread-safe.
  /// @pre text is UTF-8. @throws error naming `where` when the pattern takes ever more steps.
  std::vector<std::pair<size_t, size_t>> matches(std::string_view text) const;

 private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace nibble::mistral

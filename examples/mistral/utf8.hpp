// SPDX-License-Identifier: Apache-2.0
/// @file
/// UTF-8 as the tokenizers need it. Source: RFC 3629 (no surrogates, no overlong forms, at most U+10FFFF).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble::mistral {

/// Bytes of the character at `text[at]`: 1 … 4, or 0 where the bytes there are not UTF-8. @pre at < text.size().
size_t utf8_length(std::string_view text, size_t at);

/// Offset of the first byte that is not UTF-8, or npos.
size_t utf8_error(std::string_view text);

/// `text` with each maximal subpart of an ill-formed sequence replaced by U+FFFD, as Python's errors="replace" does
/// (Unicode 14, section 3.9, table 3-8).
std::string utf8_repaired(std::string_view text);

/// The character at `text[at]`. @pre utf8_length(text, at) != 0.
char32_t utf8_value(std::string_view text, size_t at);

std::string to_utf8(char32_t character);

/// The space of \s in the regular expressions of `tokenizers`: the Unicode property White_Space.
bool is_white_space(char32_t character);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Texts as words, for comparing what they say and not how it is set.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble::mistral {

/// The words of `text`: what stands between white space, in lower case, punctuation taken out (ASCII's, the block General
/// Punctuation U+2010 … U+205E, CJK's U+3001 … U+303F, and «»¡¿´). A character of a script without spaces (CJK) is a word.
/// @throws error when the C library has no UTF-8 locale to find lower case by.
std::vector<std::string> words_of(std::string_view text);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "words.hpp"

#include <clocale>
#include <cwctype>

#include "error.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

char32_t lower(char32_t letter) {
  static const locale_t unicode = ::newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  if (letter < 0x80) return letter >= 'A' && letter <= 'Z' ? letter - 'A' + 'a' : letter;
  if (unicode == nullptr) throw error("the C library has no locale C.UTF-8, which comparing answers needs; install it");
  return static_cast<char32_t>(::towlower_l(static_cast<wint_t>(letter), unicode));
}

bool is_punctuation(char32_t c) {
  const bool ascii =
      c > 0x20 && c < 0x7f && !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z');
  return ascii || (c >= 0x2010 && c <= 0x205e && !is_white_space(c)) || (c >= 0x3001 && c <= 0x303f) || c == U'«' ||
         c == U'»' || c == U'¡' || c == U'¿' || c == U'´';
}

/// Scripts that put no spaces between words: CJK from the radicals on, without Hangul, which does.
bool stands_alone(char32_t c) {
  return (c >= 0x2e80 && c < 0xa000 && !is_white_space(c)) || (c >= 0xf900 && c < 0xfb00) ||
         (c >= 0x20000 && c < 0x40000);
}

}  // namespace

std::vector<std::string> words_of(std::string_view text) {
  const std::string repaired = utf8_repaired(text);
  std::vector<std::string> words;
  bool inside = false;
  for (size_t at = 0; at < repaired.size(); at += utf8_length(repaired, at)) {
    const char32_t c = utf8_value(repaired, at);
    if (is_white_space(c)) {
      inside = false;
    } else if (!is_punctuation(c)) {
      if (!inside || stands_alone(c)) words.emplace_back();
      words.back() += to_utf8(lower(c));
      inside = !stands_alone(c);
    }
  }
  return words;
}

}  // namespace nibble::mistral

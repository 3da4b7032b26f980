// SPDX-License-Identifier: Apache-2.0
#include "regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>

#include "error.hpp"

namespace nibble::mistral {
namespace {

/// White_Space as the inside of a character class.
constexpr std::string_view white_space =
    R"(\x{09}-\x{0d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// `pattern` with \s and \S spelled out. \S inside a class has no spelling and is left to PCRE2.
std::string with_white_space(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    if (c == '\\' && at + 1 < pattern.size()) {
      const char escaped = pattern[++at];
      if (escaped == 's' && in_class)
        out += white_space;
      else if ((escaped == 's' || escaped == 'S') && !in_class)
        out.append(escaped == 's' ? "[" : "[^").append(white_space).append("]");
      else
        out.append({c, escaped});
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

std::string message(int code) {
  PCRE2_UCHAR text[256];
  return pcre2_get_error_message(code, text, sizeof(text)) < 0 ? "error " + std::to_string(code)
                                                               : reinterpret_cast<const char*>(text);
}

struct freed_by_pcre2 {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

struct regex::impl {
  std::unique_ptr<pcre2_code, freed_by_pcre2> code;
  std::string pattern, where;
};

regex::regex(const std::string& pattern, std::string where) : impl_(std::make_unique<impl>()) {
  const std::string spelled = with_white_space(pattern);
  int code = 0;
  PCRE2_SIZE at = 0;
  impl_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(), PCRE2_UTF | PCRE2_UCP,
                                  &code, &at, nullptr));
  if (!impl_->code) throw error(where + ": the regular expression " + pattern + " is not one: " + message(code));
  pcre2_jit_compile(impl_->code.get(), PCRE2_JIT_COMPLETE);  // where there is no JIT, matching is only slower
  impl_->pattern = pattern;
  impl_->where = std::move(where);
}

regex::~regex() = default;
regex::regex(regex&&) noexcept = default;

std::vector<std::pair<size_t, size_t>> regex::matches(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, freed_by_pcre2> data(
      pcre2_match_data_create_from_pattern(impl_->code.get(), nullptr));
  std::vector<std::pair<size_t, size_t>> found;
  for (size_t at = 0; at < text.size();) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(impl_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                         PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, data.get(), nullptr);
    };
    int count = match(0);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) count = match(PCRE2_NO_JIT);  // the interpreter backtracks on the heap
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0)
      throw error(impl_->where + ": matching the regular expression " + impl_->pattern + ": " + message(count));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    found.emplace_back(ends[0], ends[1]);
    if (ends[1] <= at)  // a lookbehind with \K may end before it began
      throw error(impl_->where + ": the regular expression " + impl_->pattern + " matches backwards");
    at = ends[1];
  }
  return found;
}

}  // namespace nibble::mistral

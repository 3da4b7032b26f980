// SPDX-License-Identifier: Apache-2.0
#include "regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <chrono>
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

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  return pcre2_get_error_message(code, text, sizeof(text)) < 0 ? "error " + std::to_string(code)
                                                               : reinterpret_cast<const char*>(text);
}

constexpr size_t longest_pattern = 65536;
constexpr uint32_t heap_kib = 65536;              // what the interpreter may take to backtrack
constexpr uint32_t steps_of_a_match = 5'000'000;  // tens of milliseconds; PCRE2 does not count all of them

/// How long all matches in one text may take, some thirty times what Tekken's pattern takes at worst. Steps would be the
/// better measure, but compiled patterns count too few of them: a*b|a is quadratic and none of its matches is long.
constexpr double seconds_for(size_t bytes) {
  return 5.0 + 5e-6 * static_cast<double>(bytes);
}

struct freed_by_pcre2 {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

struct regex::impl {
  std::unique_ptr<pcre2_code, freed_by_pcre2> code;
  std::string pattern, where;
};

regex::regex(const std::string& pattern, std::string where) : impl_(std::make_unique<impl>()) {
  if (pattern.size() > longest_pattern)
    throw error(where + ": a regular expression of more than " + std::to_string(longest_pattern) + " bytes");
  const std::string spelled = with_white_space(pattern);
  int code = 0;
  PCRE2_SIZE at = 0;
  // \C would cut characters into bytes.
  impl_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, nullptr));
  if (!impl_->code) throw error(where + ": the regular expression " + pattern + " is not one: " + pcre2_message(code));
  pcre2_jit_compile(impl_->code.get(), PCRE2_JIT_COMPLETE);  // where there is no JIT, matching is only slower
  impl_->pattern = pattern;
  impl_->where = std::move(where);
}

regex::~regex() = default;
regex::regex(regex&&) noexcept = default;

std::vector<std::pair<size_t, size_t>> regex::matches(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, freed_by_pcre2> data(
      pcre2_match_data_create_from_pattern(impl_->code.get(), nullptr));
  const std::unique_ptr<pcre2_match_context, freed_by_pcre2> limits(pcre2_match_context_create(nullptr));
  pcre2_set_heap_limit(limits.get(), heap_kib);
  pcre2_set_match_limit(limits.get(), steps_of_a_match);
  const auto fail = [&](const std::string& what) {
    throw error(impl_->where + ": matching the regular expression " + impl_->pattern + ": " + what);
  };
  const auto start = std::chrono::steady_clock::now();
  const std::chrono::duration<double> allowed(seconds_for(text.size()));
  std::vector<std::pair<size_t, size_t>> found;
  for (size_t at = 0; at < text.size();) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(impl_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                         PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, data.get(), limits.get());
    };
    int count = match(0);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) count = match(PCRE2_NO_JIT);  // the interpreter backtracks on the heap
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) fail(pcre2_message(count));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    if (ends[1] <= at || ends[0] > ends[1]) fail("it matches backwards");  // a lookaround with \K
    found.emplace_back(ends[0], ends[1]);
    at = ends[1];
    if (found.size() % 16 == 0 && std::chrono::steady_clock::now() - start > allowed) fail("it takes too long");
  }
  return found;
}

}  // namespace nibble::mistral

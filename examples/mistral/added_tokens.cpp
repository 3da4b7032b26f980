// SPDX-License-Identifier: Apache-2.0
#include "added_tokens.hpp"

#include <algorithm>

#include "regex.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

/// Where the character before `at` begins. @pre at > 0.
size_t before(std::string_view text, size_t at) {
  do --at;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80);
  return at;
}

size_t white_space_begin(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t at = before(text, end);
    if (!is_white_space(utf8_value(text, at))) break;
    end = at;
  }
  return end;
}

size_t white_space_end(std::string_view text, size_t begin) {
  while (begin < text.size() && is_white_space(utf8_value(text, begin))) begin += utf8_length(text, begin);
  return begin;
}

/// \w of `tokenizers`: Alphabetic (letters, letter numbers, circled letters), marks, digits, connectors, joiners.
bool is_word(std::string_view character) {
  static const regex word(
      R"(^[\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{200c}\x{200d}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189}])",
      "added tokens");
  return !word.matches(character).empty();
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    const size_t at = before(text, begin);
    if (is_word(text.substr(at, begin - at))) return false;
  }
  return end == text.size() || !is_word(text.substr(end, utf8_length(text, end)));
}

}  // namespace

void added_tokens::add(const added_token& token, const std::string& pattern) {
  if (pattern.empty()) return;
  uint32_t node = 0;
  for (const char c : pattern) {
    const uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(c);
    const auto [found, fresh] = next_.emplace(key, static_cast<uint32_t>(ends_.size()));
    if (fresh) ends_.push_back(-1);
    node = found->second;
  }
  if (ends_[node] < 0) ends_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

const added_token* added_tokens::longest(std::string_view text, size_t at, size_t& end) const {
  int32_t best = -1;
  uint32_t node = 0;
  while (at < text.size()) {
    const auto found = next_.find(static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(text[at]));
    if (found == next_.end()) break;
    node = found->second;
    ++at;
    if (ends_[node] >= 0) {
      best = ends_[node];
      end = at;
    }
  }
  return best < 0 ? nullptr : &tokens_[static_cast<size_t>(best)];
}

std::vector<added_tokens::part> added_tokens::split(std::string_view text) const {
  std::vector<part> parts;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    const added_token* token = longest(text, at, end);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    at = end;  // matches do not overlap, whether or not they count
    if (token->single_word && !stands_alone(text, begin, end)) continue;
    if (token->lstrip) begin = std::max(white_space_begin(text.substr(0, begin), begin), done);
    if (token->rstrip) end = white_space_end(text, end);
    if (done < begin) parts.push_back({-1, done, begin});
    parts.push_back({token->id, begin, end});
    done = end;
  }
  if (done < text.size()) parts.push_back({-1, done, text.size()});
  return parts;
}

}  // namespace nibble::mistral

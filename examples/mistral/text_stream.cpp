// SPDX-License-Identifier: Apache-2.0
#include "text_stream.hpp"

#include <algorithm>

#include "utf8.hpp"

namespace nibble::mistral {

namespace {

/// Ids that stay in view: more than the four bytes of a character and a space before it.
constexpr size_t context = 8;
constexpr const char* replacement_character = "\xef\xbf\xbd";  // U+FFFD

bool ends_in_replacement(const std::string& text) {
  return text.size() >= 3 && text.compare(text.size() - 3, 3, replacement_character) == 0;
}

/// The last ids, from one that begins a character: of byte-fallback tokens, a run that does not would read U+FFFD to its
/// end.
std::vector<int32_t> tail(const tokenizer& tok, const std::vector<int32_t>& ids) {
  for (size_t kept = context; kept < std::min(ids.size(), 2 * context); ++kept) {
    std::vector<int32_t> last(ids.end() - static_cast<std::ptrdiff_t>(kept), ids.end());
    if (tok.decode(last).compare(0, 3, replacement_character) != 0) return last;
  }
  return ids;
}

}  // namespace

text_stream::text_stream(const tokenizer& tok, const std::vector<int32_t>& prompt)
    : tok_(tok), ids_(tail(tok, prompt)), given_(tok.decode(ids_)) {}

std::string text_stream::add(int32_t id) {
  ids_.push_back(id);
  return take(false);
}

std::string text_stream::finish() {
  return take(true);
}

std::string text_stream::take(bool all) {
  const std::string text = tok_.decode(ids_);
  // A prompt that ends inside a character reads otherwise once its bytes are there: what both share is given already.
  size_t from =
      static_cast<size_t>(std::mismatch(given_.begin(), given_.end(), text.begin(), text.end()).second - text.begin());
  while (from > 0 && from < text.size() && utf8_length(text, from) == 0) --from;
  if (!all && ends_in_replacement(text) && text.size() > from) return "";
  std::string fresh = text.substr(from);
  given_ = text;
  if (ids_.size() > 2 * context) {
    ids_ = tail(tok_, ids_);
    given_ = tok_.decode(ids_);
  }
  return fresh;
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "text_file.hpp"

#include <algorithm>

#include "json.hpp"
#include "utf8.hpp"

namespace nibble::mistral {

std::string read_text(const std::filesystem::path& file) {
  std::string text = read_file(file);
  if (const size_t at = utf8_error(text); at != std::string::npos)
    throw error(file.string() + " is not UTF-8 at byte " + std::to_string(at) + "; convert it, for example with iconv");
  if (text.compare(0, 3, "\xef\xbb\xbf") == 0) text.erase(0, 3);
  return text;
}

std::vector<jsonl_line> read_lines(std::string_view text, const std::filesystem::path& file) {
  std::vector<jsonl_line> lines;
  size_t number = 1;
  for (size_t begin = 0; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view one = text.substr(begin, end - begin);
    if (one.find_first_not_of(" \t\r") != std::string_view::npos)
      lines.push_back({one, file.string() + ", line " + std::to_string(number)});
    begin = end + 1;
  }
  return lines;
}

}  // namespace nibble::mistral

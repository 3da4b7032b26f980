// SPDX-License-Identifier: Apache-2.0
#include "json.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

namespace nibble::mistral {

std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  std::error_code failed;
  if (std::filesystem::is_directory(path, failed)) throw error(path.string() + " is a directory, not a file");
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw error("cannot open " + path.string() + ": " + std::strerror(errno != 0 ? errno : EIO));
  std::string bytes;
  for (char piece[1 << 16]; file.read(piece, sizeof(piece)), file.gcount() > 0;) {
    bytes.append(piece, static_cast<size_t>(file.gcount()));
    if (bytes.size() > max_bytes)
      throw error(path.string() + " holds more than " + std::to_string(max_bytes) + " bytes, the most that is read");
  }
  if (file.bad()) throw error("cannot read " + path.string() + " to its end");
  return bytes;
}

namespace {

/// Byte where nesting first exceeds max_json_depth, or npos. Strings are skipped; the parser judges everything else.
size_t too_deep(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (quoted) {
      if (c == '\\') ++at;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (++depth > max_json_depth) return at;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return std::string_view::npos;
}

}  // namespace

template <class Json>
Json parse_json(std::string_view text, const std::string& where) {
  if (const size_t at = too_deep(text); at != std::string_view::npos)
    throw error(where + ": JSON nested deeper than " + std::to_string(max_json_depth) + " levels at byte " +
                std::to_string(at));
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const typename Json::parse_error& failed) {
    throw error(where + ": not valid JSON at byte " + std::to_string(failed.byte == 0 ? 0 : failed.byte - 1) + " of " +
                std::to_string(text.size()) + "; the file is damaged or cut short");
  } catch (const typename Json::exception&) {  // a number beyond double
    throw error(where + ": JSON holds a number that no type can hold");
  }
}

template nlohmann::ordered_json parse_json<nlohmann::ordered_json>(std::string_view, const std::string&);
template nlohmann::json parse_json<nlohmann::json>(std::string_view, const std::string&);

}  // namespace nibble::mistral

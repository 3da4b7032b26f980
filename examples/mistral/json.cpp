// SPDX-License-Identifier: Apache-2.0
#include "json.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <system_error>
#include <vector>

namespace nibble::mistral {

std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  std::error_code failed;
  const auto what = std::filesystem::status(path, failed);
  if (std::filesystem::is_directory(what)) throw error(path.string() + " is a directory, not a file");
  if (std::filesystem::exists(what) && !std::filesystem::is_regular_file(what))  // a pipe would be waited for
    throw error(path.string() + " is not a regular file");
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

constexpr size_t max_ordered_members = 20'000;  // of one ordered object: reading it takes their number squared

/// What a look at the text alone tells, strings skipped: the parser judges everything else.
struct outline {
  size_t too_deep = std::string_view::npos;  ///< byte where nesting first exceeds max_json_depth
  size_t members = 0;                        ///< "key": value pairs, if it is JSON
  size_t most_members = 0;                   ///< of one object
};

outline look_at(std::string_view text) {
  outline seen;
  std::vector<size_t> open = {0};  // by level: members of the innermost object there
  bool quoted = false;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (quoted) {
      if (c == '\\') ++at;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (static_cast<int>(open.size()) > max_json_depth) {
        seen.too_deep = at;
        return seen;
      }
      open.push_back(0);
    } else if ((c == '}' || c == ']') && open.size() > 1) {
      open.pop_back();
    } else if (c == ':') {
      ++seen.members;
      seen.most_members = std::max(seen.most_members, ++open.back());
    }
  }
  return seen;
}

template <class Json>
size_t members(const Json& value) {
  size_t count = value.is_object() ? value.size() : 0;
  if (value.is_structured())
    for (const Json& inner : value) count += members(inner);
  return count;
}

/// The first key that stands twice in one object. @pre text is JSON.
std::string repeated_key(std::string_view text) {
  using event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> open;
  std::string found;
  const auto watch = [&](int, event what, nlohmann::json& value) {
    if (what == event::object_start) open.emplace_back();
    if (what == event::object_end) open.pop_back();
    if (what == event::key && !open.back().insert(value.get<std::string>()).second && found.empty())
      found = excerpt(value);
    return true;
  };
  const auto read = nlohmann::json::parse(text.begin(), text.end(), watch);
  return read.is_discarded() ? "" : found;
}

}  // namespace

template <class Json>
Json parse_json(std::string_view text, const std::string& where) {
  const outline seen = look_at(text);
  if (seen.too_deep != std::string_view::npos)
    throw error(where + ": JSON nested deeper than " + std::to_string(max_json_depth) + " levels at byte " +
                std::to_string(seen.too_deep));
  if (std::is_same_v<Json, nlohmann::ordered_json> && seen.most_members > max_ordered_members)
    throw error(where + ": an object of more than " + std::to_string(max_ordered_members) +
                " keys, where none has a use");
  Json value;
  try {
    value = Json::parse(text.begin(), text.end());
  } catch (const typename Json::parse_error& failed) {
    throw error(where + ": not valid JSON at byte " + std::to_string(failed.byte == 0 ? 0 : failed.byte - 1) + " of " +
                std::to_string(text.size()) + "; the file is damaged or cut short");
  } catch (const typename Json::exception&) {  // a number beyond double
    throw error(where + ": JSON holds a number that no type can hold");
  }
  if (members(value) != seen.members)
    throw error(where + ": the key " + repeated_key(text) + " stands twice in one object; leave one");
  return value;
}

std::string json_text(const nlohmann::ordered_json& json) {
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

template nlohmann::ordered_json parse_json<nlohmann::ordered_json>(std::string_view, const std::string&);
template nlohmann::json parse_json<nlohmann::json>(std::string_view, const std::string&);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "pipeline.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "json.hpp"
#include "regex.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

using nlohmann::json;

const json& child(const json& component, const char* key, const std::string& where) {
  const auto found = component.is_object() ? component.find(key) : component.end();
  if (found == component.end()) throw error(where + ": the key \"" + key + "\" is missing");
  return *found;
}

const json& children(const json& component, const char* key, const std::string& where) {
  const json& list = child(component, key, where);
  if (!list.is_array()) throw error(where + ": \"" + key + "\" must be an array");
  return list;
}

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw error(where + ": " + what + " is not supported");
}

std::string type_of(const json& component, const std::string& where) {
  return json_get<std::string>(component, "type", where);
}

/// A Sequence's members, one after the other.
template <class Function, class Read>
Function sequence(const json& list, const std::string& where, Read read) {
  std::vector<Function> steps;
  for (const json& step : list) steps.push_back(read(step, where));
  return [steps](auto value) {
    for (const Function& step : steps) value = step(std::move(value));
    return value;
  };
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at; (at = text.find(from, done)) != std::string_view::npos; done = at + from.size())
    out.append(text.substr(done, at - done)).append(to);
  return out.append(text.substr(done));
}

bool starts_with(std::string_view text, std::string_view with) {
  return text.substr(0, with.size()) == with;
}

/// The string and content of a Replace, which a normalizer and a decoder write alike.
std::pair<std::string, std::string> replacement(const json& component, const std::string& where) {
  const json& pattern = child(component, "pattern", where);
  if (!pattern.is_object() || !pattern.contains("String")) refuse(where, "Replace with another pattern than a String");
  const auto from = json_get<std::string>(pattern, "String", where);
  if (from.empty()) throw error(where + ": Replace has an empty pattern");
  return {from, json_get<std::string>(component, "content", where)};
}

// ---- byte-level: a character of its own for each byte, so that any bytes are a text
// -----------------------------------

/// Characters of the 256 bytes: a printable one is itself, the others follow from U+0100 on.
/// Source: openai/gpt-2, encoder.py, bytes_to_unicode.
const std::array<std::string, 256>& byte_characters() {
  static const auto characters = [] {
    std::array<std::string, 256> out;
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
      out[byte] = to_utf8(printable ? byte : next++);
    }
    return out;
  }();
  return characters;
}

/// The byte that a character stands for, or −1.
int character_byte(char32_t character) {
  static const auto bytes = [] {
    std::array<int, 0x180> out;
    out.fill(-1);
    for (int byte = 0; byte < 256; ++byte) out[utf8_value(byte_characters()[static_cast<size_t>(byte)], 0)] = byte;
    return out;
  }();
  return character < bytes.size() ? bytes[character] : -1;
}

constexpr const char* gpt2_pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// ---- pre-tokenizers
// --------------------------------------------------------------------------------------------------

/// Cuts each piece at the ends of all matches: matches and what is between them stay, in order.
std::vector<piece> isolate(const regex& pattern, const std::vector<piece>& pieces) {
  std::vector<piece> out;
  for (const piece& p : pieces) {
    size_t done = 0;
    const auto cut = [&](size_t end) {
      if (done < end) out.push_back({p.text.substr(done, end - done), p.first && done == 0});
      done = end;
    };
    for (const auto& [begin, end] : pattern.matches(p.text)) {
      cut(begin);
      cut(end);
    }
    cut(p.text.size());
  }
  return out;
}

pre_tokenizer read_split(const json& component, const std::string& where) {
  if (const auto behavior = json_get<std::string>(component, "behavior", where); behavior != "Isolated")
    refuse(where, "Split with the behavior " + behavior);
  const json& pattern = child(component, "pattern", where);  // "invert" swaps matches and gaps: all the same here
  if (!pattern.is_object() || !pattern.contains("Regex")) refuse(where, "Split by another pattern than a Regex");
  const auto shared = std::make_shared<regex>(json_get<std::string>(pattern, "Regex", where), where);
  return [shared](const std::vector<piece>& pieces) { return isolate(*shared, pieces); };
}

pre_tokenizer read_byte_level(const json& component, const std::string& where) {
  const bool add_space = json_get<bool>(component, "add_prefix_space", where, true);
  std::shared_ptr<regex> words;
  if (json_get<bool>(component, "use_regex", where, true)) words = std::make_shared<regex>(gpt2_pattern, where);
  return [add_space, words](std::vector<piece> pieces) {
    if (add_space)
      for (piece& p : pieces)
        if (!p.text.empty() && p.text[0] != ' ') p.text.insert(0, 1, ' ');
    if (words) pieces = isolate(*words, pieces);
    for (piece& p : pieces) {
      std::string characters;
      for (const char c : p.text) characters += byte_characters()[static_cast<unsigned char>(c)];
      p.text = std::move(characters);
    }
    return pieces;
  };
}

/// When a Metaspace puts its mark before a piece.
enum class prefix { always, first, never };

prefix read_prefix(const json& component, const std::string& where) {
  if (!json_get<bool>(component, "add_prefix_space", where, true)) return prefix::never;
  const auto scheme = json_get<std::string>(component, "prepend_scheme", where, "always");
  if (scheme == "always") return prefix::always;
  if (scheme == "first") return prefix::first;
  if (scheme == "never") return prefix::never;
  refuse(where, "Metaspace with the prepend_scheme " + scheme);
}

/// Cuts before each `mark`.
void split_before(const std::string& mark, const piece& p, std::vector<piece>& out) {
  for (size_t begin = 0; begin < p.text.size();) {
    const size_t end = std::min(
        p.text.find(mark, begin + (starts_with(std::string_view(p.text).substr(begin), mark) ? mark.size() : 0)),
        p.text.size());
    out.push_back({p.text.substr(begin, end - begin), p.first && begin == 0});
    begin = end;
  }
}

pre_tokenizer read_metaspace(const json& component, const std::string& where) {
  const auto mark = json_get<std::string>(component, "replacement", where);
  if (mark.empty() || utf8_length(mark, 0) != mark.size())
    throw error(where + ": the replacement of Metaspace must be one character");
  const prefix scheme = read_prefix(component, where);
  const bool split = json_get<bool>(component, "split", where, true);
  return [=](const std::vector<piece>& pieces) {
    std::vector<piece> out;
    for (const piece& p : pieces) {
      piece marked{replaced(p.text, " ", mark), p.first};
      const bool wanted = scheme == prefix::always || (scheme == prefix::first && p.first);
      if (wanted && !starts_with(marked.text, mark)) marked.text.insert(0, mark);
      if (split)
        split_before(mark, marked, out);
      else
        out.push_back(std::move(marked));
    }
    return out;
  };
}

// ---- decoders
// --------------------------------------------------------------------------------------------------------

/// Runs of <0x00> … <0xFF> become the text of their bytes; bytes that make no text become a U+FFFD each.
std::vector<std::string> bytes_to_text(const std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string bytes;
  const auto flush = [&] {
    if (utf8_error(bytes) == std::string::npos)
      out.push_back(bytes);
    else
      for (size_t i = 0; i < bytes.size(); ++i) out.emplace_back("\xef\xbf\xbd");
    bytes.clear();
  };
  for (const std::string& token : tokens) {
    constexpr std::string_view digits = "0123456789ABCDEFabcdef";
    const bool is_byte = token.size() == 6 && starts_with(token, "<0x") && token[5] == '>' &&
                         digits.find(token[3]) != digits.npos && digits.find(token[4]) != digits.npos;
    if (is_byte) {
      bytes += static_cast<char>(std::stoi(token.substr(3, 2), nullptr, 16));
      continue;
    }
    if (!bytes.empty()) flush();
    out.push_back(token);
  }
  if (!bytes.empty()) flush();
  return out;
}

/// Tokens of byte characters become the text of their bytes; a token with any other character stands for itself.
std::vector<std::string> characters_to_text(const std::vector<std::string>& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    std::string own;
    for (size_t at = 0; at < token.size(); at += utf8_length(token, at)) {
      const int byte = character_byte(utf8_value(token, at));
      if (byte < 0) {
        own = token;
        break;
      }
      own += static_cast<char>(byte);
    }
    bytes += own;
  }
  return {utf8_repaired(bytes)};
}

text_decoder read_strip(const json& component, const std::string& where) {
  const auto content = json_get<std::string>(component, "content", where);
  const auto start = json_get<uint32_t>(component, "start", where), stop = json_get<uint32_t>(component, "stop", where);
  if (content.empty()) throw error(where + ": Strip has no content");
  return [=](std::vector<std::string> tokens) {
    for (std::string& token : tokens) {
      for (uint32_t i = 0; i < start && starts_with(token, content); ++i) token.erase(0, content.size());
      const auto ends = [&] {
        return token.size() >= content.size() && !token.compare(token.size() - content.size(), content.size(), content);
      };
      for (uint32_t i = 0; i < stop && ends(); ++i) token.erase(token.size() - content.size());
    }
    return tokens;
  };
}

text_decoder read_metaspace_decoder(const json& component, const std::string& where) {
  const auto mark = json_get<std::string>(component, "replacement", where);
  const bool strip = read_prefix(component, where) != prefix::never;
  if (mark.empty()) throw error(where + ": the replacement of Metaspace must be one character");
  return [=](std::vector<std::string> tokens) {
    if (strip && !tokens.empty() && starts_with(tokens[0], mark)) tokens[0].erase(0, mark.size());
    for (std::string& token : tokens) token = replaced(token, mark, " ");
    return tokens;
  };
}

/// The ids that a template names as a special token, from its "special_tokens".
void append_special(const json& component, const json& special, const std::string& where, std::vector<int32_t>& out) {
  const auto name = json_get<std::string>(special, "id", where);
  const json& ids = children(child(child(component, "special_tokens", where), name.c_str(), where), "ids", where);
  for (const json& id : ids) {
    if (!json_is<int32_t>(id) || id.get<int32_t>() < 0)
      throw error(where + ": the post_processor gives the token " + excerpt(json(name)) + " an id that is none");
    out.push_back(id.get<int32_t>());
  }
}

}  // namespace

normalizer read_normalizer(const json& component, const std::string& where) {
  if (component.is_null()) return [](std::string text) { return text; };
  const std::string type = type_of(component, where);
  if (type == "Sequence")
    return sequence<normalizer>(children(component, "normalizers", where), where, read_normalizer);
  if (type == "Prepend")
    return [prefix = json_get<std::string>(component, "prepend", where)](const std::string& text) {
      return text.empty() ? text : prefix + text;
    };
  if (type == "Replace")
    return [pair = replacement(component, where)](const std::string& text) {
      return replaced(text, pair.first, pair.second);
    };
  refuse(where, "the normalizer " + type);
}

pre_tokenizer read_pre_tokenizer(const json& component, const std::string& where) {
  if (component.is_null()) return [](std::vector<piece> pieces) { return pieces; };
  const std::string type = type_of(component, where);
  if (type == "Sequence")
    return sequence<pre_tokenizer>(children(component, "pretokenizers", where), where, read_pre_tokenizer);
  if (type == "Metaspace") return read_metaspace(component, where);
  if (type == "Split") return read_split(component, where);
  if (type == "ByteLevel") return read_byte_level(component, where);
  refuse(where, "the pre_tokenizer " + type);
}

framing read_post_processor(const json& component, const std::string& where) {
  framing around;
  if (component.is_null()) return around;
  const std::string type = type_of(component, where);
  if (type == "ByteLevel") return around;  // moves offsets only
  if (type == "Sequence") {
    for (const json& step : children(component, "processors", where)) {
      const framing inner = read_post_processor(step, where);
      around.before.insert(around.before.begin(), inner.before.begin(), inner.before.end());
      around.after.insert(around.after.end(), inner.after.begin(), inner.after.end());
    }
    return around;
  }
  if (type != "TemplateProcessing") refuse(where, "the post_processor " + type);
  bool seen = false;
  for (const json& part : children(component, "single", where)) {
    if (part.is_object() && part.contains("Sequence"))
      seen = true;
    else
      append_special(component, child(part, "SpecialToken", where), where, seen ? around.after : around.before);
  }
  return around;
}

text_decoder read_decoder(const json& component, const std::string& where) {
  if (component.is_null())
    return [](std::vector<std::string> tokens) {
      for (size_t i = 1; i < tokens.size(); ++i) tokens[i].insert(0, 1, ' ');
      return tokens;
    };
  const std::string type = type_of(component, where);
  if (type == "Sequence") return sequence<text_decoder>(children(component, "decoders", where), where, read_decoder);
  if (type == "Replace")
    return [pair = replacement(component, where)](std::vector<std::string> tokens) {
      for (std::string& token : tokens) token = replaced(token, pair.first, pair.second);
      return tokens;
    };
  if (type == "ByteFallback") return bytes_to_text;
  if (type == "Fuse")
    return [](const std::vector<std::string>& tokens) {
      std::string all;
      for (const std::string& token : tokens) all += token;
      return std::vector<std::string>{all};
    };
  if (type == "Strip") return read_strip(component, where);
  if (type == "ByteLevel") return characters_to_text;
  if (type == "Metaspace") return read_metaspace_decoder(component, where);
  refuse(where, "the decoder " + type);
}

}  // namespace nibble::mistral

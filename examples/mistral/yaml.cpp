// SPDX-License-Identifier: Apache-2.0
#include "yaml.hpp"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error.hpp"
#include "json.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

using json = nlohmann::ordered_json;

constexpr std::string_view standard = "tag:yaml.org,2002:";

bool one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

bool is_number(std::string_view text, bool& fraction) {
  size_t digits = 0;
  fraction = false;
  for (size_t at = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0; at < text.size(); ++at) {
    if (text[at] >= '0' && text[at] <= '9') {
      ++digits;
    } else if (text[at] == '.' && !fraction) {
      fraction = true;
    } else if ((text[at] == 'e' || text[at] == 'E') && fraction && at + 2 < text.size() &&
               (text[at + 1] == '-' || text[at + 1] == '+')) {
      const auto exponent = text.substr(at + 2);
      return digits > 0 && exponent.find_first_not_of("0123456789") == exponent.npos;
    } else {
      return false;
    }
  }
  return digits > 0;
}

/// A plain scalar as PyYAML resolves it; integers beyond 64 bits stay strings, which no key takes for a number.
json resolved(const std::string& text) {
  if (one_of(text, {"", "~", "null", "Null", "NULL"})) return nullptr;
  if (one_of(text, {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})) return true;
  if (one_of(text, {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})) return false;
  bool fraction = false;
  if (!is_number(text, fraction)) return text;
  if (fraction) return std::strtod(text.c_str(), nullptr);
  const char* first = text.data() + (text[0] == '+' ? 1 : 0);
  std::int64_t integer = 0;
  const auto [end, failed] = std::from_chars(first, text.data() + text.size(), integer);
  return failed == std::errc() && end == text.data() + text.size() ? json(integer) : json(text);
}

bool not_finite(std::string_view text) {
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  return one_of(text, {".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"});
}

/// Builds the tree from the parser's events.
class builder : public YAML::EventHandler {
 public:
  explicit builder(std::string where) : where_(std::move(where)) {}

  json take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { leaf(mark, nullptr, "", anchor); }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) refuse(mark, "an alias stands within what it refers to");
    const auto& [value, nodes] = found->second;
    count(mark, nodes);
    if (expects_key()) {
      if (!value.is_string()) refuse(mark, "a key must be a name");
      return set_key(mark, value.get<std::string>());
    }
    place(value, nodes);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    const bool plain = tag == "?" || tag.empty();
    const std::string kind = plain || tag == "!" ? "" : kind_of(mark, tag);
    if (plain && not_finite(value)) refuse(mark, value + " is not a number that a key takes");
    const bool typed = plain || one_of(kind, {"int", "bool", "float", "null"});
    leaf(mark, typed ? resolved(value) : json(value), value, anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, json::array(), tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, json::object(), tag, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  struct node {
    json value;
    std::string kind, key;
    bool has_key;
    YAML::anchor_t anchor;
    size_t nodes;
  };

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& what) const {
    throw error(where_ + ", line " + std::to_string(mark.line + 1) + ": " + what);
  }

  /// "int" of !!int, "python/…" of Python's tags.
  std::string kind_of(const YAML::Mark& mark, const std::string& tag) const {
    const std::string kind = tag.rfind(standard, 0) == 0 ? tag.substr(standard.size()) : "";
    if (kind.rfind("python/", 0) == 0 || one_of(kind, {"str", "int", "bool", "float", "null", "seq", "map"}))
      return kind;
    refuse(mark, "the tag " + excerpt(json(kind.empty() ? tag : "!!" + kind)) + " is not known");
  }

  void count(const YAML::Mark& mark, size_t nodes) {
    nodes_ += nodes;
    if (nodes_ > max_yaml_nodes)
      refuse(mark, "the file holds more than " + std::to_string(max_yaml_nodes) +
                       " values once its aliases are followed, and is no recipe");
  }

  bool expects_key() const { return !stack_.empty() && stack_.back().value.is_object() && !stack_.back().has_key; }

  void set_key(const YAML::Mark& mark, const std::string& key) {
    node& parent = stack_.back();
    if (key == "<<") refuse(mark, "merging by << is not supported; write the keys out");
    if (parent.value.contains(key)) refuse(mark, "the key " + excerpt(json(key)) + " comes twice");
    parent.key = key;
    parent.has_key = true;
  }

  void place(json value, size_t nodes) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return;
    }
    node& parent = stack_.back();
    parent.nodes += nodes;
    if (parent.value.is_array()) return parent.value.push_back(std::move(value));
    parent.value[parent.key] = std::move(value);
    parent.has_key = false;
  }

  void leaf(const YAML::Mark& mark, json value, const std::string& text, YAML::anchor_t anchor) {
    const size_t weight = 1 + text.size() / 64;  // an alias multiplies bytes as well
    count(mark, weight);
    if (anchor != YAML::NullAnchor) anchors_[anchor] = {value, weight};
    if (!expects_key()) return place(std::move(value), weight);
    if (value.is_null()) refuse(mark, "a key must be a name");
    set_key(mark, text);
  }

  void open(const YAML::Mark& mark, json empty, const std::string& tag, YAML::anchor_t anchor) {
    count(mark, 1);
    if (expects_key()) refuse(mark, "a key must be a name");
    if (stack_.size() >= static_cast<size_t>(max_yaml_depth))
      refuse(mark, "YAML nested deeper than " + std::to_string(max_yaml_depth) + " levels");
    const bool tagged = !tag.empty() && tag != "?" && tag != "!";
    stack_.push_back({std::move(empty), tagged ? kind_of(mark, tag) : "", "", false, anchor, 1});
  }

  void close() {
    node done = std::move(stack_.back());
    stack_.pop_back();
    json& value = done.value;
    if (done.kind.rfind("python/object/apply:", 0) == 0 && value.is_array() && value.size() == 1)
      value = json(std::move(value[0]));
    if (done.anchor != YAML::NullAnchor) anchors_[done.anchor] = {value, done.nodes};
    place(std::move(value), done.nodes);
  }

  std::string where_;
  json root_;
  std::vector<node> stack_;
  std::map<YAML::anchor_t, std::pair<json, size_t>> anchors_;
  size_t nodes_ = 0;
};

}  // namespace

nlohmann::ordered_json read_yaml(const std::filesystem::path& file) {
  return parse_yaml(read_file(file, max_yaml_bytes), file.string());
}

nlohmann::ordered_json parse_yaml(const std::string& text, const std::string& where) {
  if (const size_t at = utf8_error(text); at != std::string::npos)
    throw error(where + ": byte " + std::to_string(at) + " is not UTF-8");
  if (const size_t at = text.find('\0'); at != std::string::npos)
    throw error(where + ": byte " + std::to_string(at) + " is NUL, which no text holds");
  std::istringstream stream(text);
  builder tree(where), rest(where);
  try {
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(tree)) throw error(where + " is empty");
    if (parser.HandleNextDocument(rest)) throw error(where + " holds more than one document, and a recipe is one");
  } catch (const YAML::Exception& wrong) {
    throw error(where + ", line " + std::to_string(wrong.mark.line + 1) + ": not valid YAML: " + wrong.msg);
  }
  return tree.take();
}

}  // namespace nibble::mistral

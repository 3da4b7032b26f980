// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whether HTML is well-formed the way XML is: every tag closed in order, every attribute quoted and named once, every '<'
/// and '&' of a text escaped. Source: XML 1.0, section 2.1; HTML's own looseness is not used by pages checked so.
#pragma once

#include <cctype>
#include <set>
#include <string>
#include <vector>

namespace nibble::test {

struct markup_tag {
  std::string name;
  std::vector<std::pair<std::string, std::string>> attributes;
};

class markup {
 public:
  /// Reads a whole page; error() says what is wrong with it, if anything is.
  explicit markup(const std::string& page) : page_(page) {
    if (page_.rfind("<!DOCTYPE html>", 0) == 0) at_ = 15;
    while (error_.empty() && at_ < page_.size()) page_[at_] == '<' ? tag() : text();
    if (error_.empty() && !open_.empty()) fail("never closed: " + open_.back());
  }
  const std::string& error() const { return error_; }
  const std::vector<markup_tag>& tags() const { return tags_; }
  const std::string& words() const { return words_; }  ///< all text, entities as they stand

 private:
  void fail(const std::string& what) {
    if (error_.empty()) error_ = what + " at byte " + std::to_string(at_) + ": " + page_.substr(at_, 60);
  }
  void entity(const std::string& value) {
    for (size_t i = value.find('&'); i != value.npos; i = value.find('&', i + 1)) {
      const size_t end = value.find(';', i);
      const std::string name = end == value.npos ? "" : value.substr(i + 1, end - i - 1);
      static const std::set<std::string> known = {"amp", "lt", "gt", "quot", "#39"};
      if (known.count(name) == 0) return fail("a bare '&'");
    }
  }
  void text() {
    const size_t end = page_.find('<', at_);
    const std::string piece = page_.substr(at_, end == page_.npos ? end : end - at_);
    if (!open_.empty() && open_.back() != "style") entity(piece);
    if (open_.empty() && piece.find_first_not_of(" \n") != piece.npos) fail("text outside of all tags");
    if (open_.empty() || open_.back() != "style") words_ += piece;
    at_ = end == page_.npos ? page_.size() : end;
  }
  std::string name() {
    const size_t from = at_;
    while (at_ < page_.size() && (std::isalnum(static_cast<unsigned char>(page_[at_])) || page_[at_] == '-')) ++at_;
    return page_.substr(from, at_ - from);
  }
  void tag() {
    if (page_.compare(at_, 2, "</") == 0) {
      at_ += 2;
      const std::string closed = name();
      if (open_.empty() || open_.back() != closed || page_[at_] != '>') return fail("closes out of order: " + closed);
      open_.pop_back();
      ++at_;
      return;
    }
    ++at_;
    markup_tag t = {name(), {}};
    if (t.name.empty()) return fail("a bare '<'");
    while (error_.empty() && at_ < page_.size() && page_[at_] == ' ') attribute(t);
    const bool single = page_.compare(at_, 2, "/>") == 0;
    at_ += single ? 2 : 1;
    if (!single && page_[at_ - 1] != '>') return fail("a tag that does not end: " + t.name);
    if (!single) open_.push_back(t.name);
    tags_.push_back(std::move(t));
  }
  void attribute(markup_tag& t) {
    ++at_;
    const std::string key = name();
    if (key.empty() || page_.compare(at_, 2, "=\"") != 0) return fail("an attribute that is not KEY=\"VALUE\"");
    at_ += 2;
    const size_t end = page_.find('"', at_);
    if (end == page_.npos) return fail("an open quote");
    const std::string value = page_.substr(at_, end - at_);
    if (value.find('<') != value.npos) return fail("'<' in an attribute");
    entity(value);
    for (const auto& [other, ignored] : t.attributes)
      if (other == key) return fail("an attribute twice: " + key);
    t.attributes.emplace_back(key, value);
    at_ = end + 1;
  }

  std::string page_, error_, words_;
  size_t at_ = 0;
  std::vector<std::string> open_;
  std::vector<markup_tag> tags_;
};

}  // namespace nibble::test

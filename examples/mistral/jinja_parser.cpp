// SPDX-License-Identifier: Apache-2.0
/// @file
/// Templates → statements, by recursive descent. Precedence, weakest first: if-else, or, and, not, comparison, + −, ~,
/// * / // %, unary −, then what follows a value: . [] () | is.
#include <algorithm>
#include <array>
#include <cctype>

#include "error.hpp"
#include "jinja.hpp"
#include "utf8.hpp"

namespace nibble::mistral::jinja {
namespace {

using kind = expression::kind;

struct token {
  enum class type { text, name, string, number, symbol, block_begin, block_end, output_begin, output_end, end };
  type what;
  std::string text;
};

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}
bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

/// Source → tokens, with Jinja's rules of white space: {%- and -%} take all there is, a block tag or comment takes the
/// blanks before it on its line (lstrip_blocks) and the newline behind it (trim_blocks), the last newline is dropped.
class lexer {
 public:
  lexer(std::string_view source, const std::string& where) : source_(source), where_(where) {
    if (!source_.empty() && source_.back() == '\n') source_.remove_suffix(1);
    while (at_ < source_.size()) text_and_tag();
    tokens_.push_back({token::type::end, ""});
  }
  std::vector<token> take() { return std::move(tokens_); }

 private:
  static constexpr size_t max_tokens = 1000;  // bounds the depth of a chain such as a + b + …

  [[noreturn]] void fail(const std::string& what) const { throw error(where_ + ": the template " + what); }

  void text_and_tag() {
    size_t open = at_;
    while ((open = source_.find('{', open)) != std::string_view::npos)
      if (open + 1 < source_.size() && std::string_view("{%#").find(source_[open + 1]) != std::string_view::npos)
        break;
      else
        ++open;
    const bool last = open == std::string_view::npos;
    std::string text(source_.substr(at_, last ? std::string_view::npos : open - at_));
    const char mark = last ? '\0' : source_[open + 1];
    const char trim = last || open + 2 >= source_.size() ? '\0' : source_[open + 2];
    if (trim == '-') {
      while (!text.empty() && is_space(text.back())) text.pop_back();
    } else if (!last && mark != '{' && trim != '+') {
      const size_t kept = text.find_last_not_of(" \t");
      const bool line_start = kept == std::string::npos ? at_ == 0 || source_[at_ - 1] == '\n' : text[kept] == '\n';
      if (line_start) text.erase(kept + 1);
    }
    if (!text.empty()) tokens_.push_back({token::type::text, text});
    if (last) {
      at_ = source_.size();
      return;
    }
    at_ = open + 2 + (trim == '-' || trim == '+' ? 1 : 0);
    if (mark == '#')
      comment();
    else
      tag(mark == '%');
  }

  void comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string_view::npos) fail("has a comment without end");
    const bool trim = end > at_ && source_[end - 1] == '-';
    at_ = end + 2;
    after_tag(trim, true);
  }

  void after_tag(bool trim, bool block) {
    if (trim)
      while (at_ < source_.size() && is_space(source_[at_])) ++at_;
    else if (block && at_ < source_.size() && source_[at_] == '\n')
      ++at_;
  }

  void tag(bool block) {
    tokens_.push_back({block ? token::type::block_begin : token::type::output_begin, ""});
    const std::string_view end = block ? "%}" : "}}";
    size_t nested = 0;  // braces of dicts: }} may end two of them
    for (const size_t first = tokens_.size();;) {
      if (tokens_.size() - first > max_tokens) fail("has a tag of more than " + std::to_string(max_tokens) + " words");
      while (at_ < source_.size() && is_space(source_[at_])) ++at_;
      if (at_ >= source_.size()) fail("has a tag without end");
      const bool trim = source_[at_] == '-' && source_.substr(at_ + 1, 2) == end;
      if (nested == 0 && (trim || source_.substr(at_, 2) == end)) {
        at_ += trim ? 3 : 2;
        tokens_.push_back({block ? token::type::block_end : token::type::output_end, ""});
        return after_tag(trim, block);
      }
      const char c = source_[at_];
      if (c == '{') ++nested;
      if (c == '}') nested -= nested > 0 ? 1 : 0;
      one_token(c);
    }
  }

  void one_token(char c) {
    const size_t begin = at_;
    if (c == '"' || c == '\'') return string(c);
    if (std::isdigit(static_cast<unsigned char>(c)) != 0) {
      while (at_ < source_.size() && std::isdigit(static_cast<unsigned char>(source_[at_])) != 0) ++at_;
      if (at_ - begin > 9) fail("has a number of more than nine digits");
      tokens_.push_back({token::type::number, std::string(source_.substr(begin, at_ - begin))});
    } else if (is_name(c)) {
      while (at_ < source_.size() && is_name(source_[at_])) ++at_;
      tokens_.push_back({token::type::name, std::string(source_.substr(begin, at_ - begin))});
    } else {
      constexpr std::array<std::string_view, 5> pairs = {"==", "!=", "<=", ">=", "//"};
      const bool two = std::find(pairs.begin(), pairs.end(), source_.substr(at_, 2)) != pairs.end();
      if (!two && std::string_view("+-*/%~<>=()[]{}.,:|").find(c) == std::string_view::npos)
        fail(std::string("has the character ") + c + " where an expression is expected");
      at_ += two ? 2 : 1;
      tokens_.push_back({token::type::symbol, std::string(source_.substr(begin, two ? 2 : 1))});
    }
  }

  void string(char quote) {
    std::string text;
    for (++at_; at_ < source_.size() && source_[at_] != quote; ++at_)
      if (source_[at_] == '\\' && at_ + 1 < source_.size())
        escape(source_[++at_], text);
      else
        text += source_[at_];
    if (at_ >= source_.size()) fail("has a string without end");
    ++at_;
    tokens_.push_back({token::type::string, text});
  }

  void escape(char c, std::string& text) {
    constexpr std::string_view from = "nrtbfva0\\'\"";
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (c == '\n') return;  // the line goes on
    if (const size_t known = from.find(c); known != std::string_view::npos) {
      text += std::string_view("\n\r\t\b\f\v\a\0\\'\"", 11)[known];
    } else if (digits > 0) {
      const std::string hex(source_.substr(at_ + 1, digits));
      if (hex.size() < digits || hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
        fail("has a broken escape in a string");
      const auto code = static_cast<char32_t>(std::stoul(hex, nullptr, 16));
      if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) fail("has an escape that is no character");
      text += to_utf8(code);
      at_ += digits;
    } else {
      text.append({'\\', c});
    }
  }

  std::string_view source_;
  const std::string& where_;
  size_t at_ = 0;
  std::vector<token> tokens_;
};

class parser {
 public:
  parser(std::vector<token> tokens, const std::string& where) : tokens_(std::move(tokens)), where_(where) {}

  std::vector<statement> program() {
    std::vector<statement> all = block({});
    if (now().what != token::type::end) fail("ends a block that it did not begin: " + tokens_[at_ + 1].text);
    return all;
  }

 private:
  static constexpr int max_depth = 200;

  [[noreturn]] void fail(const std::string& what) const { throw error(where_ + ": the template " + what); }

  const token& now() const { return tokens_[at_]; }
  bool is(token::type what, std::string_view text) const { return now().what == what && now().text == text; }
  bool accept(std::string_view text, token::type what = token::type::symbol) {
    if (!is(what, text)) return false;
    ++at_;
    return true;
  }
  bool accept_word(std::string_view text) { return accept(text, token::type::name); }
  void expect(std::string_view text, token::type what = token::type::symbol) {
    if (!accept(text, what)) fail("has \"" + now().text + "\" where \"" + std::string(text) + "\" is expected");
  }
  void expect_end() {
    if (now().what != token::type::block_end) fail("has \"" + now().text + "\" where a tag should end");
    ++at_;
  }
  std::string name() {
    if (now().what != token::type::name) fail("has \"" + now().text + "\" where a name is expected");
    return tokens_[at_++].text;
  }
  struct deeper {  // recursion is bounded, so that no template can exhaust the stack
    explicit deeper(parser& p) : depth(p.depth_) {
      if (++depth > max_depth) p.fail("nests deeper than " + std::to_string(max_depth) + " levels");
    }
    ~deeper() { --depth; }
    int& depth;
  };

  /// Statements up to a tag named in `ends`, which is left in place.
  std::vector<statement> block(const std::vector<std::string_view>& ends);
  statement block_tag();
  statement assignment();
  statement branch();
  statement loop();
  statement macro();
  static statement begin(statement::kind what) {
    statement made;
    made.what = what;
    return made;
  }

  static expression_ptr make(kind what, std::string text, expression_ptr a = nullptr, expression_ptr b = nullptr) {
    auto made = std::make_unique<expression>();
    made->what = what;
    made->text = std::move(text);
    if (a) made->parts.push_back(std::move(a));
    if (b) made->parts.push_back(std::move(b));
    return made;
  }
  expression_ptr any();
  expression_ptr either();
  expression_ptr both();
  expression_ptr negation();
  expression_ptr comparison();
  expression_ptr sum();
  expression_ptr joined();
  expression_ptr product();
  expression_ptr unary();
  expression_ptr postfix();
  expression_ptr subscript(expression_ptr object);
  expression_ptr test(expression_ptr object);
  void arguments(expression& call);
  expression_ptr primary();
  expression_ptr collection(kind what, std::string_view end);

  std::vector<token> tokens_;
  const std::string& where_;
  size_t at_ = 0;
  int depth_ = 0;
};

// ---- statements ------------------------------------------------------------------------------------------------------

std::vector<statement> parser::block(const std::vector<std::string_view>& ends) {
  const deeper guard(*this);
  std::vector<statement> all;
  for (;;) {
    if (now().what == token::type::end) {
      if (!ends.empty()) fail("ends where \"" + std::string(ends.back()) + "\" is expected");
      return all;
    }
    if (now().what == token::type::text) {
      statement text = begin(statement::kind::text);
      text.text = tokens_[at_++].text;
      all.push_back(std::move(text));
    } else if (now().what == token::type::output_begin) {
      ++at_;
      statement output = begin(statement::kind::output);
      output.value = any();
      if (now().what != token::type::output_end) fail("has \"" + now().text + "\" where a tag should end");
      ++at_;
      all.push_back(std::move(output));
    } else {
      const std::string& next = tokens_[at_ + 1].text;
      if (std::find(ends.begin(), ends.end(), next) != ends.end() || next.substr(0, 3) == "end") return all;
      ++at_;
      all.push_back(block_tag());
    }
  }
}

statement parser::block_tag() {
  const std::string word = name();
  if (word == "set") return assignment();
  if (word == "if") return branch();
  if (word == "for") return loop();
  if (word == "macro") return macro();
  fail("uses {% " + word + " %}, which is not implemented");
}

statement parser::assignment() {
  statement set = begin(statement::kind::assign);
  set.names.push_back(name());
  if (accept(".")) set.names.push_back(name());
  expect("=");
  set.value = any();
  expect_end();
  return set;
}

/// From behind "if" or "elif" to behind "endif".
statement parser::branch() {
  const deeper guard(*this);
  statement made = begin(statement::kind::branch);
  made.value = any();
  expect_end();
  made.body = block({"elif", "else", "endif"});
  expect("", token::type::block_begin);
  const std::string word = name();
  if (word == "elif") {
    made.otherwise.push_back(branch());
    return made;
  }
  if (word == "else") {
    expect_end();
    made.otherwise = block({"endif"});
    expect("", token::type::block_begin);
    expect("endif", token::type::name);
  } else if (word != "endif") {
    fail("ends an if with \"" + word + "\"");
  }
  expect_end();
  return made;
}

statement parser::loop() {
  statement made = begin(statement::kind::loop);
  made.names.push_back(name());
  while (accept(",")) made.names.push_back(name());
  expect("in", token::type::name);
  made.value = either();
  if (accept_word("if")) made.filter = any();
  expect_end();
  made.body = block({"else", "endfor"});
  expect("", token::type::block_begin);
  if (accept_word("else")) {
    expect_end();
    made.otherwise = block({"endfor"});
    expect("", token::type::block_begin);
  }
  expect("endfor", token::type::name);
  expect_end();
  return made;
}

statement parser::macro() {
  statement made = begin(statement::kind::macro);
  made.names.push_back(name());
  expect("(");
  while (!accept(")")) {
    made.names.push_back(name());
    made.defaults.push_back(accept("=") ? any() : nullptr);
    if (!is(token::type::symbol, ")")) expect(",");
  }
  expect_end();
  made.body = block({"endmacro"});
  expect("", token::type::block_begin);
  expect("endmacro", token::type::name);
  expect_end();
  return made;
}

// ---- expressions -----------------------------------------------------------------------------------------------------

expression_ptr parser::any() {
  const deeper guard(*this);
  expression_ptr left = either();
  while (accept_word("if")) {
    expression_ptr condition = either();
    auto made = make(kind::choice, "", std::move(condition), std::move(left));
    made->parts.push_back(accept_word("else") ? any() : nullptr);
    left = std::move(made);
  }
  return left;
}

expression_ptr parser::either() {
  expression_ptr left = both();
  while (accept_word("or")) left = make(kind::binary, "or", std::move(left), both());
  return left;
}

expression_ptr parser::both() {
  expression_ptr left = negation();
  while (accept_word("and")) left = make(kind::binary, "and", std::move(left), negation());
  return left;
}

expression_ptr parser::negation() {
  const deeper guard(*this);
  if (accept_word("not")) return make(kind::negation, "not", negation());
  return comparison();
}

expression_ptr parser::comparison() {
  expression_ptr left = sum();
  for (;;) {
    std::string symbol;
    for (const char* one : {"==", "!=", "<=", ">=", "<", ">"})
      if (symbol.empty() && accept(one)) symbol = one;
    if (symbol.empty() && accept_word("in")) symbol = "in";
    if (symbol.empty() && is(token::type::name, "not") && tokens_[at_ + 1].text == "in") {
      at_ += 2;
      symbol = "not in";
    }
    if (symbol.empty()) return left;
    left = make(kind::binary, symbol, std::move(left), sum());
  }
}

expression_ptr parser::sum() {
  expression_ptr left = joined();
  while (is(token::type::symbol, "+") || is(token::type::symbol, "-")) {
    const std::string symbol = tokens_[at_++].text;
    left = make(kind::binary, symbol, std::move(left), joined());
  }
  return left;
}

expression_ptr parser::joined() {
  expression_ptr left = product();
  while (accept("~")) left = make(kind::binary, "~", std::move(left), product());
  return left;
}

expression_ptr parser::product() {
  expression_ptr left = unary();
  for (;;) {
    std::string symbol;
    for (const char* one : {"*", "//", "/", "%"})
      if (symbol.empty() && accept(one)) symbol = one;
    if (symbol.empty()) return left;
    left = make(kind::binary, symbol, std::move(left), unary());
  }
}

expression_ptr parser::unary() {
  const deeper guard(*this);
  if (accept("-")) return make(kind::minus, "-", unary());
  return postfix();
}

expression_ptr parser::postfix() {
  expression_ptr left = primary();
  for (;;) {
    if (accept(".")) {
      left = make(kind::attribute, name(), std::move(left));
    } else if (accept("[")) {
      left = subscript(std::move(left));
    } else if (is(token::type::symbol, "(")) {
      left = make(kind::call, "", std::move(left));
      arguments(*left);
    } else if (accept("|")) {
      left = make(kind::filter, name(), std::move(left));
      if (is(token::type::symbol, "(")) arguments(*left);
    } else if (accept_word("is")) {
      left = test(std::move(left));
    } else {
      return left;
    }
  }
}

expression_ptr parser::subscript(expression_ptr object) {
  expression_ptr begin = is(token::type::symbol, ":") ? nullptr : any();
  if (!accept(":")) {
    expect("]");
    return make(kind::item, "", std::move(object), std::move(begin));
  }
  auto made = make(kind::slice, "", std::move(object));
  made->parts.push_back(std::move(begin));
  made->parts.push_back(is(token::type::symbol, "]") ? nullptr : any());
  expect("]");
  return made;
}

expression_ptr parser::test(expression_ptr object) {
  const bool negated = accept_word("not");
  expression_ptr made = make(kind::test, name(), std::move(object));
  if (is(token::type::symbol, "("))
    arguments(*made);
  else if (now().what == token::type::string || now().what == token::type::number)
    made->parts.push_back(primary());
  return negated ? make(kind::negation, "not", std::move(made)) : std::move(made);
}

void parser::arguments(expression& call) {
  expect("(");
  while (!accept(")")) {
    std::string keyword;
    if (now().what == token::type::name && tokens_[at_ + 1].what == token::type::symbol &&
        tokens_[at_ + 1].text == "=") {
      keyword = name();
      expect("=");
    }
    call.parts.push_back(any());
    call.keywords.push_back(keyword);
    if (!is(token::type::symbol, ")")) expect(",");
  }
}

expression_ptr parser::collection(kind what, std::string_view end) {
  auto made = make(what, "");
  while (!accept(end)) {
    made->parts.push_back(any());
    if (what == kind::dict) {
      expect(":");
      made->parts.push_back(any());
    }
    if (!is(token::type::symbol, end)) expect(",");
  }
  return made;
}

expression_ptr parser::primary() {
  const token first = now();
  ++at_;
  auto literal = [](value constant) {
    auto made = make(kind::literal, "");
    made->constant = std::move(constant);
    return made;
  };
  if (first.what == token::type::string) {
    std::string text = first.text;
    while (now().what == token::type::string) text += tokens_[at_++].text;  // neighbours are one
    return literal(text);
  }
  if (first.what == token::type::number) return literal(static_cast<unsigned>(std::stoul(first.text)));
  if (first.what == token::type::name) {
    if (first.text == "true" || first.text == "True") return literal(true);
    if (first.text == "false" || first.text == "False") return literal(false);
    if (first.text == "none" || first.text == "None") return literal(nullptr);
    return make(kind::name, first.text);
  }
  if (first.what == token::type::symbol && first.text == "(") {
    expression_ptr inner = any();
    expect(")");
    return inner;
  }
  if (first.what == token::type::symbol && first.text == "[") return collection(kind::list, "]");
  if (first.what == token::type::symbol && first.text == "{") return collection(kind::dict, "}");
  fail("has \"" + first.text + "\" where a value is expected");
}

}  // namespace

std::vector<statement> parse(std::string_view source, const std::string& where) {
  return parser(lexer(source, where).take(), where).program();
}

}  // namespace nibble::mistral::jinja

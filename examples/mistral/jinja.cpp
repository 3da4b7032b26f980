// SPDX-License-Identifier: Apache-2.0
/// @file
/// Statements → text. Implemented when reached:
///   functions: raise_exception, strftime_now, namespace, range, macros
///   methods:   strip, startswith, endswith, upper, lower, replace, items, get, keys
///   filters:   trim, string, lower, upper, length, count, list, first, last, join, default, safe, selectattr, rejectattr
///   tests:     defined, undefined, none, string, mapping, sequence, iterable, number, boolean, true, false, equalto, eq,
///              odd, even
#include "jinja.hpp"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <ctime>
#include <iterator>
#include <map>
#include <utility>

#include "error.hpp"
#include "utf8.hpp"

namespace nibble::mistral::jinja {

std::string strftime_now(const std::string& format, int days_ago) {
  const char* fixed = std::getenv("SOURCE_DATE_EPOCH");
  std::time_t seconds =
      fixed != nullptr ? static_cast<std::time_t>(std::strtoll(fixed, nullptr, 10)) : std::time(nullptr);
  seconds -= std::time_t{86400} * days_ago;
  std::tm parts{};
  if ((fixed != nullptr ? gmtime_r(&seconds, &parts) : localtime_r(&seconds, &parts)) == nullptr) return "";
  char text[256];
  return std::string(text, std::strftime(text, sizeof(text), format.c_str(), &parts));
}

namespace {

using kind = expression::kind;

value undefined() {
  return value(value::value_t::discarded);
}
bool is_undefined(const value& v) {
  return v.is_discarded();
}

bool truth(const value& v) {
  if (is_undefined(v) || v.is_null()) return false;
  if (v.is_boolean()) return v.get<bool>();
  if (v.is_number()) return v.get<double>() != 0;
  if (v.is_string()) return !v.get_ref<const std::string&>().empty();
  return !v.empty();
}

/// Python's str.strip().
std::string stripped(const std::string& text) {
  const auto blank = [](char32_t c) { return is_white_space(c) || (c >= 0x1c && c <= 0x1f); };
  size_t begin = 0, end = 0;
  bool seen = false;
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::max<size_t>(utf8_length(text, at), 1);
    if (!blank(utf8_value(text, at))) {
      if (!seen) begin = at;
      seen = true;
      end = at + length;
    }
    at += length;
  }
  return text.substr(begin, end - begin);
}

/// As much of `text` with `from` replaced as makes `most` bytes or one replacement more.
std::string replaced(const std::string& text, const std::string& from, const std::string& to, size_t most) {
  if (from.empty()) return text;
  std::string out;
  size_t done = 0;
  for (size_t at; out.size() <= most && (at = text.find(from, done)) != std::string::npos; done = at + from.size())
    out.append(text, done, at - done).append(to);
  return out.append(text, done, std::string::npos);
}

/// Steps that a copy of `v` takes: one for each value in it and for each 64 bytes of a text.
size_t weight(const value& v) {
  if (v.is_string()) return 1 + v.get_ref<const std::string&>().size() / 64;
  size_t sum = 1;
  if (v.is_structured())
    for (const value& inner : v) sum += weight(inner);
  return sum;
}

/// ASCII only: what templates compare with is ASCII.
std::string cased(std::string text, int (*change)(int)) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x80) c = static_cast<char>(change(c));
  return text;
}

std::vector<value> characters(const std::string& text) {
  std::vector<value> out;
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::max<size_t>(utf8_length(text, at), 1);
    out.emplace_back(text.substr(at, length));
    at += length;
  }
  return out;
}

class evaluator {
 public:
  evaluator(const value& variables, const std::string& where) : where_(where), scopes_(1) {
    for (const auto& [name, v] : variables.items()) scopes_[0].emplace_back(name, v);
  }

  std::string run(const std::vector<statement>& program) {
    for (const statement& s : program) run(s);
    return std::move(out_);
  }

 private:
  static constexpr size_t max_steps = 4'000'000;
  static constexpr int max_depth = 20;
  static constexpr size_t max_text = size_t{1} << 26;

  [[noreturn]] void fail(const std::string& what) const { throw error(where_ + ": the template " + what); }
  [[noreturn]] void missing(const std::string& what) const { fail("uses " + what + ", which is not implemented"); }

  void run(const statement& s);
  void run_loop(const statement& s);
  void bind(const std::vector<std::string>& names, const value& item);
  void assign(const statement& s);

  value* find(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      for (auto entry = scope->rbegin(); entry != scope->rend(); ++entry)
        if (entry->first == name) return &entry->second;
    return nullptr;
  }
  void set(const std::string& name, value v) {
    for (auto& entry : scopes_.back())
      if (entry.first == name) {
        entry.second = std::move(v);
        return;
      }
    scopes_.back().emplace_back(name, std::move(v));
  }

  std::string text(const value& v) const;
  std::vector<value> elements(const value& v) const;
  value eval(const expression& e);
  const value* stored(const expression& e);
  void step(size_t count = 1) const {
    steps_ += std::min(count, max_steps);
    if (steps_ > max_steps) fail("takes more than " + std::to_string(max_steps) + " steps");
  }
  value computed(const expression& e);
  value eval_or(const expression_ptr& e, value otherwise) { return e ? eval(*e) : std::move(otherwise); }
  value attribute(const value& object, const std::string& name) const;
  value item(const value& object, const value& index) const;
  value slice(const expression& e);
  value binary(const expression& e);
  std::string joined(std::string a, const std::string& b) const {
    if (a.size() + b.size() > max_text) fail("makes a text of more than " + std::to_string(max_text) + " bytes");
    return std::move(a.append(b));
  }
  value arithmetic(const std::string& symbol, const value& a, const value& b) const;
  bool less(const value& a, const value& b) const;
  bool contains(const value& all, const value& one) const;
  value call(const expression& e);
  value expand(const statement& macro, const expression& e, const std::vector<value>& given);
  value function(const std::string& name, const expression& e, const std::vector<value>& given);
  value method(const value& object, const std::string& name, const std::vector<value>& given) const;
  value filter(const std::string& name, const value& v, const std::vector<value>& given) const;
  value select(const value& v, const std::vector<value>& given, bool wanted) const;
  bool test(const std::string& name, const value& v, const std::vector<value>& given) const;
  std::vector<value> arguments(const expression& e) {
    std::vector<value> given;
    for (size_t i = 1; i < e.parts.size(); ++i) given.push_back(eval(*e.parts[i]));
    return given;
  }
  const std::string& string_argument(const std::vector<value>& given, size_t i, const std::string& of) const {
    if (i >= given.size() || !given[i].is_string()) fail("calls " + of + " without the string it needs");
    return given[i].get_ref<const std::string&>();
  }

  const std::string& where_;
  std::vector<std::vector<std::pair<std::string, value>>> scopes_;
  std::map<std::string, const statement*> macros_;
  std::string out_;
  mutable size_t steps_ = 0;  // work done: values evaluated, and what they hold, for every one is a copy
  int depth_ = 0;
};

// ---- statements ------------------------------------------------------------------------------------------------------

void evaluator::run(const statement& s) {
  switch (s.what) {
    case statement::kind::text:
      out_ += s.text;
      break;
    case statement::kind::output:
      out_ += text(eval(*s.value));
      break;
    case statement::kind::assign:
      assign(s);
      break;
    case statement::kind::branch:
      for (const statement& inner : truth(eval(*s.value)) ? s.body : s.otherwise) run(inner);
      break;
    case statement::kind::loop:
      run_loop(s);
      break;
    case statement::kind::macro:
      macros_[s.names[0]] = &s;
      break;
  }
  if (out_.size() > max_text) fail("writes more than " + std::to_string(max_text) + " bytes");
}

void evaluator::assign(const statement& s) {
  value v = eval(*s.value);
  if (s.names.size() == 1) return set(s.names[0], std::move(v));
  value* space = find(s.names[0]);
  if (space == nullptr || !space->is_object()) fail("sets an attribute of " + s.names[0] + ", which is no namespace");
  (*space)[s.names[1]] = std::move(v);
}

void evaluator::bind(const std::vector<std::string>& names, const value& item) {
  if (names.size() == 1) return set(names[0], item);
  if (!item.is_array() || item.size() != names.size()) fail("unpacks a value into another number of names");
  for (size_t i = 0; i < names.size(); ++i) set(names[i], item[i]);
}

void evaluator::run_loop(const statement& s) {
  std::vector<value> all = elements(eval(*s.value)), kept;
  for (value& one : all) {
    scopes_.emplace_back();
    bind(s.names, one);
    const bool wanted = !s.filter || truth(eval(*s.filter));
    scopes_.pop_back();
    if (wanted) kept.push_back(std::move(one));
  }
  for (size_t i = 0; i < kept.size(); ++i) {
    step();
    scopes_.emplace_back();
    bind(s.names, kept[i]);
    set("loop",
        {{"index0", i}, {"index", i + 1}, {"first", i == 0}, {"last", i + 1 == kept.size()}, {"length", kept.size()}});
    for (const statement& inner : s.body) run(inner);
    scopes_.pop_back();
  }
  if (kept.empty())
    for (const statement& inner : s.otherwise) run(inner);
}

// ---- values ----------------------------------------------------------------------------------------------------------

/// Python's str().
std::string evaluator::text(const value& v) const {
  if (is_undefined(v)) return "";
  if (v.is_string()) return v.get<std::string>();
  if (v.is_null()) return "None";
  if (v.is_boolean()) return v.get<bool>() ? "True" : "False";
  if (v.is_number_integer()) return std::to_string(v.get<int64_t>());
  missing("the text of a number, list or dict");
}

std::vector<value> evaluator::elements(const value& v) const {
  if (is_undefined(v)) return {};
  step(v.is_string() ? v.get_ref<const std::string&>().size() : weight(v));
  if (v.is_array()) return {v.begin(), v.end()};
  if (v.is_string()) return characters(v.get_ref<const std::string&>());
  if (!v.is_object()) fail("loops over what has no elements");
  std::vector<value> keys;
  for (const auto& entry : v.items()) keys.emplace_back(entry.key());
  return keys;
}

value evaluator::attribute(const value& object, const std::string& name) const {
  if (is_undefined(object)) fail("asks for ." + name + " of what is undefined");
  if (!object.is_object()) return undefined();
  const auto found = object.find(name);
  return found == object.end() ? undefined() : *found;
}

value evaluator::item(const value& object, const value& index) const {
  if (index.is_string()) return attribute(object, index.get<std::string>());
  if (is_undefined(object)) fail("asks for an element of what is undefined");
  if (!index.is_number_integer() || (!object.is_array() && !object.is_string())) return undefined();
  const std::vector<value> all = elements(object);
  const auto count = static_cast<int64_t>(all.size());
  int64_t at = index.get<int64_t>();
  if (at < 0) at += count;
  return at < 0 || at >= count ? undefined() : all[static_cast<size_t>(at)];
}

value evaluator::slice(const expression& e) {
  const value object = eval(*e.parts[0]);
  if (!object.is_array() && !object.is_string()) fail("takes a slice of what is no list or string");
  const std::vector<value> all = elements(object);
  const auto count = static_cast<int64_t>(all.size());
  const auto place = [&](const expression_ptr& part, int64_t otherwise) {
    const value given = eval_or(part, otherwise);
    if (!given.is_number_integer()) fail("takes a slice with bounds that are no integers");
    const auto at = given.get<int64_t>();
    return std::clamp<int64_t>(at < 0 ? at + count : at, 0, count);
  };
  const int64_t begin = place(e.parts[1], 0), end = std::max(begin, place(e.parts[2], count));
  const std::vector<value> kept(all.begin() + begin, all.begin() + end);
  if (object.is_array()) return kept;
  std::string out;
  for (const value& one : kept) out += one.get_ref<const std::string&>();
  return out;
}

// ---- expressions -----------------------------------------------------------------------------------------------------

/// Where the value of a name, or of an attribute or element of one, is kept; null where it is not: it spares the copies
/// of whole dialogues that messages[0].role would make.
const value* evaluator::stored(const expression& e) {
  if (e.what == kind::name) return find(e.text);
  if (e.what != kind::attribute && e.what != kind::item) return nullptr;
  const value* object = stored(*e.parts[0]);
  if (object == nullptr || !object->is_structured()) return nullptr;
  const value index = e.what == kind::attribute ? value(e.text) : eval(*e.parts[1]);
  if (object->is_array())
    return index.is_number_unsigned() && index.get<uint64_t>() < object->size() ? &(*object)[index.get<uint64_t>()]
                                                                                : nullptr;
  const auto found = index.is_string() ? object->find(index.get_ref<const std::string&>()) : object->end();
  return found == object->end() ? nullptr : &*found;
}

value evaluator::eval(const expression& e) {
  step();
  if (const value* found = stored(e)) {
    step(weight(*found));
    return *found;
  }
  value made = computed(e);
  step(weight(made));
  return made;
}

value evaluator::computed(const expression& e) {
  switch (e.what) {
    case kind::literal:
      return e.constant;
    case kind::name:
      return undefined();
    case kind::attribute:
      return attribute(eval(*e.parts[0]), e.text);
    case kind::item:
      return item(eval(*e.parts[0]), eval(*e.parts[1]));
    case kind::slice:
      return slice(e);
    case kind::call:
      return call(e);
    case kind::filter:
      return filter(e.text, eval(*e.parts[0]), arguments(e));
    case kind::test:
      return test(e.text, eval(*e.parts[0]), arguments(e));
    case kind::negation:
      return !truth(eval(*e.parts[0]));
    case kind::minus:
      return arithmetic("-", 0, eval(*e.parts[0]));
    case kind::binary:
      return binary(e);
    case kind::choice:
      return truth(eval(*e.parts[0])) ? eval(*e.parts[1]) : eval_or(e.parts[2], undefined());
    case kind::list: {
      value list = value::array();
      for (const expression_ptr& part : e.parts) list.push_back(eval(*part));
      return list;
    }
    case kind::dict: {
      value dict = value::object();
      for (size_t i = 0; i + 1 < e.parts.size(); i += 2) dict[text(eval(*e.parts[i]))] = eval(*e.parts[i + 1]);
      return dict;
    }
  }
  return undefined();
}

value evaluator::binary(const expression& e) {
  const value a = eval(*e.parts[0]);
  if (e.text == "and") return truth(a) ? eval(*e.parts[1]) : a;
  if (e.text == "or") return truth(a) ? a : eval(*e.parts[1]);
  const value b = eval(*e.parts[1]);
  const bool equal = is_undefined(a) || is_undefined(b) ? is_undefined(a) && is_undefined(b) : a == b;
  if (e.text == "==") return equal;
  if (e.text == "!=") return !equal;
  if (e.text == "in") return contains(b, a);
  if (e.text == "not in") return !contains(b, a);
  if (e.text == "<") return less(a, b);
  if (e.text == ">") return less(b, a);
  if (e.text == "<=") return !less(b, a);
  if (e.text == ">=") return !less(a, b);
  if (e.text == "~") return joined(text(a), text(b));
  return arithmetic(e.text, a, b);
}

bool evaluator::less(const value& a, const value& b) const {
  if ((a.is_number() && b.is_number()) || (a.is_string() && b.is_string())) return a < b;
  fail("compares values that have no order");
}

bool evaluator::contains(const value& all, const value& one) const {
  if (all.is_object()) return one.is_string() && all.contains(one.get_ref<const std::string&>());
  if (all.is_string() && one.is_string())
    return all.get_ref<const std::string&>().find(one.get_ref<const std::string&>()) != std::string::npos;
  const std::vector<value> list = elements(all);
  return std::find(list.begin(), list.end(), one) != list.end();
}

value evaluator::arithmetic(const std::string& symbol, const value& a, const value& b) const {
  if (symbol == "+" && a.is_string() && b.is_string()) return joined(a, b.get_ref<const std::string&>());
  if (symbol == "+" && a.is_array() && b.is_array()) {
    value all = a;
    all.insert(all.end(), b.begin(), b.end());
    return all;
  }
  if (!a.is_number_integer() || !b.is_number_integer()) fail("computes with " + symbol + " on values that have none");
  const auto x = a.get<int64_t>(), y = b.get<int64_t>();
  int64_t out = 0;
  if (symbol == "+" && !__builtin_add_overflow(x, y, &out)) return out;
  if (symbol == "-" && !__builtin_sub_overflow(x, y, &out)) return out;
  if (symbol == "*" && !__builtin_mul_overflow(x, y, &out)) return out;
  if ((symbol == "//" || symbol == "%") && y > 0) {
    const bool below = x % y < 0;  // the rest has the divisor's sign, and the quotient is rounded down
    return symbol == "%" ? x % y + (below ? y : 0) : x / y - (below ? 1 : 0);
  }
  missing("the operator " + symbol + " on such numbers");
}

value evaluator::call(const expression& e) {
  const expression& callee = *e.parts[0];
  if (callee.what == kind::name) return function(callee.text, e, arguments(e));
  if (callee.what == kind::attribute) return method(eval(*callee.parts[0]), callee.text, arguments(e));
  fail("calls what is no function");
}

value evaluator::function(const std::string& name, const expression& e, const std::vector<value>& given) {
  if (name == "raise_exception") throw error(where_ + ": " + string_argument(given, 0, name));
  if (name == "strftime_now") return strftime_now(string_argument(given, 0, name));
  if (name == "namespace") {
    value space = value::object();
    for (size_t i = 0; i < given.size(); ++i) space[e.keywords[i]] = given[i];
    return space;
  }
  if (name == "range" && given.size() == 1 && given[0].is_number_integer() && given[0].get<int64_t>() <= 100'000) {
    value list = value::array();
    for (int64_t i = 0; i < given[0].get<int64_t>(); ++i) list.push_back(i);
    return list;
  }
  if (const auto macro = macros_.find(name); macro != macros_.end()) return expand(*macro->second, e, given);
  missing("the function " + name);
}

/// What a macro writes. It sees its parameters and the template's own variables, not those of the loops it is called in.
value evaluator::expand(const statement& macro, const expression& e, const std::vector<value>& given) {
  if (++depth_ > max_depth) fail("calls macros within macros more than " + std::to_string(max_depth) + " deep");
  std::vector<std::pair<std::string, value>> own;
  for (size_t i = 0; i + 1 < macro.names.size(); ++i) {
    const std::string& name = macro.names[i + 1];
    value v = eval_or(macro.defaults[i], undefined());
    for (size_t j = 0; j < given.size(); ++j)
      if (e.keywords[j] == name || (e.keywords[j].empty() && i == j)) v = given[j];
    own.emplace_back(name, std::move(v));
  }
  decltype(scopes_) callers(std::make_move_iterator(scopes_.begin() + 1), std::make_move_iterator(scopes_.end()));
  scopes_.resize(1);
  scopes_.push_back(std::move(own));
  std::string outside = std::exchange(out_, {});
  for (const statement& s : macro.body) run(s);
  std::string written = std::exchange(out_, std::move(outside));
  scopes_.resize(1);
  scopes_.insert(scopes_.end(), std::make_move_iterator(callers.begin()), std::make_move_iterator(callers.end()));
  --depth_;
  return written;
}

value evaluator::method(const value& object, const std::string& name, const std::vector<value>& given) const {
  if (object.is_string()) {
    const auto& own = object.get_ref<const std::string&>();
    if (name == "strip" && given.empty()) return stripped(own);
    if (name == "upper") return cased(own, std::toupper);
    if (name == "lower") return cased(own, std::tolower);
    if (name == "startswith") return own.rfind(string_argument(given, 0, name), 0) == 0;
    if (name == "endswith") {
      const std::string& end = string_argument(given, 0, name);
      return own.size() >= end.size() && own.compare(own.size() - end.size(), end.size(), end) == 0;
    }
    if (name == "replace" && given.size() == 2)
      return joined(replaced(own, string_argument(given, 0, name), string_argument(given, 1, name), max_text), "");
  }
  if (object.is_object() && (name == "items" || name == "keys")) {
    value list = value::array();
    for (const auto& [key, v] : object.items()) list.push_back(name == "keys" ? value(key) : value::array({key, v}));
    return list;
  }
  if (object.is_object() && name == "get") {
    const auto found = object.find(string_argument(given, 0, name));
    return found != object.end() ? *found : given.size() > 1 ? given[1] : value(nullptr);
  }
  missing("the method " + name);
}

value evaluator::filter(const std::string& name, const value& v, const std::vector<value>& given) const {
  if (name == "trim" && given.empty()) return stripped(text(v));
  if (name == "string" || name == "safe") return text(v);
  if (name == "upper") return cased(text(v), std::toupper);
  if (name == "lower") return cased(text(v), std::tolower);
  if (name == "length" || name == "count") return elements(v).size();
  if (name == "list") return elements(v);
  if (name == "first") return item(elements(v), 0);
  if (name == "last") return item(elements(v), -1);
  if (name == "default") return is_undefined(v) && !given.empty() ? given[0] : v;
  if (name == "selectattr" || name == "rejectattr") return select(v, given, name == "selectattr");
  if (name == "join") {
    const std::string between = given.empty() ? "" : text(given[0]);
    std::string all;
    for (const value& one : elements(v)) all = joined(joined(std::move(all), between), text(one));
    return all.substr(std::min(all.size(), between.size()));
  }
  missing("the filter " + name);
}

value evaluator::select(const value& v, const std::vector<value>& given, bool wanted) const {
  const std::string& name = string_argument(given, 0, "selectattr");
  value kept = value::array();
  for (const value& one : elements(v)) {
    const value own = attribute(one, name);
    const std::vector<value> rest(
        given.begin() + std::min<std::ptrdiff_t>(2, static_cast<std::ptrdiff_t>(given.size())), given.end());
    if ((given.size() == 1 ? truth(own) : test(string_argument(given, 1, "selectattr"), own, rest)) == wanted)
      kept.push_back(one);
  }
  return kept;
}

bool evaluator::test(const std::string& name, const value& v, const std::vector<value>& given) const {
  if (name == "defined") return !is_undefined(v);
  if (name == "undefined") return is_undefined(v);
  if (name == "none") return v.is_null();
  if (name == "string") return v.is_string();
  if (name == "mapping") return v.is_object();
  if (name == "sequence" || name == "iterable") return v.is_array() || v.is_string() || v.is_object();
  if (name == "number") return v.is_number() || v.is_boolean();
  if (name == "boolean") return v.is_boolean();
  if (name == "true") return v.is_boolean() && v.get<bool>();
  if (name == "false") return v.is_boolean() && !v.get<bool>();
  if ((name == "equalto" || name == "eq") && given.size() == 1) return !is_undefined(v) && v == given[0];
  if (name == "odd" || name == "even") return v.is_number_integer() && (v.get<int64_t>() % 2 != 0) == (name == "odd");
  missing("the test " + name);
}

}  // namespace

std::string render(const std::vector<statement>& program, const value& variables, const std::string& where) {
  return evaluator(variables, where).run(program);
}

}  // namespace nibble::mistral::jinja

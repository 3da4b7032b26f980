// SPDX-License-Identifier: Apache-2.0
/// @file
/// The part of Jinja2 that Mistral's chat templates are written in, rendered as transformers renders it (trim_blocks and
/// lstrip_blocks on, no escaping, raise_exception and strftime_now given): output, set, if, for, macro, and the expressions,
/// filters and tests listed in jinja.cpp. What a template needs beyond that is refused by name: a statement when the
/// template is read, a function, filter, test or method when it is reached, so that branches for tools, which no
/// calibration text takes, need not be understood.
/// Source: Jinja2 documentation, "Template Designer Documentation".
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::mistral::jinja {

/// A value of the template's language; undefined is the JSON library's "discarded".
using value = nlohmann::ordered_json;

// NOLINTNEXTLINE(bugprone-exception-escape): the JSON library's assertions throw in no build of this project
struct expression {
  enum class kind {
    literal,
    name,
    attribute,
    item,
    slice,
    call,
    filter,
    test,
    negation,
    minus,
    binary,
    choice,
    list,
    dict
  };
  kind what;
  std::string text;  ///< the name, attribute, filter, test or operator
  value constant;    ///< of a literal
  /// item: object, index; slice: object, begin, end (null: left out); call, filter, test: object, arguments;
  /// choice: condition, then, else (null: undefined); dict: key, value, key, value, …
  std::vector<std::unique_ptr<expression>> parts;
  std::vector<std::string> keywords;  ///< of a call's arguments, empty for one given by place
};
using expression_ptr = std::unique_ptr<expression>;

struct statement {
  enum class kind { text, output, assign, branch, loop, macro };
  kind what = kind::text;
  std::string text;  ///< of text
  std::vector<std::string>
      names;              ///< assign: name, or namespace and attribute; loop: its variables; macro: name, parameters
  expression_ptr value;   ///< output, assign, loop: over what; branch: condition (null in an else)
  expression_ptr filter;  ///< loop: if …
  std::vector<expression_ptr> defaults;  ///< macro: of its parameters, null where there is none
  std::vector<statement> body;
  std::vector<statement> otherwise;  ///< branch: elif or else; loop: else
};

/// @throws error naming `where` for what is no template, or one beyond this part of the language.
std::vector<statement> parse(std::string_view source, const std::string& where);

/// The text that `program` writes with these variables. @throws error with the message of a raise_exception, and for
/// what goes beyond this part of the language, naming `where`.
std::string render(const std::vector<statement>& program, const value& variables, const std::string& where);

/// What templates' strftime_now(format) gives, some days ago: of now, or of what SOURCE_DATE_EPOCH tells, so that a run can be repeated.
std::string strftime_now(const std::string& format, int days_ago = 0);

}  // namespace nibble::mistral::jinja

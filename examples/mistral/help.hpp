// SPDX-License-Identifier: Apache-2.0
/// @file
/// --help as a person reads it: the option on a line, what it does wrapped below it, the default in brackets.
#pragma once

#include <CLI/CLI.hpp>
#include <sstream>
#include <string>

namespace nibble::mistral {

class help_formatter : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option, bool is_positional) const override {
    std::string line = "  " + make_option_name(option, is_positional);
    if (option->get_type_size() != 0 && !option->get_type_name().empty()) line += " " + option->get_type_name();
    std::string text = option->get_description();
    const std::string given = option->get_default_str();
    if (!given.empty())
      text += " [" + (given.front() == '[' && given.back() == ']' ? given.substr(1, given.size() - 2) : given) + "]";
    return line + "\n" + wrapped(text);
  }

 private:
  static constexpr std::size_t indent = 6, width = 96;

  static std::string wrapped(const std::string& text) {
    std::string out, line;
    std::istringstream words(text);
    for (std::string word; words >> word;) {
      if (!line.empty() && indent + line.size() + 1 + word.size() > width) {
        out += std::string(indent, ' ') + line + "\n";
        line.clear();
      }
      line += (line.empty() ? "" : " ") + word;
    }
    return out + std::string(indent, ' ') + line + "\n";
  }
};

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Checks of numbers on a command line. Without them CLI11 reads 0x10 as 16, and says of 1.5 where a whole number belongs
/// only that it could not be converted.
#pragma once

#include <cerrno>
#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

namespace nibble::mistral {

/// A number in [low, high], which NaN is not, in decimal.
inline CLI::Validator between(double low, double high) {
  const auto check = [=](std::string& text) -> std::string {
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    const bool decimal = !text.empty() && text.find_first_not_of("+-.0123456789eE") == std::string::npos;
    if (decimal && *end == '\0' && number >= low && number <= high) return "";
    char range[80];
    std::snprintf(range, sizeof(range), " is not a number from %.12g to %.12g", low, high);
    return (text.empty() ? "\"\"" : text) + range;
  };
  return CLI::Validator(check, "");
}

/// A whole number in [low, high], in decimal digits.
inline CLI::Validator whole(std::int64_t low, std::uint64_t high) {
  const auto check = [=](std::string& text) -> std::string {
    const bool negative = !text.empty() && text[0] == '-';
    const std::string digits = text.substr(negative ? 1 : 0);
    errno = 0;
    const auto size = std::strtoull(digits.c_str(), nullptr, 10);
    const bool number = !digits.empty() && digits.find_first_not_of("0123456789") == std::string::npos && errno == 0;
    const bool inside = negative ? low < 0 && size <= static_cast<std::uint64_t>(-(low + 1)) + 1
                                 : size <= high && (low <= 0 || size >= static_cast<std::uint64_t>(low));
    if (number && inside) return "";
    return (text.empty() ? "\"\"" : text) + " is not a whole number from " + std::to_string(low) + " to " +
           std::to_string(high);
  };
  return CLI::Validator(check, "");
}

}  // namespace nibble::mistral

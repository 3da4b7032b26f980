// SPDX-License-Identifier: Apache-2.0
#include "sizes.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <exception>
#include <utility>

#include "error.hpp"

namespace nibble::mistral {

std::uint64_t parse_size(const std::string& text, const std::string& option) {
  size_t digits = 0;
  double number = 0;
  try {
    const bool decimal = !text.empty() && text[0] >= '0' && text[0] <= '9' && text.find_first_of("xX") == text.npos;
    if (decimal) number = std::stod(text, &digits);
  } catch (const std::exception&) {
    digits = 0;
  }
  std::string unit = text.substr(digits);
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return std::toupper(c); });
  const std::pair<const char*, double> units[] = {{"", 1},     {"B", 1},        {"KB", 1e3},      {"MB", 1e6},
                                                  {"GB", 1e9}, {"KIB", 1024.0}, {"MIB", 1048576}, {"GIB", 1073741824},
                                                  {"TB", 1e12}};
  for (const auto& [name, factor] : units)
    if (digits > 0 && unit == name && std::isfinite(number) && number > 0 && number * factor < 9e18)
      return static_cast<std::uint64_t>(number * factor);
  throw usage_error(option + " " + text + " is not a size, such as 5GB or 500MB");
}

}  // namespace nibble::mistral

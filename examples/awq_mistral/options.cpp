// SPDX-License-Identifier: Apache-2.0
#include "options.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "mistral/error.hpp"

namespace nibble::mistral {

namespace {

struct named_scheme {
  const char* name;
  int bits;
  bool symmetric;
};
constexpr named_scheme schemes[] = {{"W4A16_ASYM", 4, false}, {"W4A16", 4, true},       {"W8A16", 8, true},
                                    {"W8A16_ASYM", 8, false}, {"W3A16_ASYM", 3, false}, {"W3A16", 3, true},
                                    {"W2A16_ASYM", 2, false}};

}  // namespace

void check(awq_options& o) {
  const auto* known =
      std::find_if(std::begin(schemes), std::end(schemes), [&](const named_scheme& s) { return o.scheme == s.name; });
  if (known == std::end(schemes)) {
    std::string names;
    for (const auto& s : schemes) names += std::string(names.empty() ? "" : ", ") + s.name;
    throw usage_error("--scheme " + o.scheme + " is not one of " + names);
  }
  o.how.bits = known->bits;
  o.how.symmetric = known->symmetric;
  if (o.how.group != -1 && o.how.group != 32 && o.how.group != 64 && o.how.group != 128)
    throw usage_error("--group-size " + std::to_string(o.how.group) + " is not one of 128, 64, 32, -1");
  if (o.how.format != packed_format::compressed_tensors && (o.how.bits != 4 || o.how.symmetric))
    throw usage_error(std::string("--format ") + to_string(o.how.format) +
                      " holds 4 bits with zero points only: use it with --scheme W4A16_ASYM");
  if (std::find(o.ignore.begin(), o.ignore.end(), "lm_head") == o.ignore.end())
    throw usage_error("--ignore must name lm_head: the head is not quantized");
  if (o.grid > 1 && o.grid < 4)
    throw usage_error("--n-grid " + std::to_string(o.grid) + " is neither 1 (no search) nor at least 4");
  if (o.max_regression >= 0 && o.evaluate.empty())
    throw usage_error("--max-regression compares perplexities: give it a text with --evaluate");
}

std::uint64_t parse_size(const std::string& text) {
  size_t digits = 0;
  double number = 0;
  try {
    number = std::stod(text, &digits);
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
  throw usage_error("--max-shard-size " + text + " is not a size, such as 5GB or 500MB");
}

}  // namespace nibble::mistral

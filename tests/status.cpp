// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/status.hpp"

#include <catch2/catch.hpp>
#include <set>
#include <string>

namespace status_tests {

using namespace nibble;

TEST_CASE("every status has a sentence of its own, and a value that is none says so") {
  const std::string none = to_string(static_cast<status>(255));
  REQUIRE(none == "unknown status");
  std::set<std::string> sentences;
  int count = 0;
  for (int value = 0; value < 255; ++value) {
    const std::string sentence = to_string(static_cast<status>(value));
    if (sentence == none) continue;
    ++count;
    REQUIRE(count == value + 1);  // the enumerators are contiguous from 0
    REQUIRE_FALSE(sentence.empty());
    sentences.insert(sentence);
  }
  REQUIRE(count == static_cast<int>(status::launch_failed) + 1);
  REQUIRE(static_cast<int>(sentences.size()) == count);
}

TEST_CASE("ok is zero, and its sentence is known at compile time") {
  REQUIRE(static_cast<int>(status::ok) == 0);
  static_assert(to_string(status::ok)[0] == 'o', "to_string works in constant expressions");
}

}  // namespace status_tests

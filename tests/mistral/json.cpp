// SPDX-License-Identifier: Apache-2.0
#include "mistral/json.hpp"

#include <catch2/catch.hpp>

#include "support/files.hpp"

namespace json_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;

namespace {

std::string refusal(std::string_view text) {
  return test::refusal([&] { parse_json(text, "FILE"); });
}

}  // namespace

TEST_CASE("JSON nested as deep as allowed is read, and one level more is refused with the byte") {
  const auto nested = [](int levels) { return std::string(levels, '[') + std::string(levels, ']'); };
  CHECK(parse_json(nested(max_json_depth), "FILE").is_array());
  CHECK_THAT(refusal(nested(max_json_depth + 1)), Contains("FILE: JSON nested deeper than 512 levels at byte 512"));
  CHECK_THAT(refusal(std::string(100'000, '[')), Contains("nested deeper"));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK_THAT(refusal(objects), Contains("nested deeper"));
  CHECK(parse_json("\"" + std::string(1000, '[') + "\"", "FILE").is_string());  // brackets in a string nest nothing
  CHECK(parse_json("[\"\\\"[[\", \"\\\\\"]", "FILE").size() == 2);
}

TEST_CASE("what is no JSON is refused with the byte") {
  CHECK_THAT(refusal(""), Contains("FILE: not valid JSON at byte 0"));
  CHECK_THAT(refusal("{\"a\": 1"), Contains("at byte 7 of 7"));
  CHECK_THAT(refusal("{\"a\": 1} x"), Contains("at byte 9"));
  CHECK_THAT(refusal("[1,]"), Contains("at byte 3"));
  CHECK_THAT(refusal("[\"\xff\"]"), Contains("at byte 2"));
  CHECK_THAT(refusal("[\"\xed\xa0\x80\"]"), Contains("at byte 3"));
  CHECK_THAT(refusal(std::string_view("[1\0]", 4)), Contains("at byte 2"));
  CHECK_THAT(refusal("[NaN]"), Contains("at byte 1"));
  CHECK_THAT(refusal("[1e999]"), Contains("a number that no type can hold"));
}

TEST_CASE("a value comes as the type asked for or not at all") {
  const auto json =
      parse_json(R"({"i": -3, "u": 18446744073709551615, "f": 2.5, "s": "é", "b": true, "n": null, "a": []})", "F");
  CHECK(json_get<int>(json, "i", "F") == -3);
  CHECK(json_get<std::int64_t>(json, "i", "F") == -3);
  CHECK(json_get<std::uint64_t>(json, "u", "F") == 18446744073709551615u);
  CHECK(json_get<double>(json, "f", "F") == 2.5);
  CHECK(json_get<float>(json, "i", "F") == -3.0f);
  CHECK(json_get<std::string>(json, "s", "F") == "é");
  CHECK(json_get<bool>(json, "b", "F"));
  CHECK(json_get<int>(json, "missing", "F", 7) == 7);
  CHECK(json_get<int>(json, "n", "F", 7) == 7);
  const auto says = [&](auto type, const char* key) {
    return test::refusal([&] { json_get<decltype(type)>(json, key, "F"); });
  };
  CHECK_THAT(says(int{}, "missing"), Contains("F: the key \"missing\" is missing"));
  CHECK_THAT(says(unsigned{}, "i"), Contains("\"i\" must be an integer in range, but is -3"));
  CHECK_THAT(says(std::int64_t{}, "u"), Contains("must be an integer in range"));
  CHECK_THAT(says(int{}, "f"), Contains("must be an integer in range, but is 2.5"));
  CHECK_THAT(says(int{}, "b"), Contains("but is true"));
  CHECK_THAT(says(bool{}, "i"), Contains("must be true or false"));
  CHECK_THAT(says(double{}, "s"), Contains("must be a number, but is \"\\u00e9\""));
  CHECK_THAT(says(std::string{}, "a"), Contains("must be a string, but is []"));
  CHECK_THAT(says(std::string{}, "n"), Contains("must be a string, but is null"));
  CHECK_THAT(test::refusal([] { json_get<int>(parse_json("[1]", "F"), "a", "F"); }), Contains("is missing"));
}

TEST_CASE("a file beyond the size that is read, a directory, and nothing at all are refused by name") {
  const test::temporary_directory directory;
  test::write_bytes(directory / "a.json", "[1, 2, 3]");
  CHECK(read_json(directory / "a.json", 9).size() == 3);
  CHECK_THAT(test::refusal([&] { read_json(directory / "a.json", 8); }), Contains("a.json holds more than 8 bytes"));
  CHECK_THAT(test::refusal([&] { read_json(directory.path()); }), Contains("is a directory"));
  CHECK_THAT(test::refusal([&] { read_json(directory / "b.json"); }), Contains("cannot open") && Contains("b.json"));
}

}  // namespace json_tests

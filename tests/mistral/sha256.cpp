// SPDX-License-Identifier: Apache-2.0
#include "mistral/sha256.hpp"

#include <catch2/catch.hpp>

#include "support/files.hpp"

namespace sha256_tests {

using namespace nibble;
using mistral::sha256;
using mistral::sha256_of_file;

TEST_CASE("SHA-256 is that of the standard's examples, of bytes and of files larger than a piece") {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string million(1'000'000, 'a');
  const char* const of_million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
  CHECK(sha256(million) == of_million);
  const test::temporary_directory work;
  test::write_bytes(work / "a", million);
  CHECK(sha256_of_file(work / "a") == of_million);
  const std::string more(3'000'001, 'b');
  test::write_bytes(work / "b", more);
  CHECK(sha256_of_file(work / "b") == sha256(more));
  test::write_bytes(work / "empty", "");
  CHECK(sha256_of_file(work / "empty") == sha256(""));
  for (const char* bad : {"none", "."})
    CHECK_THAT(test::refusal([&] { sha256_of_file(work / bad); }), Catch::Matchers::Contains((work / bad).string()));
}

}  // namespace sha256_tests

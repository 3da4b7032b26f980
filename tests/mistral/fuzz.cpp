// SPDX-License-Identifier: Apache-2.0
/// @file
/// The fuzzers' targets, run over their seeds and over what fuzzing found: no crash, no broken promise, in seconds.
#include "fuzz/targets.hpp"
#include "support/places.hpp"

#include <catch2/catch.hpp>
#include <chrono>
#include <set>

#include "support/files.hpp"

namespace fuzz_tests {

using namespace nibble;

namespace {

const test::fs::path corpus = test::fs::path(test::fuzz_directory) / "corpus",
                     finds = test::fs::path(test::fuzz_directory) / "finds";

std::set<std::string> folders(const test::fs::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : test::fs::directory_iterator(directory)) names.insert(entry.path().filename().string());
  return names;
}

}  // namespace

TEST_CASE("every target of a fuzzer has seeds, and every folder of seeds or finds a target") {
  std::set<std::string> names;
  for (const auto& target : fuzz::targets) names.insert(target.name);
  CHECK(folders(corpus) == names);
  for (const std::string& name : folders(finds)) CHECK(names.count(name) == 1);
}

TEST_CASE("what fuzzers start from and what they found is read or refused, each in seconds") {
  int files = 0;
  for (const auto& target : fuzz::targets)
    for (const auto& directory : {corpus / target.name, finds / target.name}) {
      if (!test::fs::exists(directory)) continue;
      for (const auto& entry : test::fs::directory_iterator(directory)) {
        CAPTURE(entry.path().string());
        const auto start = std::chrono::steady_clock::now();
        target.run(test::read_bytes(entry.path()));
        CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));  // sanitizers and a busy machine
        ++files;
      }
    }
  CHECK(files >= static_cast<int>(std::size(fuzz::targets)));
}

}  // namespace fuzz_tests

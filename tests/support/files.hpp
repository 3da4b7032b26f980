// SPDX-License-Identifier: Apache-2.0
/// @file
/// Files for tests: a directory that vanishes, and what an example's error says.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "mistral/error.hpp"

namespace nibble::test {

namespace fs = std::filesystem;

/// A fresh directory, removed at the end of the test.
class temporary_directory {
 public:
  temporary_directory() {
    std::string name = (fs::temp_directory_path() / "nibble_test_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = fs::canonical(name);
  }
  ~temporary_directory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;

  const fs::path& path() const { return path_; }
  fs::path operator/(std::string_view name) const { return path_ / name; }

 private:
  fs::path path_;
};

inline void write_bytes(const fs::path& file, std::string_view bytes) {
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(out.good());
}

inline std::string read_bytes(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Names in a directory, sorted, joined by spaces.
inline std::string listing(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : " ") + name;
  return all;
}

/// What the mistral::error that f() throws says; fails the test when it throws none, and when it is not one sentence.
template <class F>
std::string refusal(F&& f) {
  try {
    f();
  } catch (const mistral::error& refused) {
    const std::string text = refused.what();
    CHECK(text.size() > 10);
    CHECK(text.find('\n') == std::string::npos);
    return text;
  }
  FAIL("nothing was refused");
  return {};
}

}  // namespace nibble::test

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the targets share: a directory to put a file in, and how a broken promise ends a fuzzer's run or fails a test.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "mistral/error.hpp"

namespace nibble::fuzz {

namespace fs = std::filesystem;

/// A directory of this process, removed at its end.
class scratch_directory {
 public:
  scratch_directory() {
    std::string name = (fs::temp_directory_path() / "nibble_fuzz_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no directory " + name);
    path_ = name;
  }
  ~scratch_directory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  scratch_directory(const scratch_directory&) = delete;
  scratch_directory& operator=(const scratch_directory&) = delete;

  const fs::path& path() const { return path_; }

  /// Writes a file anew. The old one is removed and not emptied, since it may be mapped.
  void write(const char* name, std::string_view bytes) const {
    fs::remove(path_ / name);
    std::ofstream out(path_ / name, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.close();
    if (!out) throw std::runtime_error("cannot write " + (path_ / name).string());
  }

 private:
  fs::path path_;
};

/// A promise of the code under test. A fuzzer ends at the exception, which nothing catches; a test fails.
inline void promise(bool kept, const char* what) {
  if (!kept) throw std::logic_error(what);
}

/// Calls f(); a mistral::error that says something is an answer. Whether f went through.
template <class F>
bool accepts(F&& f) {
  try {
    std::forward<F>(f)();
    return true;
  } catch (const mistral::error& refused) {
    promise(refused.what()[0] != '\0', "an error says nothing");
    return false;
  }
}

/// `bytes` cut at the first zero byte, which no JSON and no pattern holds; the second part may be empty.
inline std::pair<std::string_view, std::string_view> parted(std::string_view bytes) {
  const size_t zero = bytes.find('\0');
  if (zero == std::string_view::npos) return {bytes, {}};
  return {bytes.substr(0, zero), bytes.substr(zero + 1)};
}

}  // namespace nibble::fuzz

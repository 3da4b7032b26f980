// SPDX-License-Identifier: Apache-2.0
/// @file
/// A file mapped for reading, whose pages are let go of once read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace nibble::mistral {

class mapped_file {
 public:
  /// @throws error naming the file when it cannot be read, is empty, or is no regular file.
  explicit mapped_file(std::filesystem::path path);
  ~mapped_file();
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;

  const std::byte* data() const { return static_cast<const std::byte*>(map_); }
  std::uint64_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }

  /// Lets go of the pages of [first, first + bytes), widened to whole windows of what a page fault maps at once
  /// (64 KiB, fault_around_bytes): otherwise each tensor would leave its neighbours' edges resident. That is safe for
  /// neighbours in use, whose pages come back from the page cache at the next touch.
  void release(const std::byte* first, std::uint64_t bytes) const;

 private:
  [[noreturn]] void fail() const;

  std::filesystem::path path_;
  std::uint64_t size_ = 0;
  void* map_ = nullptr;
};

}  // namespace nibble::mistral

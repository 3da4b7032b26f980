// SPDX-License-Identifier: Apache-2.0
/// @file
/// Writing a GGUF file: all names, shapes and types first, then the bytes of one tensor after another.
#pragma once

#include "file.hpp"
#include "gguf.hpp"

namespace nibble::mistral {

/// Until finish() the file is PATH.partial, which vanishes without it. Holds no tensor's data.
class gguf_writer {
 public:
  /// Writes everything but the data. @throws error naming the file when it cannot be written, and the key or tensor that is
  /// given twice, is an array of nothing known, or has another shape than its type takes.
  gguf_writer(const std::filesystem::path& path, const gguf_metadata& metadata, std::vector<gguf_tensor_info> tensors);

  /// The next bytes: of the tensor at hand, or the first of the next one; never of both.
  /// @throws error when they are more than the tensor takes, or the disk is full.
  void append(const void* data, std::uint64_t bytes);

  /// @returns bytes of the file. @throws error when a tensor lacks bytes, or the disk is full.
  std::uint64_t finish();

 private:
  std::filesystem::path path_;
  output_file file_;
  std::vector<gguf_tensor_info> tensors_;
  size_t current_ = 0;        ///< tensor
  std::uint64_t filled_ = 0;  ///< its bytes that are written
  std::uint64_t at_ = 0;      ///< in the file
};

/// Bytes of the file that gguf_writer makes of these. @throws error as it does.
std::uint64_t gguf_file_bytes(const gguf_metadata& metadata, const std::vector<gguf_tensor_info>& tensors);

}  // namespace nibble::mistral

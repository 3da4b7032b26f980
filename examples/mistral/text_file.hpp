// SPDX-License-Identifier: Apache-2.0
/// @file
/// Texts from files a user has: UTF-8, whole or an object a line.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::mistral {

/// The whole file; a byte order mark is left out. @throws error naming the file when it cannot be read, and the byte where
/// it is not UTF-8.
std::string read_text(const std::filesystem::path& file);

/// A line of a .jsonl and where it stands, for messages.
struct jsonl_line {
  std::string_view text;
  std::string where;  ///< "path, line 3"
};

/// The lines of `text`, which outlives them, blank ones left out. @param file names them.
std::vector<jsonl_line> read_lines(std::string_view text, const std::filesystem::path& file);

}  // namespace nibble::mistral

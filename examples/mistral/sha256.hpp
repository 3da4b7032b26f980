// SPDX-License-Identifier: Apache-2.0
/// @file
/// The SHA-256 of texts and files, as `sha256sum` prints it: says later what a figure was measured on.
/// Source: FIPS 180-4; computed by OpenSSL's libcrypto.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace nibble::mistral {

/// 64 hexadecimal digits.
std::string sha256(std::string_view bytes);

/// That of a file's bytes, read piece by piece. @throws error naming the file when it cannot be read.
std::string sha256_of_file(const std::filesystem::path& file);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Sizes as a user writes them.
#pragma once

#include <cstdint>
#include <string>

namespace nibble::mistral {

/// "5GB", "500MB", "1GiB", "1000000" → bytes. @throws usage_error naming `option`, which has `text` for its value.
std::uint64_t parse_size(const std::string& text, const std::string& option);

}  // namespace nibble::mistral

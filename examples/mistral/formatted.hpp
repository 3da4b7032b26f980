// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers as text, as printf writes them.
#pragma once

#include <cstdio>
#include <string>

namespace nibble::mistral {

/// What printf would write, 255 bytes of it at most.
template <class... Args>
std::string formatted(const char* pattern, Args... args) {
  char text[256];
  std::snprintf(text, sizeof(text), pattern, args...);
  return text;
}

}  // namespace nibble::mistral

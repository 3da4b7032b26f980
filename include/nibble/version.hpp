// SPDX-License-Identifier: Apache-2.0
/// @file
/// Version, and the inline namespace that lets two vendored copies of nibble live in one program.
#pragma once

#define NIBBLE_VERSION_MAJOR 0
#define NIBBLE_VERSION_MINOR 1
#define NIBBLE_VERSION_PATCH 0
#define NIBBLE_VERSION "0.1.0"

/// Opens `nibble` and the inline namespace of this version; close with NIBBLE_NAMESPACE_END.
#define NIBBLE_NAMESPACE_BEGIN \
  namespace nibble {           \
  inline namespace v0_1 {
#define NIBBLE_NAMESPACE_END \
  }                          \
  }

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Telling the memory what comes next, where rows far apart take turns and the machine cannot guess.
#pragma once

#include <cstdint>

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Asks for `count` bytes that will soon be read or written, one cache line at a time. Into the second-level cache: rows
/// a power of two apart share few sets of the first.
inline void expect(const void* at, index_t count) noexcept {
  const auto* const bytes = static_cast<const char*>(at);
  const auto past = static_cast<index_t>(reinterpret_cast<std::uintptr_t>(at) % 64);
  for (index_t byte = -past; byte < count; byte += 64) __builtin_prefetch(bytes + byte, 0, 2);
}

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

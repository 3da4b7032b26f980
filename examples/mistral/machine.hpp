// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the system tells of memory; 0 where it does not tell (proc(5)).
#pragma once

#include <cstdint>

namespace nibble::mistral {

/// Most bytes of this process that were ever resident at once, pages of mapped files among them.
std::uint64_t peak_resident_bytes();
/// Bytes that programs can have now without swapping.
std::uint64_t available_bytes();

}  // namespace nibble::mistral

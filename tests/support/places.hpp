// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where tests find their files, and the programs.
#pragma once

namespace nibble::test {

extern const char golden_directory[];  ///< tests/golden
extern const char fuzz_directory[];    ///< tests/fuzz
extern const char bin_directory[];     ///< build/bin

}  // namespace nibble::test

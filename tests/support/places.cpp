// SPDX-License-Identifier: Apache-2.0
#include "support/places.hpp"

namespace nibble::test {

const char golden_directory[] = NIBBLE_GOLDEN_DIR;
const char fuzz_directory[] = NIBBLE_FUZZ_DIR;
const char bin_directory[] = NIBBLE_BIN_DIR;

}  // namespace nibble::test

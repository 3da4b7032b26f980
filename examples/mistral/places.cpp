// SPDX-License-Identifier: Apache-2.0
#include "places.hpp"

namespace nibble::mistral {

const char source_directory[] = NIBBLE_SOURCE_DIR;

}  // namespace nibble::mistral

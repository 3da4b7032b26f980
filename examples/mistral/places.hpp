// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where the files lie that come with the programs. A variable of one source file and no macro of all, so that a compiler
/// cache serves every checkout.
#pragma once

namespace nibble::mistral {

extern const char source_directory[];  ///< the project's root

}  // namespace nibble::mistral

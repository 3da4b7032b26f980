// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a bench was built from; cmake/commit.cmake writes it.
#pragma once

namespace bench {

/// Empty where the sources were no repository's and the environment's NIBBLE_COMMIT did not tell.
extern const char* const build_commit;
/// Whether tracked files differed from it.
extern const bool build_changed;

}  // namespace bench

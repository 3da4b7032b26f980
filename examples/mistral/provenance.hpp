// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which program, built from what, on which machine: what a figure needs beside it to be measured again.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace nibble::mistral {

/// The commit that was built; empty where the sources were no repository's.
extern const char* const build_commit;
/// Whether tracked files differed from it.
extern const bool build_changed;

/// "made" of --json: program, commit, compiler, the time (UTC), and the machine.
nlohmann::ordered_json made_by(const std::string& program);

}  // namespace nibble::mistral

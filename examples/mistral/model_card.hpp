// SPDX-License-Identifier: Apache-2.0
/// @file
/// README.md of a quantized checkpoint, ready for a hub: metadata, measured figures, how to serve it and over how many
/// ranks, what made it, and its limits. Written from the object that --json writes; nothing in it depends on the time or
/// the machine, but for figures measured there.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace nibble::mistral {

/// @param run what --json writes.
std::string model_card(const nlohmann::ordered_json& run);

}  // namespace nibble::mistral

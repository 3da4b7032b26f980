// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a model says of itself: its hub name, licence and languages, from its own card and from where it lies.
/// Source: the hub's model card metadata, huggingface.co/docs/hub/model-cards.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "config.hpp"

namespace nibble::mistral {

/// "source" of --json. Always "name": the hub's, the card's model_name, or the directory's. Where they are known:
/// "base_model" (the name on the hub), and of the card "license", "license_name", "license_link", "language" (a list).
/// A hub name comes from a hub cache's path (models--ORG--NAME/snapshots/…) or config.json's _name_or_path.
/// A card that is missing or not valid tells nothing.
nlohmann::ordered_json describe_source(const std::filesystem::path& model, const config& c);

}  // namespace nibble::mistral

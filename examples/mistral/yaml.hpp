// SPDX-License-Identifier: Apache-2.0
/// @file
/// YAML from files that nobody vouches for, as the JSON it means. yaml-cpp reads events, the tree is built here, so that
/// size, nesting and what aliases multiply are bounded before memory is taken.
/// Plain scalars are typed as PyYAML types them (YAML 1.1: yes and off are booleans, 1e5 is a string).
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace nibble::mistral {

inline constexpr std::uint64_t max_yaml_bytes = std::uint64_t{1} << 20;  ///< a group may name every linear
inline constexpr int max_yaml_depth = 64;
inline constexpr std::size_t max_yaml_nodes = 100'000;  ///< aliases counted as what they stand for

/// The one document of a file. Python's tags are read as their content: !!python/object/apply:TYPE [x] as x, since
/// TYPE(x) of an enumeration or a device means x. Keys are strings.
/// @throws error naming the file and line for a syntax error, bytes that are not UTF-8, a second document, a key that
/// comes twice or is no scalar, <<, other tags, NaN and infinity, and what goes beyond the bounds above.
nlohmann::ordered_json read_yaml(const std::filesystem::path& file);

/// read_yaml of a text; `where` names it in messages.
nlohmann::ordered_json parse_yaml(const std::string& text, const std::string& where);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What gguf_mistral tells: a table by type, the tensors of a dry run, JSON.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "gguf/convert.hpp"

namespace nibble::mistral {

/// A line a type (and, with `each`, before them one a tensor), and the bits a weight takes over all.
std::string plan_table(const gguf_plan& plan, const mix& m, bool each);

/// Adds type, bits_per_weight, notes and tensors: name, type, shape (rows first) and bytes.
void add_plan(nlohmann::ordered_json& out, const gguf_plan& plan, const mix& m);

/// @throws error when the disk of `output` has less room than the file takes.
void check_room(const std::filesystem::path& output, const gguf_plan& plan);

}  // namespace nibble::mistral

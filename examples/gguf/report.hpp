// SPDX-License-Identifier: Apache-2.0
/// @file
/// What gguf_mistral tells: a table by type, the tensors of a dry run, JSON.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "gguf/convert.hpp"
#include "gguf/measure.hpp"

namespace nibble::mistral {

/// A line a type (and, with `each`, before them one a tensor), and the bits a weight takes over all.
std::string plan_table(const gguf_plan& plan, const mix& m, bool each);

/// Adds type, bits_per_weight, notes and tensors: name, type, shape (rows first) and bytes.
void add_plan(nlohmann::ordered_json& out, const gguf_plan& plan, const mix& m);

/// How types were chosen for a target.
struct target_choice {
  std::vector<tensor_options> table;
  chosen_types chosen;
  double seconds = 0;  ///< that measuring and choosing took
};

/// A line a tensor: its type, the relative error of its weights, and the divergence that is expected of it.
std::string choice_table(const target_choice& of);
/// What is expected of all together.
std::string choice_line(const target_choice& of);
/// Adds "target", and error and divergence to those of "tensors" that a type was chosen for. @pre add_plan was called.
void add_choice(nlohmann::ordered_json& out, const target_choice& of, const size_target& target);

/// @throws error when the disk of `output` has less room than the file takes.
void check_room(const std::filesystem::path& output, const gguf_plan& plan);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The command line of gguf_mistral.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>

#include "gguf/measure.hpp"
#include "mistral/calibration.hpp"
#include "mistral/places.hpp"
#include "nibble/host/matmul.hpp"

namespace nibble::mistral {

struct gguf_options {
  std::string model = source_directory + std::string("/examples/awq_mistral/model");
  std::string output, type = "Q4_K_M", search = "ggml", importance, importance_output, name, json;
  std::string calibration, target_size, precision = "auto";
  calibration_options samples;
  size_target target;
  int threads = 0;
  bool awq = false, overwrite = false, dry_run = false, print_json = false;

  bool own_importance() const { return importance == "auto"; }
  bool calibrated() const { return own_importance() || awq; }
  /// None: left to us.
  std::optional<host::matmul_precision> matmul_precision() const;
  bool targeted() const { return target.bytes > 0 || target.bits_per_weight > 0; }
};

void add_options(CLI::App& app, gguf_options& o);

/// Settles what the command line said. @throws usage_error for options that exclude or lack one another.
void settle(const CLI::App& app, gguf_options& o);

/// What --type takes: "Q2_K|…|EXACT".
std::string gguf_type_names();

/// NAME.Modelfile beside NAME.gguf.
std::filesystem::path modelfile_of(const std::filesystem::path& output);

/// @throws error when the file, its Modelfile or the importance matrix cannot be made, or is there and not to be replaced;
/// usage_error when there will be no matrix.
void check_outputs(const gguf_options& o);

}  // namespace nibble::mistral

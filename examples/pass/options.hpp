// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a pass is told on its command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mistral/gpu.hpp"
#include "mistral/quantization.hpp"
#include "nibble/awq.hpp"

namespace nibble::mistral {

enum class clip_search { none, mse, gram };
enum class search_loss { gram, block };
enum class method { awq, rtn };
enum class propagation { original, quantized };

struct pass_options {
  std::string model, output, calibration, evaluate, json, report, recipe;
  std::string baseline;  ///< --json of an earlier run
  index_t samples = 256, max_length = 512;
  std::string scheme = "W4A16_ASYM";
  index_t group_size = 128;
  packed_format format = packed_format::compressed_tensors;
  std::vector<std::string> ignore = {"lm_head"};
  quantization how;  ///< how each linear is packed: what the recipe, or the four above, say
  search_loss loss = search_loss::gram;
  duo_scaling duo = duo_scaling::both;
  int grid = 20;
  clip_search clip = clip_search::gram;
  int sweeps = 2;
  float shrinkage = 0.5f;
  propagation propagate = propagation::original;
  method how_found = method::awq;
  backend_options backend;
  int threads = 0;  ///< 0: all
  std::uint64_t seed = 42;
  double max_regression = -1;  ///< negative: off
  std::uint64_t max_shard_bytes = 5'000'000'000;
  bool overwrite = false;
  bool restart = false;
  bool dry_run = false;
  bool allow_overlap = false;  ///< of calibration samples with the text to evaluate
};

/// Options that a recipe decides as well.
inline constexpr const char* decided_by_recipe[] = {"--scheme", "--group-size",  "--ignore",
                                                    "--method", "--duo-scaling", "--n-grid"};

/// Settles what the command line said, and the recipe if it named one. @returns what the user should be told, sentences.
/// @throws usage_error for combinations that make no sense, error for a recipe that cannot be followed.
std::vector<std::string> check(pass_options& o);

/// "5GB", "500MB", "1GiB", "1000000" → bytes. @throws usage_error.
std::uint64_t parse_size(const std::string& text);

}  // namespace nibble::mistral

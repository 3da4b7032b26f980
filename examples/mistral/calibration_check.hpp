// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whether calibration samples suit the texts that the result is evaluated on, before hours are spent on them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "calibration.hpp"
#include "evaluation_text.hpp"
#include "overlap.hpp"

namespace nibble::mistral {

/// Statistics of fewer samples are noisy.
inline constexpr index_t few_samples = 64;

/// The texts to evaluate, where there are any.
struct planned_evaluation {
  std::filesystem::path file;
  const evaluation_text& text;
  const std::vector<window>& windows;
};

struct calibration_findings {
  overlap shared;
  std::vector<std::string> warnings;  ///< a sentence each, without a stop
};

/// Warns of fewer than few_samples samples, of samples beyond the model's context, and of samples whose median length is under a quarter or over four times the
/// median length of the windows that are evaluated.
/// @param planned null: nothing is evaluated.
/// @throws error telling the share, when the evaluated text reappears in the samples (overlap::reappears) and
/// `allow_overlap` is false; a warning else.
calibration_findings check_calibration(const calibration_set& set, const tokenizer& tok, index_t context,
                                       const planned_evaluation* planned, bool allow_overlap);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a run is given.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mistral/calibration_check.hpp"
#include "mistral/config.hpp"
#include "mistral/gpu.hpp"
#include "mistral/results.hpp"
#include "mistral/safetensors.hpp"
#include "mistral/tokenizer.hpp"
#include "pass/layer.hpp"
#include "pass/options.hpp"

namespace nibble::mistral {

/// A run's inputs, opened and checked before the first hour is spent.
struct job {
  const pass_options& o;
  config model;
  checkpoint files;
  dtype stored;                      ///< dtype of what is not packed, and of scales
  host::matmul_precision precision;  ///< of what calibration multiplies on the CPU
  std::unique_ptr<tokenizer> tok;
  evaluation_text text;  ///< to evaluate on
  std::vector<window> windows;
  measured_on measured;
  std::optional<earlier_run> baseline;
  calibration_set samples;
  calibration_findings findings;  ///< about the samples
  index_t followed = 0;           ///< how many samples, the first ones, the original model is followed on
  std::optional<gpu> on;          ///< to run on; the CPU otherwise
  double read_seconds = 0;        ///< what reading the samples took

  explicit job(const pass_options& options);
  /// Of the samples.
  batch tokens() const;
  /// Of them, those on which the original model is followed beside the quantized one.
  index_t followed_tokens() const;
  /// Of them, those that `--loss block` judges scales by; 0 with another loss.
  index_t judged_tokens() const;
  /// How many numbers the tokens' activations are.
  size_t activations() const;
  /// As load_layer of forward.hpp, to be multiplied in the run's precision.
  layer_weights load_layer(index_t layer) const;
  layer_packing packings(index_t layer) const;
  std::vector<std::string> linears() const;
  void check_packings() const;
  void read_evaluated();
  void read_samples();
  void choose_followed();
  /// Tells the user what is odd, and no reason to stop.
  void warn() const;
  void warn_of_unmatched() const;
  void warn_of_split_sets() const;
  void check_tensors() const;
  void check_finite(index_t layer, const layer_weights& w) const;
};

}  // namespace nibble::mistral

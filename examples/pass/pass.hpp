// SPDX-License-Identifier: Apache-2.0
/// @file
/// The whole pass: a model in, a quantized checkpoint out, one layer in memory at a time.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "mistral/overlap.hpp"
#include "mistral/questions.hpp"
#include "mistral/results.hpp"
#include "pass/layer.hpp"
#include "pass/options.hpp"
#include "pass/phases.hpp"

namespace nibble::mistral {

struct phase_seconds {
  double read = 0, forward = 0, search = 0, write = 0, evaluate = 0;
  double quantization() const { return read + forward + search + write; }
};

struct pass_result {
  std::vector<nlohmann::ordered_json> layers;  ///< what to_json(layer_report) says of each
  phase_seconds seconds;
  std::uint64_t gpu_bytes = 0;  ///< device memory that this process took, high water; 0 on the CPU
  phase_times phases{};         ///< of the engine, since this process started
  std::string machine;          ///< that quantized: engine::name
  double rtn_seconds = 0;
  index_t calibration_sequences = 0, calibration_tokens = 0;
  std::set<std::string> precisions;  ///< in which calibration multiplied; of more than one after an interruption
  index_t followed_sequences = 0;    ///< of these, on which the original model was followed
  std::uint64_t original_bytes = 0, output_bytes = 0;  ///< of the weight files
  double bits_per_weight = 0;                          ///< of the quantized linears, parameters included
  std::vector<evaluation> evaluations;                 ///< original, round to nearest, this; empty without --evaluate
  measured_on measured;
  std::vector<question> questions;
  std::vector<answered_questions> answered;  ///< by the models of `evaluations`; empty without questions
  std::optional<earlier_run> baseline;
  overlap shared_with_calibration;  ///< of the evaluated text
  std::uint64_t peak_bytes = 0;     ///< resident set, high water, before evaluation
  std::string calibration_sha256;
  nlohmann::ordered_json source, serving;  ///< describe_source and serving_json
};

/// @throws error or usage_error; no output directory is left then, but after the first layer what a run with the same
/// options goes on from (resume.hpp).
pass_result run_pass(const pass_options& o);

/// What --dry-run prints: shapes, time, memory, disk. @throws as run_pass before its first layer.
std::string plan_of(const pass_options& o);

/// What the options say, in the words of the command line.
nlohmann::ordered_json options_json(const pass_options& o);

/// Everything that was found, for --json, --report and the model card.
nlohmann::ordered_json to_json(const pass_options& o, const pass_result& r);

/// What grew worse than --max-regression allows, against the original and the baseline; a sentence each.
std::vector<std::string> regressions(const pass_options& o, const pass_result& r);

/// The table at the end.
std::string table(const pass_options& o, const pass_result& r);

}  // namespace nibble::mistral

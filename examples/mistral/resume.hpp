// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a run that was interrupted goes on from: a file in its output's NAME.partial, which says what the run's weights
/// depend on (its key) and how far it came (its state), replaced as a whole whenever it came further.
#pragma once

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "interruption.hpp"
#include "output.hpp"
#include "safetensors.hpp"

namespace nibble::mistral {

/// What an interrupted run left can no longer be gone on from. Its sentence tells how to begin anew.
class damaged_run : public error {
 public:
  explicit damaged_run(const std::string& what) : error(what + "; give --restart to begin anew") {}
};

class resumable_run {
 public:
  /// Finds what an earlier run left in `out`. @param key everything the weights depend on, as an object; its objects are
  /// compared member by member. @param restart forgets what is there.
  /// @throws usage_error naming the first member that differs, when an earlier run had another key; damaged_run when
  /// what it left cannot be read.
  resumable_run(output_directory& out, nlohmann::ordered_json key, bool restart);
  resumable_run(const resumable_run&) = delete;
  resumable_run& operator=(const resumable_run&) = delete;

  /// What save() was last given, by this process or an earlier one; null when nothing was.
  const nlohmann::json& state() const { return state_; }
  /// Replaces the state in one step and on the disk; from now on `out` stays when the process fails or is interrupted.
  /// @param kept what that is, as in "3 of 32 layers are".
  void save(nlohmann::json state, const std::string& kept);
  /// Removes everything, since going on would be of no use.
  void forget();
  /// What is kept and how to go on, to end the message of a failure with; empty when nothing is.
  std::string advice() const;
  /// Removes the state from the output, once that has its name.
  void end();

 private:
  output_directory& out_;
  nlohmann::ordered_json key_;
  nlohmann::json state_;
  std::string advice_;
  interruption_scope interruption_;
};

/// A model's files as a key names them: config.json by its hash, weight files by size, time and the hash of their header,
/// tokenizer and template by theirs.
nlohmann::ordered_json identity_of(const std::filesystem::path& model, const checkpoint& files);

}  // namespace nibble::mistral

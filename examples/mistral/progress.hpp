// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a person sees while a pass runs: a bar on a terminal, plain lines elsewhere, nothing when told to be quiet.
#pragma once

#include <chrono>
#include <string>

#include "nibble/core.hpp"

namespace nibble::mistral {

class progress {
 public:
  /// @param what a verb, as in "quantizing". @param steps in all. @param unit what a step is.
  progress(std::string what, index_t steps, std::string unit = "layer");
  ~progress();
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

  /// `done` of the steps are behind; `note` says what is going on, such as a loss.
  void at(index_t done, const std::string& note = "");

 private:
  std::string what_, unit_;
  index_t steps_;
  bool terminal_, open_ = false;
  std::chrono::steady_clock::time_point start_;
};

/// "3.2 s", "4 min 10 s", "2 h 05 min"
std::string duration_text(double seconds);
/// "8.4 MB", "14.5 GB" (powers of 1000)
std::string size_text(double bytes);

}  // namespace nibble::mistral

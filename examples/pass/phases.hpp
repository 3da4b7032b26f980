// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where a pass spends its time.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

namespace nibble::mistral {

/// What an engine does: copies between host and device, layers run, statistics gathered, scales searched, ranges and codes found.
enum class phase { copy, forward, statistics, scales, ranges, codes };
inline constexpr std::array<phase, 6> phases = {phase::copy,   phase::forward, phase::statistics,
                                                phase::scales, phase::ranges,  phase::codes};
constexpr const char* to_string(phase p) {
  constexpr const char* names[] = {"copy", "forward", "statistics", "scales", "ranges", "codes"};
  return names[static_cast<std::size_t>(p)];
}

/// Seconds, by phase.
using phase_times = std::array<double, phases.size()>;

/// Adds the seconds it lives to a sum.
class stopwatch {
 public:
  explicit stopwatch(double& sum) : sum_(sum) {}
  stopwatch(phase_times& sums, phase p) : sum_(sums[static_cast<std::size_t>(p)]) {}
  stopwatch(const stopwatch&) = delete;
  stopwatch& operator=(const stopwatch&) = delete;
  ~stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace nibble::mistral

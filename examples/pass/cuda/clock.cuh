// SPDX-License-Identifier: Apache-2.0
/// @file
/// Seconds that the device spent in phases, by pairs of events in a stream, read when the host waits for it anyway. What runs in other
/// streams at the same time, such as copies of weights, is not seen.
#pragma once

#include <utility>
#include <vector>

#include "mistral/cuda/runtime.cuh"
#include "pass/phases.hpp"

namespace nibble::mistral::cuda {

class phase_clock {
 public:
  explicit phase_clock(cudaStream_t in) : in_(in) {}
  phase_clock(const phase_clock&) = delete;
  phase_clock& operator=(const phase_clock&) = delete;
  ~phase_clock() {
    for (const pair& each : pairs_) {
      cudaEventDestroy(each.begin);
      cudaEventDestroy(each.end);
    }
  }

  /// What the stream is given while this lives belongs to a phase, and to no span that lives around it.
  class span {
   public:
    span(phase_clock& clock, phase p)
        : clock_(clock), at_(clock.begin(p)), around_(std::exchange(clock.inmost_, at_)) {}
    span(const span&) = delete;
    span& operator=(const span&) = delete;
    ~span() {
      clock_.pairs_[static_cast<std::size_t>(at_)].around = around_;
      clock_.inmost_ = around_;
      cudaEventRecord(clock_.pairs_[static_cast<std::size_t>(at_)].end, clock_.in_);
    }

   private:
    phase_clock& clock_;
    int at_, around_;
  };

  /// Adds up the spans that are over. @pre the stream is through with them, and none lives.
  void collect() {
    for (std::size_t i = 0; i < used_; ++i) {
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, pairs_[i].begin, pairs_[i].end), "read the device's clock");
      const double seconds = 1e-3 * static_cast<double>(milliseconds);
      sums_[static_cast<std::size_t>(pairs_[i].of)] += seconds;
      if (const int around = pairs_[i].around; around >= 0)
        sums_[static_cast<std::size_t>(pairs_[static_cast<std::size_t>(around)].of)] -= seconds;
    }
    used_ = 0;
  }
  const phase_times& sums() const { return sums_; }

 private:
  struct pair {
    phase of;
    int around;  ///< the span that it lies in; -1: none
    cudaEvent_t begin, end;
  };
  int begin(phase p) {
    if (used_ == pairs_.size()) {
      pairs_.push_back({p, -1, nullptr, nullptr});
      check(cudaEventCreateWithFlags(&pairs_.back().begin, cudaEventDefault), "make an event");
      check(cudaEventCreateWithFlags(&pairs_.back().end, cudaEventDefault), "make an event");
    }
    pairs_[used_].of = p;
    check(cudaEventRecord(pairs_[used_].begin, in_), "record an event");
    return static_cast<int>(used_++);
  }

  cudaStream_t in_;
  phase_times sums_{};
  std::vector<pair> pairs_;
  std::size_t used_ = 0;
  int inmost_ = -1;  ///< the span that lives in all others
};

}  // namespace nibble::mistral::cuda

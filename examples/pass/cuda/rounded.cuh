// SPDX-License-Identifier: Apache-2.0
/// @file
/// What rounding a linear and its inputs together does to its outputs, on a GPU, over a sample of tokens: what pass/host_engine.cpp does
/// by outputs in float, by products of differences in bf16 (apart.cuh), a relative error of about 10⁻³ in a loss.
#pragma once

#include <vector>

#include "pass/cuda/linears.cuh"

namespace nibble::mistral::cuda {

/// What its memory is for.
struct rounding_limits {
  index_t elements = 0;  ///< weights of a linear at most
  index_t outputs = 0;   ///< its outputs at most
  index_t widest = 0;    ///< its inputs at most
  index_t groups = 0;    ///< its groups at most
  index_t tokens = 0;    ///< of a sample
  index_t scales = 0;    ///< that are tried for inputs

  index_t bytes() const;
};

class rounding_search {
 public:
  /// In the stream of `search`.
  rounding_search(const rounding_limits& limits, linear_search& search);

  /// What the calls below are about: a sample x (m, k) on the device, which lives as long, over s (k), rounded as `how` says.
  void use(matrix<const bf16> x, const float* s, const rounded_inputs& how);
  /// Output error of w (n, k) on the device when w·diag(s) is rounded in whole ranges.
  template <class T>
  double whole_loss(matrix<const T> w, const packing& how, dtype stored);
  /// Of w (n, k) on the host, whose columns are scaled by s already, with codes q. @param of_row (n) what rows were divided by, or null.
  /// @pre groups of q are columns as they lie.
  double loss(matrix<const float> w, const packing& how, dtype stored, const quantized_linear& q, const float* of_row);
  /// Σ_j importance_j·(x_j/s_j − rounded)² of each token of x (m, k) under each scale: (scales, m).
  std::vector<double> costs(matrix<const bf16> x, const float* s, const std::vector<double>& importance, code_type type,
                            const std::vector<float>& scales);

 private:
  template <class P, class Scheme>
  double judge(index_t n, const P* parameters, group_shape g, Scheme how, const float* of_row);
  template <class P, class Scheme>
  void add_errors(index_t n, const P* parameters, group_shape g, Scheme how, const float* of_row);

  linear_search& search_;
  matrix<const bf16> x_;
  bool rounds_ = false;
  device_memory<float> scaled_, s_, of_row_, y_, scales_;
  device_memory<bf16> rounded_, difference_, off_;
  device_memory<uint8_t> codes_;
  device_memory<params> parameters_;
  device_memory<double> sums_, importance_;
};

}  // namespace nibble::mistral::cuda

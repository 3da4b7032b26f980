// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes by GPTQ on a GPU (docs/gptq.md), step by step what pass/host_solver.hpp does: given the same statistics and scale, codes are
/// the host's but for targets within float's rounding of a tie, and what follows from such a code.
#pragma once

#include <optional>
#include <vector>

#include "nibble/host/hessian.hpp"
#include "nibble/kernels/gptq.cuh"
#include "pass/cuda/linears.cuh"
#include "pass/factoring.hpp"

namespace nibble::mistral::cuda {

class linear_solver {
 public:
  /// Works in the stream and the memory of `search`. @param widest inputs of a linear at most.
  linear_solver(const pass_options& o, index_t widest, linear_search& search);

  /// What follows is about another layer, or other statistics.
  void begin(index_t layer);
  /// Codes of w (n, k) on the host, whose columns are scaled by s (k) already, under statistics x, whose drift is of `followed` tokens, of
  /// what it reads as `input`; tells the user where the Hessian had to be mended. The loss is against the weights that were aimed at.
  chosen_codes choose_codes(layer_input input, const input_statistics& x, index_t followed, matrix<const float> w,
                            const packed& as, const std::vector<float>& s);
  /// What host_solver::judge() tells of rows w (m, k) on the host.
  double judge(layer_input input, const input_statistics& x, matrix<const float> w, const packed& as,
               const std::vector<float>& s);
  /// What became of the last input's Hessian.
  const factoring& found() const { return found_; }

  /// Device memory of its own. @param followed inputs' drift is.
  static index_t bytes(const pass_options& o, index_t widest, bool followed);
  /// Of `search` for a linear (n, k) of which so many rows are solved at a time.
  static index_t workspace_bytes(const pass_options& o, index_t rows, index_t k, const packed& as, bool followed);

 private:
  /// @param judged  for a scale that is only tried: the user is not told.
  void prepare(layer_input input, const input_statistics& x, const packed& as, const std::vector<float>& s,
               bool judged);
  const index_t* column() const { return reordered_ ? order_.column.data() : nullptr; }
  void climb(const std::vector<double>& importance);
  bool factorise(bool floored);
  void round(index_t first, matrix<float> w, matrix<params> p, matrix<uint8_t> codes, index_t followed,
             const packed& as);
  void solve(matrix<const float> w, matrix<params> p, matrix<uint8_t> codes, const packed& as);
  void refine(matrix<const float> w, matrix<params> p, matrix<uint8_t> codes, const packed& as);
  kernels::solving_order order() const;
  matrix<float> factor() const { return {factor_.data(), order_.size(), order_.size()}; }

  const pass_options& o_;
  linear_search& search_;
  index_t layer_ = 0;
  std::optional<layer_input> of_;  ///< whose Hessian is factorised
  index_t group_ = 0;
  std::vector<float> given_;  ///< the scale it was made with
  bool judged_ = false;       ///< which is only tried
  factoring found_;
  host::column_order order_;
  bool reordered_ = false;  ///< groups are formed in the order of solving, and so all that follows is in it
  const input_statistics* gathered_ = nullptr;  ///< of the input
  const input_statistics* used_ = nullptr;      ///< what is solved under: the same, or in its order
  std::optional<input_statistics> in_order_;    ///< of the input, where groups are formed in the order of solving
  std::vector<float> scale_;                    ///< of used_
  const float* scale_there_ = nullptr;          ///< the same on the device
  device_memory<float> factor_;                 ///< (k, k), of the widest linear
  device_memory<index_t> column_, parameters_;  ///< order_ on the device
  device_memory<kernels::factored> state_;
};

}  // namespace nibble::mistral::cuda

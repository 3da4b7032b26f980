// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes by GPTQ on the host (docs/gptq.md): what the linears that read one input share is made once.
#pragma once

#include <optional>
#include <vector>

#include "nibble/host/hessian.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/target.hpp"
#include "pass/engine.hpp"
#include "pass/options.hpp"

namespace nibble::mistral {

/// w's columns in the order of `column` (w.cols), row by row.
template <class T>
std::vector<T> columns_in_order(matrix<const T> w, const std::vector<index_t>& column) {
  std::vector<T> out(static_cast<size_t>(w.size()));
  host::parallel_for(w.rows, [&](index_t row) {
    T* const to = out.data() + row * w.cols;
    for (index_t i = 0; i < w.cols; ++i) to[i] = w(row, column[static_cast<size_t>(i)]);
  });
  return out;
}

class host_solver {
 public:
  /// @param precision  of the products that drift is made of.
  explicit host_solver(const pass_options& o, host::matmul_precision precision = host::matmul_precision::float32)
      : o_(o), precision_(precision) {}

  /// What follows is about another layer, or other statistics.
  void begin(index_t layer);
  /// Gathers how an input's activations drifted, and where down's output joins it, the residual stream.
  /// @pre o.drift_followed()
  host::drift& drift_of(layer_input input, const config& c);

  /// Codes and parameters of linear p's weights w, whose columns are scaled by s, under x; tells the user where the Hessian had to
  /// be mended. @returns tr(ΔW·G'·ΔWᵀ) against the weights that were aimed at, rows times of_row, unless that is null.
  double choose(projection p, matrix<const float> w, const std::vector<float>& s, const float* of_row,
                const host::second_moment& x, const packed& as, quantized_linear& q);
  /// tr(ΔW·G'·ΔWᵀ) + loss_elsewhere() of the codes that GPTQ alone finds for the rows w, scaled by s: as choose() but for drift and
  /// sweeps. Tells nobody.
  double judge(projection p, matrix<const float> w, const std::vector<float>& s, const host::second_moment& x,
               const packed& as);

 private:
  double solve(const host::hessian& h, matrix<const float> w, const std::vector<float>& s, const float* of_row,
               const host::second_moment& x, const packed& as, int sweeps, quantized_linear& q);
  /// The rest once codes are found, or rounded to nearest where the Hessian is not usable.
  double improve(matrix<const float> w, const std::vector<float>& s, const float* of_row, const host::second_moment& x,
                 const packed& as, bool solved, int sweeps, quantized_linear& q) const;
  /// The same for groups of the columns in the order of solving.
  double improve_in_order(matrix<const float> w, const std::vector<float>& s, const float* of_row,
                          const host::second_moment& x, const packed& as, bool solved, int sweeps, quantized_linear& q);
  const host::hessian& hessian_of(projection p, const std::vector<float>& s, const host::second_moment& x,
                                  index_t group, bool judged);

  const pass_options& o_;
  host::matmul_precision precision_;
  index_t layer_ = 0;
  std::array<std::optional<host::drift>, 4> drifts_;
  std::optional<host::hessian> hessian_;
  std::optional<host::moved_targets> targets_;    ///< of hessian_ and its input's drift
  std::optional<host::second_moment> reordered_;  ///< what hessian_ was made of, inputs in its order
  layer_input of_ = layer_input::attention;       ///< whose hessian_ is
  index_t group_ = 0;
  std::vector<float> scale_;  ///< of hessian_
  bool judged_ = false;       ///< hessian_ is of a scale that is tried
};

}  // namespace nibble::mistral

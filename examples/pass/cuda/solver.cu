// SPDX-License-Identifier: Apache-2.0
#include "pass/cuda/solver.cuh"

#include <algorithm>
#include <cmath>

#include "nibble/host/parallel.hpp"
#include "nibble/kernels/hessian.cuh"
#include "nibble/kernels/refit.cuh"
#include "nibble/kernels/target.cuh"
#include "pass/cuda/order.cuh"
#include "pass/judged_rows.hpp"

namespace nibble::mistral::cuda {
namespace {

gptq_ranges ranges_of(const pass_options& o) {
  if (o.order == activation_order::static_groups) return gptq_ranges::given;
  return o.clip == clip_search::none  ? gptq_ranges::minmax
         : o.clip == clip_search::mse ? gptq_ranges::mse
                                      : gptq_ranges::gram;
}

/// What a launcher that is asked for its workspace looks at: the shape.
template <class T>
matrix<T> shape_of(index_t rows, index_t cols) {
  alignas(16) static std::remove_const_t<T> nowhere[1] = {};
  return {nowhere, rows, cols};
}

/// Codes, and group_of, of groups that were formed in the order of `column`.
void put_back(const std::vector<index_t>& column, index_t group, quantized_linear& q) {
  const std::vector<uint8_t> sorted = q.codes;
  const matrix<const uint8_t> from(sorted.data(), q.n, q.k);
  const matrix<uint8_t> to = q.code_matrix();
  host::parallel_for(q.n, [&](index_t row) {
    for (index_t i = 0; i < q.k; ++i) to(row, column[static_cast<size_t>(i)]) = from(row, i);
  });
  q.group_of.resize(static_cast<size_t>(q.k));
  for (index_t i = 0; i < q.k; ++i)
    q.group_of[static_cast<size_t>(column[static_cast<size_t>(i)])] = static_cast<int32_t>(i / group);
}

}  // namespace

linear_solver::linear_solver(const pass_options& o, index_t widest, linear_search& search)
    : o_(o),
      search_(search),
      factor_(widest * widest, "a Hessian's factor"),
      column_(widest, "an order of inputs"),
      parameters_(widest, "an order of inputs"),
      state_(1, "a Hessian's factor") {}

index_t linear_solver::bytes(const pass_options& o, index_t widest, bool followed) {
  const bool reordered = o.order == activation_order::descending;
  return widest * (index_t{sizeof(float)} * widest + 2 * index_t{sizeof(index_t)}) +
         index_t{sizeof(kernels::factored)} + (reordered ? input_statistics::bytes(widest, followed) : 0);
}

index_t linear_solver::workspace_bytes(const pass_options& o, index_t rows, index_t k, const packed& as,
                                       bool followed) {
  const auto w = shape_of<const float>(rows, k), square = shape_of<const float>(k, k);
  const auto p = shape_of<params>(rows, per_group(as.group).across(k));
  const auto q = shape_of<uint8_t>(rows, k);
  const float one = 1;
  const kernels::factored state{};
  index_t codes = 0, refined = 0, moved = 0;
  check(kernels::gptq(w, square, {}, as.group, ranges_of(o), as.scheme, p, q, nullptr, nullptr, codes, nullptr),
        "tell what solving takes");
  if (o.sweeps > 0)
    check(kernels::sweep_and_refit(w, &one, square, as.group, as.scheme, o.sweeps, p, q, nullptr, refined, nullptr),
          "tell what refining takes");
  if (followed)
    check(kernels::moved_target(w, &one, square, 1, nullptr, square, &state, o.drift, o.shrinkage,
                                shape_of<float>(rows, k), nullptr, moved, nullptr),
          "tell what a target takes");
  return max(codes, max(refined, moved));
}

void linear_solver::begin(index_t layer) {
  layer_ = layer;
  of_.reset();
  search_.forget();
  in_order_.reset();
}

/// As the kernels take it; nothing where columns lie in the order of solving.
kernels::solving_order linear_solver::order() const {
  if (reordered_ || o_.order == activation_order::none) return {};
  return {column_.data(), parameters_.data(), order_.parameters.data()};
}

bool linear_solver::factorise(bool floored) {
  {
    const phase_clock::span span(search_.clock(), phase::codes);
    check(kernels::factor(matrix<const float>(used_->gram_matrix()), scale_there_, order().column, found_.damping,
                          floored, factor(), state_.data(), search_.products()),
          "factorise a Hessian");
  }
  kernels::factored state{};
  search_.copy_back(&state, state_.data(), 1);
  search_.wait();
  return state.failed == 0;
}

/// As host::hessian does: more damping, then a floor under the diagonal, then nothing.
void linear_solver::climb(const std::vector<double>& importance) {
  found_ = {};
  double sum = 0;
  for (const double each : importance) sum += each;
  if (!std::isfinite(sum)) return;
  for (found_.damping = static_cast<double>(o_.damping);; found_.damping = raised_damping(found_.damping)) {
    found_.usable = factorise(false);
    if (found_.usable || found_.damping >= 1.0) break;
  }
  if (found_.usable) return;
  found_.floored = true;
  found_.usable = factorise(true);
}

/// The factor of an input's Hessian, and the order of its columns, which linears that read the same share.
void linear_solver::prepare(layer_input input, const input_statistics& x, const packed& as, const std::vector<float>& s,
                            bool judged) {
  if (of_ == input && group_ == as.group && judged_ == judged && given_ == s) {
    search_.use(*used_);
    return;
  }
  of_ = input, group_ = as.group, given_ = s, judged_ = judged;
  std::vector<double> importance(s.size());
  for (size_t j = 0; j < s.size(); ++j)
    importance[j] = static_cast<double>(x.energy[j]) / (static_cast<double>(s[j]) * static_cast<double>(s[j]));
  order_ = host::order_columns(importance, as.group, o_.order);
  search_.copy_there(column_.data(), order_.column.data(), order_.size());
  search_.copy_there(parameters_.data(), order_.parameters.data(), order_.size());
  reordered_ = o_.order == activation_order::descending && per_group(as.group).across(x.k()) > 1;
  gathered_ = used_ = &x;
  scale_ = s;
  if (reordered_) {
    in_order_.reset();
    search_.forget();
    in_order_.emplace(x.k(), x.followed());
    check(reorder(x.gram_matrix(), column_.data(), in_order_->gram_matrix(), search_.in()), "order a Gram matrix");
    if (x.followed())
      check(reorder(x.drift_matrix(), column_.data(), in_order_->drift_matrix(), search_.in()), "order drift");
    for (size_t i = 0; i < s.size(); ++i) {
      const auto from = static_cast<size_t>(order_.column[i]);
      in_order_->energy.push_back(x.energy[from]);
      scale_[i] = s[from];
    }
    used_ = &*in_order_;
  }
  search_.use(*used_);
  scale_there_ = search_.use_scale(scale_.data());
  climb(importance);
  if (!judged) tell(o_, layer_, input, found_);
}

chosen_codes linear_solver::choose_codes(layer_input input, const input_statistics& x, index_t followed,
                                         matrix<const float> w, const packed& as, const std::vector<float>& s) {
  prepare(input, x, as, s, false);
  chosen_codes out = search_.choose_codes(
      w, as, scale_,
      [&](index_t first, matrix<float> part, matrix<params> p, matrix<uint8_t> codes) {
        round(first, part, p, codes, followed, as);
      },
      column());
  if (reordered_) put_back(order_.column, as.group, out.q);
  return out;
}

double linear_solver::judge(layer_input input, const input_statistics& x, matrix<const float> w, const packed& as,
                            const std::vector<float>& s) {
  prepare(input, x, as, s, true);
  chosen_codes tried = search_.choose_codes(
      w, as, scale_,
      [&](index_t, matrix<float> part, matrix<params> p, matrix<uint8_t> codes) { solve(part, p, codes, as); },
      column());
  if (reordered_) put_back(order_.column, as.group, tried.q);
  return tried.loss + loss_elsewhere(w, tried.q, as, s, x.energy);
}

/// Codes of some rows, which become what is aimed at.
void linear_solver::round(index_t first, matrix<float> w, matrix<params> p, matrix<uint8_t> codes, index_t followed,
                          const packed& as) {
  const matrix<const float> weights = w;
  if (found_.usable && used_->followed()) {
    const phase_clock::span span(search_.clock(), phase::codes);
    kernels::residual_drift residual;
    if (gathered_->residual_drift.size() > 0) {
      residual.sum = gathered_->residual_matrix().rows_at(first, w.rows);
      residual.column = o_.order == activation_order::none ? nullptr : column_.data();
      residual.share = o_.residual_drift;
    }
    search_.run(
        [&](void* memory, index_t& bytes) {
          return kernels::moved_target(weights, scale_there_, matrix<const float>(used_->drift_matrix()), followed,
                                       order().column, factor(), state_.data(), o_.drift, o_.shrinkage, residual, w,
                                       memory, bytes, search_.products());
        },
        "find what codes are for");
  }
  solve(weights, p, codes, as);
  if (o_.sweeps > 0) refine(weights, p, codes, as);
}

/// Codes, and parameters, of w as it is.
void linear_solver::solve(matrix<const float> w, matrix<params> p, matrix<uint8_t> codes, const packed& as) {
  const gptq_ranges ranges = ranges_of(o_);
  if (!found_.usable || ranges == gptq_ranges::given) search_.find_ranges(w, p, as, o_.clip);
  const phase_clock::span span(search_.clock(), phase::codes);
  if (found_.usable)
    search_.run(
        [&](void* memory, index_t& bytes) {
          return kernels::gptq(w, matrix<const float>(factor()), order(), as.group, ranges, as.scheme, p, codes,
                               nullptr, memory, bytes, search_.products());
        },
        "solve for codes");
  else
    search_.choose_nearest(w, p, as, codes);
}

void linear_solver::refine(matrix<const float> w, matrix<params> p, matrix<uint8_t> codes, const packed& as) {
  search_.run(
      [&](void* memory, index_t& bytes) {
        return kernels::sweep_and_refit(w, scale_there_, matrix<const float>(used_->gram_matrix()), as.group, as.scheme,
                                        o_.sweeps, p, codes, memory, bytes, search_.products());
      },
      "improve codes");
}

}  // namespace nibble::mistral::cuda

// SPDX-License-Identifier: Apache-2.0
#include "pass/host_solver.hpp"

#include "nibble/host/awq.hpp"
#include "nibble/host/gptq.hpp"
#include "nibble/host/refit.hpp"
#include "pass/factoring.hpp"
#include "pass/judged_rows.hpp"

namespace nibble::mistral {
namespace {

host::gptq_ranges ranges_of(const pass_options& o) {
  if (o.order == activation_order::static_groups) return host::gptq_ranges::given;
  return o.clip == clip_search::none  ? host::gptq_ranges::minmax
         : o.clip == clip_search::mse ? host::gptq_ranges::mse
                                      : host::gptq_ranges::gram;
}

/// Ranges of w as it is: columns of several groups take turns, and none begins.
void fit_beforehand(const pass_options& o, matrix<const float> w, const std::vector<float>& s,
                    const host::second_moment& x, const packed& as, matrix<params> p) {
  const group_shape g = per_group(as.group);
  if (o.clip == clip_search::none) return host::fit(w, p, g, as.scheme, minmax{});
  std::vector<float> importance(s.size());
  for (size_t j = 0; j < s.size(); ++j) importance[j] = x.diagonal()[j] / (s[j] * s[j]);
  host::fit(w, p, g, as.scheme, ends_search{}, importance.data());
  if (o.clip == clip_search::gram) host::clip_under_gram(w, s.data(), x, as.group, as.scheme, p);
}

}  // namespace

void host_solver::begin(index_t layer) {
  layer_ = layer;
  targets_.reset();
  drifts_ = {};
  hessian_.reset();
  reordered_.reset();
}

host::drift& host_solver::drift_of(layer_input input, const config& c) {
  auto& drift = drifts_[static_cast<size_t>(input)];
  if (!drift)
    drift.emplace(width(c, input), o_.residual_followed() && input == layer_input::down ? c.hidden : 0, precision_);
  return *drift;
}

const host::hessian& host_solver::hessian_of(projection p, const std::vector<float>& s, const host::second_moment& x,
                                             index_t group, bool judged) {
  const layer_input input = input_of(p);
  if (hessian_ && of_ == input && group_ == group && judged_ == judged && scale_ == s) return *hessian_;
  targets_.reset();
  hessian_.reset();
  reordered_.reset();
  hessian_.emplace(x, s.data(), group, o_.order, o_.damping);
  of_ = input, group_ = group, scale_ = s, judged_ = judged;
  if (!judged) tell(o_, layer_, input, {hessian_->usable(), hessian_->floored(), hessian_->damping()});
  return *hessian_;
}

double host_solver::choose(projection p, matrix<const float> w, const std::vector<float>& s, const float* of_row,
                           const host::second_moment& x, const packed& as, quantized_linear& q) {
  const host::hessian& h = hessian_of(p, s, x, as.group, false);
  const auto& drift = drifts_[static_cast<size_t>(input_of(p))];
  std::vector<float> moved;
  if (h.usable() && drift && drift->tokens() > 0) {
    moved.resize(static_cast<size_t>(w.size()));
    const matrix<float> target(moved.data(), w.rows, w.cols);
    if (!targets_)
      targets_.emplace(s.data(), *drift, h, host::drift_shares{o_.drift, o_.residual_drift}, x.shrinkage(),
                       !is_last(input_of(p)));
    targets_->of(w, target);
    if (is_last(input_of(p))) targets_.reset();  // there is no other linear: its room is for sweeps
    w = target;
  }
  return solve(h, w, s, of_row, x, as, o_.sweeps, q);
}

double host_solver::judge(projection p, matrix<const float> w, const std::vector<float>& s,
                          const host::second_moment& x, const packed& as) {
  quantized_linear q = quantized_linear::blank(w.rows, w.cols, as.group);
  const double loss = solve(hessian_of(p, s, x, as.group, true), w, s, nullptr, x, as, 0, q);
  return loss + loss_elsewhere(w, q, as, s, x.diagonal());
}

double host_solver::solve(const host::hessian& h, matrix<const float> w, const std::vector<float>& s,
                          const float* of_row, const host::second_moment& x, const packed& as, int sweeps,
                          quantized_linear& q) {
  const host::gptq_ranges ranges = ranges_of(o_);
  if (h.usable()) {
    if (ranges == host::gptq_ranges::given) fit_beforehand(o_, w, s, x, as, q.param_matrix());
    host::gptq(w, h, ranges, as.scheme, q.param_matrix(), q.code_matrix());
  }
  const bool in_order = o_.order == activation_order::descending && q.groups > 1;
  return in_order ? improve_in_order(w, s, of_row, x, as, h.usable(), sweeps, q)
                  : improve(w, s, of_row, x, as, h.usable(), sweeps, q);
}

double host_solver::improve(matrix<const float> w, const std::vector<float>& s, const float* of_row,
                            const host::second_moment& x, const packed& as, bool solved, int sweeps,
                            quantized_linear& q) const {
  if (!solved) {
    fit_beforehand(o_, w, s, x, as, q.param_matrix());
    host::quantize(w, matrix<const params>(q.param_matrix()), q.code_matrix(), per_group(as.group), as.scheme);
  }
  if (sweeps > 0)
    return host::sweep_and_refit(w, s.data(), x, as.group, as.scheme, sweeps, q.param_matrix(), q.code_matrix(),
                                 of_row);
  return host::codes_loss(w, matrix<const uint8_t>(q.code_matrix()), matrix<const params>(q.param_matrix()), s.data(),
                          x, as.group, as.scheme, of_row);
}

double host_solver::improve_in_order(matrix<const float> w, const std::vector<float>& s, const float* of_row,
                                     const host::second_moment& x, const packed& as, bool solved, int sweeps,
                                     quantized_linear& q) {
  const std::vector<index_t>& column = hessian_->order().column;
  if (!reordered_) reordered_.emplace(x.reordered(column));
  std::vector<float> weights = columns_in_order(w, column), scales;
  for (const index_t from : column) scales.push_back(s[static_cast<size_t>(from)]);
  quantized_linear sorted = quantized_linear::blank(q.n, q.k, as.group);
  sorted.parameters = q.parameters;
  sorted.codes = columns_in_order(matrix<const uint8_t>(q.code_matrix()), column);
  const double loss =
      improve({weights.data(), w.rows, w.cols}, scales, of_row, *reordered_, as, solved, sweeps, sorted);
  q.parameters = std::move(sorted.parameters);
  q.group_of.resize(static_cast<size_t>(q.k));
  for (index_t i = 0; i < q.k; ++i) {
    const index_t from = column[static_cast<size_t>(i)];
    q.group_of[static_cast<size_t>(from)] = static_cast<int32_t>(i / as.group);
    for (index_t row = 0; row < q.n; ++row) q.code_matrix()(row, from) = sorted.code_matrix()(row, i);
  }
  return loss;
}

}  // namespace nibble::mistral

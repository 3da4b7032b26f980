// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "mistral/rounding.hpp"
#include "pass/layer.hpp"
#include "pass/rounded_output.hpp"
#include "pass/smooth_scaling.hpp"

namespace nibble::mistral {
namespace {

class layer_smoother : public layer_quantizer {
 public:
  layer_smoother(const layer_task& t, layer_weights& w, const linear_sink& sink, layer_report& report)
      : layer_quantizer(t, w, sink, report) {}

 private:
  /// Looks at an input's linears as they are, and smooths the input where it can be.
  void search_input(layer_input input, const std::vector<projection>& linears) override {
    const std::vector<float>& largest = t_.on.sample(input).largest;
    report_.largest[static_cast<size_t>(input)] = *std::max_element(largest.begin(), largest.end());
    if (linears.empty()) return;
    const rounding_judge judge(t_, input, linears, w_);
    const std::vector<double> nearest = judge.losses(scales_.at(input), true);
    for (size_t i = 0; i < linears.size(); ++i)
      before_[static_cast<size_t>(linears[i])] = {count_weights(w_.at(t_.c, linears[i])), nearest[i]};
    const auto group = scale_group_of(t_.c, t_.how, input);
    if (!group || !t_.o.strength.any() || !is_smoothed(t_.o, *group)) return;
    smooth_result found = search_smooth_scale(t_, *group, w_, judge);
    auto& s = scales_.at(input) = std::move(found.scale);
    fold(t_.c, *group, s, t_.stored, w_);
    if (group->norm == nullptr) scales_.rows[static_cast<size_t>(group->before)] = s.data();
    report_.inputs.push_back({input, {}, found.identity_loss, found.loss, true, found.strength});
  }

  /// Codes of an input's linears, and how the input is rounded.
  void round_input(layer_input input) override {
    const std::vector<projection> linears = packed_readers(t_.how, input);
    std::vector<matrix<const float>> views;
    for (const projection p : linears) views.push_back(std::as_const(w_).at(t_.c, p));
    // Before any of them is rounded: linears of one input share its scale, for engines make one linear of them.
    std::vector<double> energies;
    if (scale_in_checkpoint(t_.how, linears)) energies = column_energies(views);
    for (const projection p : linears) rounded(p) = inputs_of(p, energies);
    for (const projection p : linears) report_.linears.push_back(round(p));
  }

  const packing& how(projection p) const { return *t_.how[static_cast<size_t>(p)]; }
  rounded_inputs& rounded(projection p) { return w_.rounded[static_cast<size_t>(p)]; }

  rounded_inputs inputs_of(projection p, const std::vector<double>& energies) const {
    rounded_inputs out = {how(p).inputs, how(p).type, 0};
    if (out.how != input_rounding::tensor) return out;
    const layer_input input = input_of(p);
    out.scale = input_scale_of(t_, input, scales_.at(input), energies, out.type);
    return out;
  }

  linear_report round(projection p) {
    const auto& s = scales_.at(input_of(p));
    const auto w = w_.at(t_.c, p);
    chosen_codes chosen = codes_of(p, s);
    chosen.q.input_scale = rounded(p).scale;
    const float* const rows = scales_.rows[static_cast<size_t>(p)];
    const double loss = t_.on.rounded_loss(w_, p, how(p), chosen.q, s, rounded(p), rows);
    restore(chosen.q, how(p), t_.stored, w);
    sink_(p, chosen.q);
    const original& before = before_[static_cast<size_t>(p)];
    const auto after = count_weights(w, before.weights.unit, rows, s.data());
    return {p, before.rtn_loss, loss, before.weights, after, chosen.range, rounded(p).scale};
  }

  /// Integers as the options have them chosen, floats in the whole range of each group.
  chosen_codes codes_of(projection p, const std::vector<float>& s) {
    if (how(p).type == code_type::integer) return t_.on.choose_codes(w_, p, t_.as(p), s, nullptr);
    chosen_codes out;
    out.q = round_weights(std::as_const(w_).at(t_.c, p), how(p), t_.stored);
    return out;
  }
};

}  // namespace

std::unique_ptr<layer_quantizer> smoother_of(const layer_task& t, layer_weights& w, const linear_sink& sink,
                                             layer_report& report) {
  return std::make_unique<layer_smoother>(t, w, sink, report);
}

}  // namespace nibble::mistral

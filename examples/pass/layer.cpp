// SPDX-License-Identifier: Apache-2.0
#include "pass/layer.hpp"

#include <algorithm>

#include "mistral/rounding.hpp"
#include "nibble/host/fit.hpp"
#include "nibble/host/quantize.hpp"
#include "pass/awq_scaling.hpp"

namespace nibble::mistral {
namespace {

class plain_quantizer : public layer_quantizer {
 public:
  plain_quantizer(const layer_task& t, layer_weights& w, const linear_sink& sink, layer_report& report)
      : layer_quantizer(t, w, sink, report) {}

 private:
  void search_input(layer_input input, const std::vector<projection>& linears) override {
    if (linears.empty()) return;
    t_.on.hold(w_, linears);
    for (const projection p : linears)
      before_[static_cast<size_t>(p)] = {count_weights(w_.at(t_.c, p)), t_.on.unscaled_loss(p, t_.as(p))};
    if (!t_.o.scales_searched()) return;
    if (const auto group = scale_group_of(t_.c, t_.how, input)) scale(*group);
  }

  void scale(const scale_group& group) {
    host::awq_result found = search_awq_scale(t_, group, w_);
    auto& s = scales_.at(group.input) = std::move(found.scale);
    fold(t_.c, group, s, t_.stored, w_);
    if (group.norm == nullptr) scales_.rows[static_cast<size_t>(group.before)] = s.data();
    report_.inputs.push_back({group.input, found.ratio, found.identity_loss, found.loss, false, {}});
  }

  void round_input(layer_input input) override {
    for (const projection p : packed_readers(t_.how, input)) round(p);
  }

  void round(projection p) {
    const packed as = t_.as(p);
    const auto& s = scales_.at(input_of(p));
    const float* const of_row = scales_.rows[static_cast<size_t>(p)];
    const original& before = before_[static_cast<size_t>(p)];
    chosen_codes chosen = t_.on.choose_codes(w_, p, as, s, of_row);
    avoid_zero_point_zero(*t_.how[static_cast<size_t>(p)], as.scheme, w_.at(t_.c, p), chosen.q);
    dequantize(chosen.q, as.group, as.scheme, w_.at(t_.c, p));
    sink_(p, chosen.q);
    const auto after = count_weights(w_.at(t_.c, p), before.weights.unit, of_row, s.data());
    report_.linears.push_back({p, before.rtn_loss, chosen.loss, before.weights, after, chosen.range, 0});
  }
};

}  // namespace

void layer_quantizer::search(const std::vector<layer_input>& inputs) {
  // A scale changes the rows of what comes before it, in the same half.
  for (const layer_input input : scaling_order) {
    if (std::find(inputs.begin(), inputs.end(), input) == inputs.end()) continue;
    report_.channels[static_cast<size_t>(input)] = rank_channels(t_.on.absolute_mean(input));
    search_input(input, packed_readers(t_.how, input));
  }
}

bool layer_quantizer::divides_rows(layer_part half) const {
  for (const projection p : projections)
    if (belongs(input_of(p), half) && scales_.rows[static_cast<size_t>(p)] != nullptr) return true;
  return false;
}

void layer_quantizer::with_rows_undivided(layer_part half, const std::function<void()>& f) {
  std::array<std::vector<float>, 7> divided;
  for (const projection p : projections) {
    const float* const s = scales_.rows[static_cast<size_t>(p)];
    if (!belongs(input_of(p), half) || s == nullptr) continue;
    divided[static_cast<size_t>(p)] = w_.w[static_cast<size_t>(p)];
    const matrix<float> linear = w_.at(t_.c, p);
    host::parallel_for(linear.rows, [&](index_t row) {
      for (index_t col = 0; col < linear.cols; ++col) linear(row, col) *= s[row];
    });
  }
  f();
  for (size_t p = 0; p < divided.size(); ++p)
    if (!divided[p].empty()) w_.w[p] = std::move(divided[p]);
}

std::unique_ptr<layer_quantizer> quantizer_of(const layer_task& t, layer_weights& w, const linear_sink& sink,
                                              layer_report& report) {
  if (t.o.smoothed()) return smoother_of(t, w, sink, report);
  return std::make_unique<plain_quantizer>(t, w, sink, report);
}

void round_layer(const config& c, const layer_packing& how, dtype stored, layer_weights& w, const linear_sink& sink,
                 const std::array<float, 4>& largest) {
  for (const projection p : projections) {
    if (!is_packed(how, p)) continue;
    const packing& as = *how[static_cast<size_t>(p)];
    const auto linear = w.at(c, p);
    quantized_linear q = round_weights(matrix<const float>(linear), as, stored);
    if (!is_coded(as)) avoid_zero_point_zero(as, scheme_of(as, stored), linear, q);
    if (as.inputs == input_rounding::tensor)
      q.input_scale = input_scale(largest[static_cast<size_t>(input_of(p))], as.type, stored);
    unround(q, as, stored, linear);
    w.rounded[static_cast<size_t>(p)] = {as.inputs, as.type, q.input_scale};
    if (sink) sink(p, q);
  }
}

layer_report round_reported(const config& c, const layer_packing& how, dtype stored, layer_weights& w,
                            const linear_sink& sink) {
  layer_report report;
  for (const projection p : projections)
    if (is_packed(how, p)) report.linears.push_back({p, 0, 0, count_weights(w.at(c, p)), {}, {}, 0});
  round_layer(c, how, stored, w, sink);
  for (linear_report& linear : report.linears) linear.after = count_weights(w.at(c, linear.which), linear.before.unit);
  return report;
}

}  // namespace nibble::mistral

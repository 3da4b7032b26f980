// SPDX-License-Identifier: Apache-2.0
#include "pass/layer.hpp"

#include "mistral/rounding.hpp"
#include "nibble/host/fit.hpp"
#include "nibble/host/quantize.hpp"
#include "pass/awq_scaling.hpp"
#include "pass/layer_state.hpp"

namespace nibble::mistral {
namespace {

/// Notes linears that share an input, which the engine then holds.
void note(const layer_task& t, const std::vector<projection>& linears, layer_weights& w, originals& noted) {
  t.on.hold(w, linears);
  for (const projection p : linears)
    noted[static_cast<size_t>(p)] = {count_weights(w.at(t.c, p)), t.on.unscaled_loss(p, t.as(p))};
}

input_report scale(const layer_task& t, const scale_group& group, layer_weights& w, folded_scales& scales) {
  host::awq_result found = search_awq_scale(t, group, w);
  auto& s = scales.at(group.input) = std::move(found.scale);
  fold(t.c, group, s, t.stored, w);
  if (group.norm == nullptr) scales.rows[static_cast<size_t>(group.before)] = s.data();
  return {group.input, found.ratio, found.identity_loss, found.loss, false, {}};
}

linear_report round(const layer_task& t, projection p, const original& before, const folded_scales& scales,
                    layer_weights& w, const linear_sink& sink) {
  const packed as = t.as(p);
  const auto& s = scales.at(input_of(p));
  const float* const of_row = scales.rows[static_cast<size_t>(p)];
  chosen_codes chosen = t.on.choose_codes(w, p, as, s, of_row);
  avoid_zero_point_zero(*t.how[static_cast<size_t>(p)], as.scheme, w.at(t.c, p), chosen.q);
  dequantize(chosen.q, as.group, as.scheme, w.at(t.c, p));
  sink(p, chosen.q);
  const auto after = count_weights(w.at(t.c, p), before.weights.unit, of_row, s.data());
  return {p, before.rtn_loss, chosen.loss, before.weights, after, chosen.range, 0};
}

}  // namespace

void quantize_layer(const layer_task& t, layer_part part, layer_weights& w, const linear_sink& sink,
                    layer_report& report) {
  if (t.o.smoothed()) return smooth_layer(t, part, w, sink, report);
  originals before;
  folded_scales scales(t.c);
  // A scale changes the rows of what comes before it, in the same half: all are folded before any code is chosen.
  for (const layer_input input : scaling_order) {
    if (!belongs(input, part)) continue;
    report.channels[static_cast<size_t>(input)] = rank_channels(t.on.absolute_mean(input));
    const std::vector<projection> linears = packed_readers(t.how, input);
    if (linears.empty()) continue;
    note(t, linears, w, before);
    if (!t.o.scales_searched()) continue;
    if (const auto group = scale_group_of(t.c, t.how, input)) report.inputs.push_back(scale(t, *group, w, scales));
  }
  for (const layer_input input : layer_inputs) {
    if (!belongs(input, part)) continue;
    for (const projection p : packed_readers(t.how, input))
      report.linears.push_back(round(t, p, before[static_cast<size_t>(p)], scales, w, sink));
  }
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

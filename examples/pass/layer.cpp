// SPDX-License-Identifier: Apache-2.0
#include "pass/layer.hpp"

#include <algorithm>

#include "nibble/host/awq.hpp"
#include "nibble/host/fit.hpp"
#include "nibble/host/quantize.hpp"

namespace nibble::mistral {

namespace {

/// Linears that read one input, and what 1/s can be folded into: a norm, or the rows of another linear.
struct scale_group {
  layer_input input;
  std::vector<projection> linears;
  std::vector<float> layer_weights::*norm;  ///< null where `before` is folded into
  projection before;
};

std::vector<scale_group> scale_groups(const config& c) {
  std::vector<scale_group> groups = {
      {layer_input::attention, {projection::q, projection::k, projection::v}, &layer_weights::input_norm, {}},
      {layer_input::mlp, {projection::gate, projection::up}, &layer_weights::post_norm, {}},
      {layer_input::down, {projection::down}, nullptr, projection::up}};
  if (c.kv_heads == c.heads)  // with grouped queries, several of o's inputs come from one of v's rows
    groups.push_back({layer_input::o, {projection::o}, nullptr, projection::v});
  return groups;
}

/// The groups that can be scaled: all of a group's linears are packed, and what 1/s would be folded into, if not a norm.
std::vector<scale_group> scaled_groups(const config& c, const layer_packing& how) {
  std::vector<scale_group> groups = scale_groups(c);
  const auto stays = [&](const scale_group& group) {
    const bool all =
        std::all_of(group.linears.begin(), group.linears.end(), [&](projection p) { return is_packed(how, p); });
    return !all || (group.norm == nullptr && !is_packed(how, group.before));
  };
  groups.erase(std::remove_if(groups.begin(), groups.end(), stays), groups.end());
  return groups;
}

/// The best scale of a group whose linears `on` holds.
host::awq_result search(const config& c, const pass_options& o, const layer_packing& how, dtype stored, engine& on,
                        const layer_weights& w, const scale_group& group) {
  std::vector<double> sums(static_cast<size_t>(inputs(c, group.linears.front())), 0.0);
  index_t rows = 0;
  for (const projection p : group.linears) {
    on.add_importance(p, packed(how, p, stored), sums.data());
    rows += outputs(c, p);
  }
  const bool block = o.loss == search_loss::block && group.norm != nullptr;
  const auto loss = [&](const float* s) {
    if (block) return on.block_loss(group.input, how, s);
    double sum = 0;
    for (const projection p : group.linears) sum += on.scaled_loss(p, packed(how, p, stored), s);
    return sum;
  };
  const auto fold = [&](std::vector<float>& s) {
    if (group.norm == nullptr) return;
    const auto& norm = w.*group.norm;
    for (size_t j = 0; j < s.size(); ++j) s[j] = norm[j] == 0.0f ? 1.0f : awq_folded(norm[j], s[j], stored);
  };
  return host::search_scale(on.absolute_mean(group.input), host::mean_importance(sums, rows), o.duo, o.grid, loss,
                            fold);
}

/// W·diag(s), and 1/s into what comes before.
void apply(const config& c, const scale_group& group, const std::vector<float>& s, dtype stored, layer_weights& w) {
  for (const projection p : group.linears) {
    const auto linear = w.at(c, p);
    host::parallel_for(linear.rows, [&](index_t row) {
      for (index_t col = 0; col < linear.cols; ++col) linear(row, col) *= s[static_cast<size_t>(col)];
    });
  }
  if (group.norm != nullptr) {
    auto& norm = w.*group.norm;
    for (size_t j = 0; j < s.size(); ++j)
      if (s[j] != 1.0f) norm[j] = round_to(stored, norm[j] / s[j]);
    return;
  }
  const auto before = w.at(c, group.before);
  for (index_t row = 0; row < before.rows; ++row)
    for (index_t col = 0; col < before.cols; ++col) before(row, col) /= s[static_cast<size_t>(row)];
}

}  // namespace

layer_report quantize_layer(const config& c, const pass_options& o, const layer_packing& how, dtype stored, engine& on,
                            layer_weights& w, const linear_sink& sink) {
  layer_report report;
  for (const layer_input input : layer_inputs)
    report.channels[static_cast<size_t>(input)] = rank_channels(on.absolute_mean(input));
  std::array<weight_histogram, 7> before;
  std::array<double, 7> rtn{};
  std::array<bool, 7> scaled{};
  const auto measure = [&](const std::vector<projection>& linears) {  // as they are: before any scale reaches them
    on.hold(w, linears);
    for (const projection p : linears) {
      before[static_cast<size_t>(p)] = count_weights(w.at(c, p));
      rtn[static_cast<size_t>(p)] = on.unscaled_loss(p, packed(how, p, stored));
    }
  };
  const std::vector<scale_group> groups = scaled_groups(c, how);
  for (const scale_group& group : groups)
    for (const projection p : group.linears) scaled[static_cast<size_t>(p)] = true;
  for (const projection p : projections)
    if (is_packed(how, p) && !scaled[static_cast<size_t>(p)]) measure({p});

  std::array<std::vector<float>, 4> scales;
  std::array<const float*, 7> rows{};  // by what the rows of a linear were divided
  for (const layer_input input : layer_inputs)
    scales[static_cast<size_t>(input)].assign(on.absolute_mean(input).size(), 1.0f);
  // A scale changes the rows of what comes before it, so all scales are applied before any code is chosen.
  for (const scale_group& group : groups) {
    measure(group.linears);
    auto found = search(c, o, how, stored, on, w, group);
    auto& scale = scales[static_cast<size_t>(group.input)] = std::move(found.scale);
    report.inputs.push_back({group.input, found.ratio, found.identity_loss, found.loss, true});
    apply(c, group, scale, stored, w);
    if (group.norm == nullptr) rows[static_cast<size_t>(group.before)] = scale.data();
  }
  for (const projection p : projections) {
    if (!is_packed(how, p)) continue;
    const packed as(how, p, stored);
    const auto at = static_cast<size_t>(p);
    const auto& s = scales[static_cast<size_t>(input_of(p))];
    const chosen_codes chosen = on.choose_codes(w, p, as, s);
    linear_report linear = {p, rtn[at], chosen.loss, before[at], {}, chosen.range};
    host::dequantize(chosen.q.code_matrix(), chosen.q.param_matrix(), w.at(c, p), per_group(as.group), as.scheme);
    linear.after = count_weights(w.at(c, p), linear.before.unit, rows[at], s.data());
    report.linears.push_back(linear);
    sink(p, chosen.q);
  }
  return report;
}

void round_layer(const config& c, const layer_packing& how, dtype stored, layer_weights& w, const linear_sink& sink) {
  for (const projection p : projections) {
    if (!is_packed(how, p)) continue;
    const packed as(how, p, stored);
    const group_shape g = per_group(as.group);
    const auto linear = w.at(c, p);
    quantized_linear q = quantized_linear::blank(linear.rows, linear.cols, as.group);
    host::fit(matrix<const float>(linear), q.param_matrix(), g, as.scheme, minmax{});
    host::quantize(matrix<const float>(linear), matrix<const params>(q.param_matrix()), q.code_matrix(), g, as.scheme);
    host::dequantize(matrix<const uint8_t>(q.code_matrix()), matrix<const params>(q.param_matrix()), linear, g,
                     as.scheme);
    if (sink) sink(p, q);
  }
}

layer_report round_reported(const config& c, const layer_packing& how, dtype stored, layer_weights& w,
                            const linear_sink& sink) {
  layer_report report;
  for (const projection p : projections)
    if (is_packed(how, p)) report.linears.push_back({p, 0, 0, count_weights(w.at(c, p)), {}, {}});
  round_layer(c, how, stored, w, sink);
  for (linear_report& linear : report.linears) linear.after = count_weights(w.at(c, linear.which), linear.before.unit);
  return report;
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "layer.hpp"

#include <algorithm>

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

template <class F>
void with_range_method(clip_search clip, F&& f) {
  if (clip == clip_search::none)
    f(minmax{});
  else
    f(ends_search{});
}

/// A projection's packing, and its scheme.
struct packed {
  index_t group;
  any_scheme scheme;

  packed(const layer_packing& how, projection p, dtype stored)
      : group(how[static_cast<size_t>(p)]->group), scheme(scheme_of(*how[static_cast<size_t>(p)], stored)) {}
};

bool is_packed(const layer_packing& how, projection p) {
  return how[static_cast<size_t>(p)].has_value();
}

struct searcher {
  const config& c;
  const awq_options& o;
  const layer_packing& how;
  dtype stored;
  const layer_statistics& statistics;
  layer_weights& w;

  const host::second_moment& moment(layer_input input) const { return statistics.inputs[static_cast<size_t>(input)]; }

  double gram_loss(const scale_group& group, const float* s) const {
    double loss = 0;
    with_range_method(o.clip, [&](auto method) {
      for (const projection p : group.linears) {
        const packed as(how, p, stored);
        loss += host::scaled_loss(matrix<const float>(w.at(c, p)), s, moment(group.input), as.group, as.scheme, method);
      }
    });
    return loss;
  }

  /// The attention's or the MLP's output on one sequence of its sample.
  void run_block(bool attention, size_t sequence, std::vector<float>& out) const {
    const auto& sample = attention ? statistics.attention_sample : statistics.mlp_sample;
    const index_t first = statistics.sample_starts[sequence];
    const index_t tokens = statistics.sample_starts[sequence + 1] - first;
    out.resize(static_cast<size_t>(tokens * c.hidden));
    const matrix<const float> x(sample.data() + first * c.hidden, tokens, c.hidden);
    const matrix<float> y(out.data(), tokens, c.hidden);
    if (attention)
      attention_block(c, w, x, {0, tokens}, y);
    else
      mlp_block(c, w, x, y);
  }

  /// Mean squared error of the attention's or the MLP's output with the group's linears rounded. A sequence at a time:
  /// the blocks' scratch for all of them would outgrow the layer.
  double block_loss(const scale_group& group, const float* s) const {
    const bool attention = group.input == layer_input::attention;
    const size_t sequences = statistics.sample_starts.size() - 1;
    auto& wanted = attention ? wanted_attention : wanted_mlp;
    if (wanted.empty()) {
      wanted.resize(sequences);
      for (size_t i = 0; i < sequences; ++i) run_block(attention, i, wanted[i]);
    }
    std::vector<std::vector<float>> originals;
    for (const projection p : group.linears) {
      const packed as(how, p, stored);
      originals.push_back(w.w[static_cast<size_t>(p)]);
      with_range_method(o.clip, [&](auto method) {
        host::round_scaled(w.at(c, p), s, moment(group.input), as.group, as.scheme, method);
      });
    }
    std::vector<float> got;
    double sum = 0, count = 0;
    for (size_t sequence = 0; sequence < sequences; ++sequence) {
      run_block(attention, sequence, got);
      for (size_t i = 0; i < got.size(); ++i) {
        const double difference = static_cast<double>(got[i]) - static_cast<double>(wanted[sequence][i]);
        sum += difference * difference;
      }
      count += static_cast<double>(got.size());
    }
    for (size_t i = 0; i < originals.size(); ++i) w.w[static_cast<size_t>(group.linears[i])] = std::move(originals[i]);
    return sum / std::max(count, 1.0);
  }

  input_report search(const scale_group& group, std::vector<float>& scale) const {
    std::vector<matrix<const float>> linears;
    std::vector<index_t> group_sizes;
    for (const projection p : group.linears) {
      linears.push_back(w.at(c, p));
      group_sizes.push_back(packed(how, p, stored).group);
    }
    const bool block = o.loss == search_loss::block && group.norm != nullptr;
    const auto loss = [&](const float* s) { return block ? block_loss(group, s) : gram_loss(group, s); };
    const auto fold = [&](std::vector<float>& s) {
      if (group.norm == nullptr) return;
      const auto& norm = w.*group.norm;
      for (size_t j = 0; j < s.size(); ++j) s[j] = norm[j] == 0.0f ? 1.0f : awq_folded(norm[j], s[j], stored);
    };
    auto found = host::search_scale(linears, moment(group.input), group_sizes, o.duo, o.grid, loss, fold);
    scale = std::move(found.scale);
    return {group.input, found.ratio, found.identity_loss, found.loss, true};
  }

  mutable std::vector<std::vector<float>> wanted_attention,
      wanted_mlp;  ///< outputs of the blocks as they are, by sequence
};

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

quantized_linear blank(matrix<const float> w, index_t group_size) {
  quantized_linear q;
  q.n = w.rows;
  q.k = w.cols;
  q.groups = per_group(group_size).across(w.cols);
  q.codes.resize(static_cast<size_t>(w.size()));
  q.parameters.resize(static_cast<size_t>(q.n * q.groups));
  return q;
}

/// Parameters of the min-max ranges; no codes.
quantized_linear whole_ranges(matrix<const float> w, const packed& as) {
  quantized_linear q;
  q.n = w.rows;
  q.groups = per_group(as.group).across(w.cols);
  q.parameters.resize(static_cast<size_t>(q.n * q.groups));
  host::fit(w, q.param_matrix(), per_group(as.group), as.scheme, minmax{});
  return q;
}

quantized_linear choose_codes(const awq_options& o, const packed& as, matrix<const float> w,
                              const std::vector<float>& s, const host::second_moment& x) {
  const index_t group = as.group;
  const any_scheme scheme = as.scheme;
  const group_shape g = per_group(group);
  quantized_linear q = blank(w, group);
  std::vector<float> importance(s.size());
  for (size_t j = 0; j < s.size(); ++j) importance[j] = x.diagonal()[j] / (s[j] * s[j]);
  with_range_method(o.clip, [&](auto range) { host::fit(w, q.param_matrix(), g, scheme, range, importance.data()); });
  if (o.clip == clip_search::gram) host::clip_under_gram(w, s.data(), x, group, scheme, q.param_matrix());
  host::quantize(w, matrix<const params>(q.param_matrix()), q.code_matrix(), g, scheme);
  if (o.sweeps > 0)
    host::sweep(w, s.data(), x, matrix<const params>(q.param_matrix()), group, scheme, o.sweeps, q.code_matrix());
  return q;
}

}  // namespace

layer_report quantize_layer(const config& c, const awq_options& o, const layer_packing& how, dtype stored,
                            const layer_statistics& statistics, layer_weights& w, const linear_sink& sink) {
  const auto all_packed = [&](const scale_group& group) {
    const bool linears =
        std::all_of(group.linears.begin(), group.linears.end(), [&](projection p) { return is_packed(how, p); });
    return linears && (group.norm != nullptr || is_packed(how, group.before));
  };
  layer_report report;
  const searcher search{c, o, how, stored, statistics, w, {}, {}};
  for (const layer_input input : layer_inputs)
    report.channels[static_cast<size_t>(input)] = rank_channels(search.moment(input).absolute_mean());
  std::array<double, 7> rtn{};
  std::array<weight_histogram, 7> before;
  for (const projection p : projections) {
    if (!is_packed(how, p)) continue;
    const packed as(how, p, stored);
    before[static_cast<size_t>(p)] = count_weights(w.at(c, p));
    const std::vector<float> ones(static_cast<size_t>(inputs(c, p)), 1.0f);
    rtn[static_cast<size_t>(p)] = host::scaled_loss(matrix<const float>(w.at(c, p)), ones.data(),
                                                    search.moment(input_of(p)), as.group, as.scheme, minmax{});
  }
  std::array<std::vector<float>, 4> scales;
  std::array<const float*, 7> rows{};  // by what the rows of a linear were divided
  for (const layer_input input : layer_inputs)
    scales[static_cast<size_t>(input)].assign(static_cast<size_t>(search.moment(input).inputs()), 1.0f);
  // A scale changes the rows of what comes before it, so all scales are applied before any code is chosen.
  for (const scale_group& group : scale_groups(c)) {
    if (!all_packed(group)) continue;
    auto& scale = scales[static_cast<size_t>(group.input)];
    report.inputs.push_back(search.search(group, scale));
    apply(c, group, scale, stored, w);
    if (group.norm == nullptr) rows[static_cast<size_t>(group.before)] = scale.data();
  }
  for (const projection p : projections) {
    if (!is_packed(how, p)) continue;
    const packed as(how, p, stored);
    const auto& s = scales[static_cast<size_t>(input_of(p))];
    const auto& x = search.moment(input_of(p));
    const quantized_linear q = choose_codes(o, as, w.at(c, p), s, x);
    const matrix<const float> scaled = w.at(c, p);
    linear_report linear = {
        p,
        rtn[static_cast<size_t>(p)],
        host::codes_loss(scaled, q.code_matrix(), q.param_matrix(), s.data(), x, as.group, as.scheme),
        before[static_cast<size_t>(p)],
        {},
        compare_ranges(q.param_matrix(), whole_ranges(scaled, as).param_matrix())};
    host::dequantize(q.code_matrix(), q.param_matrix(), w.at(c, p), per_group(as.group), as.scheme);
    linear.after = count_weights(w.at(c, p), linear.before.unit, rows[static_cast<size_t>(p)], s.data());
    report.linears.push_back(linear);
    sink(p, q);
  }
  return report;
}

void round_layer(const config& c, const layer_packing& how, dtype stored, layer_weights& w, const linear_sink& sink) {
  for (const projection p : projections) {
    if (!is_packed(how, p)) continue;
    const packed as(how, p, stored);
    const group_shape g = per_group(as.group);
    const auto linear = w.at(c, p);
    quantized_linear q = blank(linear, as.group);
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

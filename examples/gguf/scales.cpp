// SPDX-License-Identifier: Apache-2.0
#include "gguf/scales.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "mistral/gguf_model.hpp"
#include "nibble/host/awq.hpp"
#include "pass/layer.hpp"

namespace nibble::mistral {
namespace {

/// Inputs in an order in which the rows of v and up are divided before v and up are judged.
constexpr std::array<layer_input, 4> search_order = {layer_input::o, layer_input::attention, layer_input::down,
                                                     layer_input::mlp};

std::string tensor_name(index_t layer, projection p) {
  return gguf_name(projection_name(layer, p) + ".weight");
}

const planned_tensor& planned(const gguf_plan& plan, const std::string& name) {
  return *std::find_if(plan.tensors.begin(), plan.tensors.end(),
                       [&](const planned_tensor& t) { return t.info.name == name; });
}

bool is_blocks(const planned_tensor& t) {
  return is_block_type(info_of(t.info.type).name);
}

/// Columns that share a scale in the type's blocks, by which a weight counts as large or small.
index_t columns_a_scale(gguf_type type) {
  return type == gguf_type::q2_k || type == gguf_type::q3_k || type == gguf_type::q6_k ? 16 : 32;
}

/// Importance of columns that are multiplied by s: what is wrong in them is divided by s again.
std::vector<float> scaled_importance(const std::vector<float>& importance, const float* s) {
  std::vector<float> scaled(importance.size());
  for (size_t j = 0; j < scaled.size(); ++j) scaled[j] = importance[j] / (s[j] * s[j]);
  return scaled;
}

/// A linear that is judged.
struct judged {
  const planned_tensor& as;
  matrix<const float> w;              ///< (n, k)
  const std::vector<float>* divided;  ///< (n) what rows are divided by, null: 1
};

/// tr(ΔW·G·ΔWᵀ) when columns are multiplied by s, rows divided, both rounded in blocks of the plan, and undone again.
double scaled_loss(const judged& linear, block_search_kind search, const host::second_moment& x, const float* s) {
  const planned_tensor& as = linear.as;
  const matrix<const float> w = linear.w;
  const std::vector<float>* const divided = linear.divided;
  if (!is_blocks(as)) return 0;
  const gguf_type_info& type = info_of(as.info.type);
  const index_t blocks = w.cols / static_cast<index_t>(type.elements);
  const std::vector<float> importance = as.importance ? scaled_importance(*as.importance, s) : std::vector<float>();
  return host::detail::sum_over_row_tiles(w.rows, [&](index_t first, index_t rows) {
    auto& with = host::detail::buffers();
    const auto scaled = host::detail::tile_buffers::view(with.scaled, rows, w.cols);
    const auto difference = host::detail::tile_buffers::view(with.difference, rows, w.cols);
    const auto row_scale = [&](index_t row) { return divided ? (*divided)[static_cast<size_t>(first + row)] : 1.0f; };
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) scaled(row, col) = w(first + row, col) * s[col] / row_scale(row);
    std::vector<std::byte> bytes(static_cast<size_t>(rows * blocks) * type.bytes);
    encode_rows(as.info.type, scaled, importance.empty() ? nullptr : importance.data(), bytes.data(), search);
    decode_blocks(as.info.type, bytes.data(), rows * blocks, difference.data);
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < w.cols; ++col)
        difference(row, col) = difference(row, col) * row_scale(row) / s[col] - w(first + row, col);
    return host::detail::tile_loss(difference, x, with.product);
  });
}

/// What a norm's weights become is stored in F32: s is made what that amounts to.
void settle_for_norm(const std::vector<float>& norm, std::vector<float>& s) {
  for (size_t j = 0; j < s.size(); ++j) s[j] = norm[j] == 0.0f ? 1.0f : awq_folded(norm[j], s[j], dtype::f32);
}

/// Heads that share a value get one scale, the geometric mean of theirs.
void settle_for_values(const config& c, std::vector<float>& s) {
  const index_t shared = c.heads / c.kv_heads;
  if (shared == 1) return;
  for (index_t row = 0; row < c.kv_width(); ++row) {
    const index_t first = row / c.head_dim * shared * c.head_dim + row % c.head_dim;
    double sum = 0;
    for (index_t i = 0; i < shared; ++i)
      sum += std::log(static_cast<double>(s[static_cast<size_t>(first + i * c.head_dim)]));
    const auto mean = static_cast<float>(std::exp(sum / static_cast<double>(shared)));
    for (index_t i = 0; i < shared; ++i) s[static_cast<size_t>(first + i * c.head_dim)] = mean;
  }
}

void settle(const config& c, const layer_weights& w, layer_input input, std::vector<float>& s) {
  if (input == layer_input::attention) settle_for_norm(w.input_norm, s);
  if (input == layer_input::mlp) settle_for_norm(w.post_norm, s);
  if (input == layer_input::o) settle_for_values(c, s);
}

/// What the rows of v are divided by when o's columns are multiplied by s.
std::vector<float> of_value_rows(const config& c, const std::vector<float>& s) {
  const index_t shared = c.heads / c.kv_heads;
  std::vector<float> rows;
  for (index_t row = 0; row < c.kv_width(); ++row)
    rows.push_back(s[static_cast<size_t>(row / c.head_dim * shared * c.head_dim + row % c.head_dim)]);
  return rows;
}

}  // namespace

void folded_gguf_scales::search(index_t layer, const config& c, const gguf_plan& plan, const layer_weights& w,
                                const layer_statistics& seen) {
  for (const layer_input input : search_order) {
    const host::second_moment& x = seen.correlations[static_cast<size_t>(input)];
    std::vector<judged> linears;
    std::vector<double> sums(static_cast<size_t>(width(c, input)), 0.0);
    index_t rows = 0;
    for (const projection p : projections) {
      if (input_of(p) != input) continue;
      const planned_tensor& as = planned(plan, tensor_name(layer, p));
      const auto divided = rows_.find(as.info.name);
      linears.push_back({as, w.at(c, p), divided == rows_.end() ? nullptr : &divided->second});
      host::weight_importance(w.at(c, p), columns_a_scale(as.info.type), sums.data());
      rows += outputs(c, p);
    }
    if (std::none_of(linears.begin(), linears.end(), [](const judged& each) { return is_blocks(each.as); })) continue;
    const auto loss = [&](const float* s) {
      double sum = 0;
      for (const judged& each : linears) sum += scaled_loss(each, plan.search, x, s);
      return sum;
    };
    host::awq_result best =
        host::search_scale(x.absolute_mean(), host::mean_importance(sums, rows), duo_scaling::both, scale_candidates,
                           loss, [&](std::vector<float>& s) { settle(c, w, input, s); });
    found_.push_back({layer, input, best.ratio, best.identity_loss, best.loss});
    if (!best.ratio.identity()) keep(layer, c, plan, input, std::move(best.scale));
  }
}

void folded_gguf_scales::keep(index_t layer, const config& c, const gguf_plan& plan, layer_input input,
                              std::vector<float> s) {
  for (const projection p : projections) {
    if (input_of(p) != input) continue;
    const planned_tensor& t = planned(plan, tensor_name(layer, p));
    columns_[t.info.name] = s;
    if (t.importance) importance_[t.info.name] = scaled_importance(*t.importance, s.data());
  }
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  if (input == layer_input::attention) rows_[prefix + "attn_norm.weight"] = std::move(s);
  if (input == layer_input::mlp) rows_[prefix + "ffn_norm.weight"] = std::move(s);
  if (input == layer_input::o) rows_[tensor_name(layer, projection::v)] = of_value_rows(c, s);
  if (input == layer_input::down) rows_[tensor_name(layer, projection::up)] = std::move(s);
}

void folded_gguf_scales::apply(gguf_plan& plan) const {
  const auto vector_of = [](const auto& map, const std::string& name) {
    const auto found = map.find(name);
    return found == map.end() ? nullptr : &found->second;
  };
  for (planned_tensor& t : plan.tensors) {
    t.times = vector_of(columns_, t.info.name);
    t.divided = vector_of(rows_, t.info.name);
    if (const auto* scaled = vector_of(importance_, t.info.name); t.importance && scaled) t.importance = scaled;
  }
}

bool any_blocks(const gguf_plan& plan) {
  return std::any_of(plan.tensors.begin(), plan.tensors.end(), [](const planned_tensor& t) {
    return !t.linear.empty() && t.linear != "lm_head" && is_blocks(t);
  });
}

nlohmann::ordered_json to_json(const std::vector<found_scale>& found) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const found_scale& each : found)
    all.push_back({{"layer", each.layer},
                   {"input", name_of(each.input)},
                   {"exponent", each.ratio.exponent},
                   {"duo", each.ratio.duo},
                   {"identity_loss", each.identity_loss},
                   {"loss", each.loss}});
  return all;
}

std::string scales_line(const std::vector<found_scale>& found) {
  double before = 0, after = 0;
  size_t scaled = 0;
  for (const found_scale& each : found) {
    before += each.identity_loss, after += each.loss;
    scaled += each.ratio.identity() ? 0 : 1;
  }
  char line[160];
  std::snprintf(line, sizeof(line), "AWQ scales %zu of %zu inputs; %.1f %% of the output error is left\n", scaled,
                found.size(), before > 0 ? 100 * after / before : 100.0);
  return line;
}

}  // namespace nibble::mistral

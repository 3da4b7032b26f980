// SPDX-License-Identifier: Apache-2.0
#include "pass/scaling.hpp"

#include "nibble/awq.hpp"
#include "nibble/host/parallel.hpp"

namespace nibble::mistral {
namespace {

std::vector<projection> readers(layer_input input) {
  std::vector<projection> out;
  for (const projection p : projections)
    if (input_of(p) == input) out.push_back(p);
  return out;
}

}  // namespace

std::vector<projection> packed_readers(const layer_packing& how, layer_input input) {
  std::vector<projection> out;
  for (const projection p : readers(input))
    if (is_packed(how, p)) out.push_back(p);
  return out;
}

std::optional<scale_group> scale_group_of(const config& c, const layer_packing& how, layer_input input) {
  scale_group group = {input, readers(input), nullptr, {}};
  if (packed_readers(how, input).size() != group.linears.size()) return std::nullopt;
  switch (input) {
    case layer_input::attention:
      group.norm = &layer_weights::input_norm;
      return group;
    case layer_input::mlp:
      group.norm = &layer_weights::post_norm;
      return group;
    case layer_input::o:
      group.before = projection::v;
      if (c.kv_heads != c.heads) return std::nullopt;  // several of o's inputs come from one of v's rows
      break;
    case layer_input::down:
      group.before = projection::up;
      break;
  }
  if (!is_packed(how, group.before)) return std::nullopt;
  return group;
}

void round_to_fold(const scale_group& group, const layer_weights& w, dtype stored, std::vector<float>& s) {
  if (group.norm == nullptr) return;
  const auto& norm = w.*group.norm;
  for (size_t j = 0; j < s.size(); ++j) s[j] = norm[j] == 0.0f ? 1.0f : awq_folded(norm[j], s[j], stored);
}

void fold(const config& c, const scale_group& group, const std::vector<float>& s, dtype stored, layer_weights& w) {
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

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "gguf/mix.hpp"

#include <algorithm>

namespace nibble::mistral {
namespace {

using t = gguf_type;
using l = layer_range;
using c = mix_condition;

constexpr std::string_view value = "attn_v", down = "ffn_down", output = "attn_output";

/// "blk.N.ROLE.weight" taken apart; layer −1 for another name.
struct placed {
  index_t layer = -1;
  std::string_view role;
};

placed place_of(std::string_view name) {
  constexpr std::string_view prefix = "blk.", suffix = ".weight";
  if (name.size() < prefix.size() + suffix.size() || name.substr(0, prefix.size()) != prefix ||
      name.substr(name.size() - suffix.size()) != suffix)
    return {};
  name = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
  const size_t dot = name.find('.');
  if (dot == 0 || dot == name.npos || dot > 9 || name.substr(0, dot).find_first_not_of("0123456789") != name.npos)
    return {};
  return {std::stoll(std::string(name.substr(0, dot))), name.substr(dot + 1)};
}

bool holds(mix_condition condition, const mixed_model& model) {
  switch (condition) {
    case c::always:
      return true;
    case c::shared_heads:
      return model.shared >= 4;
    case c::with_importance:
      return model.importance;
    case c::without_importance:
      break;
  }
  return !model.importance;
}

bool covers(layer_range range, index_t i, index_t n) {
  switch (range) {
    case l::all:
      return true;
    case l::first_2:
      return i < 2;
    case l::first_4:
      return i < 4;
    case l::first_eighth:
      return i < n / 8;
    case l::first_sixteenth:
      return i < n / 16;
    case l::alternate:
      break;
  }
  return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

}  // namespace

const std::vector<mix>& mixes() {
  static const std::vector<mix_rule> alternating = {{value, l::alternate, c::always, t::q6_k},
                                                    {down, l::alternate, c::always, t::q6_k}};
  static const std::vector<mix_rule> of_tables = {{value, l::all, c::shared_heads, t::q5_k},
                                                  {down, l::first_eighth, c::without_importance, t::q5_k}};
  static const std::vector<mix> all = {
      {"Q2_K",
       10,
       t::q2_k,
       t::q6_k,
       {{value, l::all, c::shared_heads, t::q4_k},
        {value, l::all, c::always, t::q3_k},
        {down, l::all, c::always, t::q3_k},
        {output, l::all, c::always, t::q3_k}}},
      {"Q3_K_S", 11, t::q3_k, t::q6_k, {}},
      {"Q3_K_M",
       12,
       t::q3_k,
       t::q6_k,
       {{value, l::first_2, c::always, t::q5_k},
        {value, l::all, c::always, t::q4_k},
        {down, l::first_sixteenth, c::always, t::q5_k},
        {down, l::all, c::always, t::q4_k},
        {output, l::all, c::always, t::q4_k}}},
      {"Q3_K_L",
       13,
       t::q3_k,
       t::q6_k,
       {{value, l::all, c::always, t::q5_k}, {down, l::all, c::always, t::q5_k}, {output, l::all, c::always, t::q5_k}}},
      {"IQ4_XS", 30, t::iq4_xs, t::q6_k, of_tables},
      {"IQ4_NL", 25, t::iq4_nl, t::q6_k, of_tables},
      {"Q4_0", 2, t::q4_0, t::q6_k, {{down, l::first_eighth, c::with_importance, t::q4_1}}},
      {"Q4_1", 3, t::q4_1, t::q6_k, {}},
      {"Q4_K_S",
       14,
       t::q4_k,
       t::q6_k,
       {{value, l::first_4, c::always, t::q5_k}, {down, l::first_eighth, c::always, t::q5_k}}},
      {"Q4_K_M", 15, t::q4_k, t::q6_k, alternating},
      {"Q5_0", 8, t::q5_0, t::q6_k, {{down, l::first_eighth, c::with_importance, t::q5_1}}},
      {"Q5_1", 9, t::q5_1, t::q6_k, {}},
      {"Q5_K_S", 16, t::q5_k, t::q6_k, {}},
      {"Q5_K_M", 17, t::q5_k, t::q6_k, alternating},
      {"Q6_K", 18, t::q6_k, t::q6_k, {}},
      {"Q8_0", 7, t::q8_0, t::q8_0, {}},
      {"F16", 1, t::f16, t::f16, {}},
      {"BF16", 32, t::bf16, t::bf16, {}},
      {"F32", 0, t::f32, t::f32, {}}};
  return all;
}

const mix* find_mix(std::string_view name) {
  for (const mix& m : mixes())
    if (m.name == name) return &m;
  return nullptr;
}

gguf_type mixed_type(const mix& m, const mixed_model& model, std::string_view tensor) {
  constexpr std::string_view norm = "_norm.weight";
  if (tensor.size() > norm.size() && tensor.substr(tensor.size() - norm.size()) == norm) return t::f32;
  if (tensor == "output.weight" || (model.tied && tensor == "token_embd.weight")) return m.head;
  const placed at = place_of(tensor);
  if (at.layer < 0) return m.base;
  const auto rule = std::find_if(m.rules.begin(), m.rules.end(), [&](const mix_rule& r) {
    return r.role == at.role && holds(r.condition, model) && covers(r.layers, at.layer, model.layers);
  });
  const t type = rule == m.rules.end() ? m.base : rule->type;
  // What llama.cpp takes for a model of 70 billion weights.
  const bool large = model.layers == 80 && model.shared > 1 && at.role == value;
  return large && (type == t::q3_k || type == t::q4_k) ? t::q5_k : type;
}

gguf_type fitting_type(gguf_type type, index_t columns) {
  const auto fits = [&](gguf_type one) { return columns % static_cast<index_t>(info_of(one).elements) == 0; };
  if (fits(type)) return type;
  gguf_type smaller = type;
  if (type == t::q2_k || type == t::q3_k || type == t::iq4_xs) smaller = t::iq4_nl;
  if (type == t::q4_k) smaller = t::q5_0;
  if (type == t::q5_k) smaller = t::q5_1;
  if (type == t::q6_k) smaller = t::q8_0;
  return fits(smaller) ? smaller : t::f16;
}

}  // namespace nibble::mistral

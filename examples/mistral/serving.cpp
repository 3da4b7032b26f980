// SPDX-License-Identifier: Apache-2.0
#include "serving.hpp"

namespace nibble::mistral {

namespace {

std::string count(index_t n, const char* what) {
  return std::to_string(n) + " " + what;
}

/// "at 4 ranks", or nothing for one.
std::string over(index_t ranks) {
  return ranks == 1 ? "" : " over " + std::to_string(ranks) + " ranks";
}

std::string refused_heads(const config& c, index_t ranks) {
  if (c.heads % ranks != 0) return "the " + count(c.heads, "attention heads do not split evenly") + over(ranks);
  const bool split = c.kv_heads >= ranks ? c.kv_heads % ranks == 0 : ranks % c.kv_heads == 0;
  return split ? "" : "the " + count(c.kv_heads, "key-value heads neither split nor repeat evenly") + over(ranks);
}

bool whole_words(index_t values, int bits) {
  return values * bits % 32 == 0;
}

/// A linear whose outputs are split: zero points, and AutoAWQ's codes, are packed along them.
std::string refused_outputs(const std::string& name, index_t outputs, const packing& how, index_t ranks) {
  if (is_coded(how)) {
    if (how.rows <= 1 || outputs % how.rows == 0) return "";
    return name + " has " + count(outputs, "outputs") + (ranks > 1 ? " a rank" : "") + over(ranks) +
           ", not a whole number of blocks of " + std::to_string(how.rows);
  }
  const bool packed = how.format != packed_format::compressed_tensors || !how.symmetric;  // GPTQ always has zero points
  if (!packed || whole_words(outputs, how.bits)) return "";
  return name + " has " + count(outputs, "outputs") + (ranks > 1 ? " a rank" : "") + over(ranks) +
         ", whose zero points of " + std::to_string(how.bits) + " bits are not a whole number of words";
}

/// A linear whose inputs are split: a rank needs whole groups, and codes that begin with a word.
std::string refused_inputs(const std::string& name, index_t all, const packing& how, index_t ranks) {
  const index_t inputs = all / ranks;
  const std::string begin =
      name + " has " + count(inputs, "inputs") + (ranks > 1 ? " a rank" : "") + over(ranks) + ", ";
  if (how.group > 0 && inputs % how.group != 0)
    return begin + "not a whole number of groups of " + std::to_string(how.group);
  if (is_coded(how)) return "";
  const bool awq = is_autoawq(how.format);
  if (awq && how.group < 0 && ranks > 1) return begin + "but its only group holds all " + std::to_string(all);
  if (!awq && ranks > 1 && !whole_words(inputs, how.bits))
    return begin + "whose codes of " + std::to_string(how.bits) + " bits are not a whole number of words";
  return "";
}

std::string refused_linear(const config& c, projection p, const std::string& name, const packing& how, index_t ranks) {
  switch (p) {
    case projection::o:
    case projection::down:
      return refused_inputs(name, inputs(c, p), how, ranks);
    case projection::k:
    case projection::v:
      return refused_outputs(name, outputs(c, p) / std::min(ranks, c.kv_heads), how, ranks);
    default:
      return refused_outputs(name, outputs(c, p) / ranks, how, ranks);
  }
}

/// vLLM fuses q, k and v, and gate and up, which then share a scheme.
std::string refused_fused(const packing_lookup& of, index_t layer) {
  for (const auto& [first, others] : {std::pair(projection::q, std::vector{projection::k, projection::v}),
                                      std::pair(projection::gate, std::vector{projection::up})})
    for (const projection other : others)
      if (!(of(projection_name(layer, first)) == of(projection_name(layer, other))))
        return projection_name(layer, first) + " and " + to_string(other) +
               " are packed differently, and vLLM makes one linear of them";
  return "";
}

const char* version_of(packed_format format) {
  return format == packed_format::awq_gemv ? "gemv" : format == packed_format::awq_gemv_fast ? "gemv_fast" : "marlin";
}

/// vLLM 0.32 takes GPTQ checkpoints of 4 and 8 bits, symmetric, groups of neighbours.
std::string refused_gptq(const packing& how) {
  if (how.reordered) return "vLLM no longer takes groups in the order of activations (desc_act)";
  if (!how.symmetric)
    return "vLLM takes GPTQ checkpoints without zero points only; as compressed-tensors it takes both";
  if (how.bits != 4 && how.bits != 8)
    return "vLLM takes GPTQ checkpoints of 4 and 8 bits, and this has " + count(how.bits, "bits");
  return "";
}

std::string refused_at_all(const config& c, const packing_lookup& of) {
  for (index_t layer = 0; layer < c.layers; ++layer) {
    for (const projection p : projections) {
      const auto how = of(projection_name(layer, p));
      if (how && is_autoawq(how->format) && how->format != packed_format::awq_gemm)
        return std::string("vLLM reads AutoAWQ's gemm version, and this is ") + version_of(how->format) +
               "; AutoAWQ loads it on a GPU";
      if (how && is_gptq(how->format))
        if (std::string why = refused_gptq(*how); !why.empty()) return why;
    }
    if (std::string why = refused_fused(of, layer); !why.empty()) return why;
  }
  return refused_over_ranks(c, of, 1);
}

/// vLLM's common kernels take 4 bits, and 8 bits without zero points, in groups of 32, 64, 128 or all inputs.
std::string rare_kernel(const config& c, const packing_lookup& of) {
  for (index_t layer = 0; layer < c.layers; ++layer)
    for (const projection p : projections) {
      const std::string name = projection_name(layer, p);
      const auto how = of(name);
      if (!how || is_coded(*how)) continue;
      if (how->bits != 4 && (how->bits != 8 || !how->symmetric))
        return name + " has " + count(how->bits, how->symmetric ? "bits" : "bits and zero points") +
               ", for which vLLM has kernels on NVIDIA GPUs only, in the package Humming";
      if (how->group != -1 && how->group != 32 && how->group != 64 && how->group != 128)
        return name + " has groups of " + std::to_string(how->group) +
               ", for which vLLM has kernels on GPUs only in the package Humming";
    }
  return "";
}

}  // namespace

std::string refused_over_ranks(const config& c, const packing_lookup& of, index_t ranks) {
  if (std::string why = refused_heads(c, ranks); !why.empty()) return why;
  if (c.intermediate % ranks != 0)
    return "the " + count(c.intermediate, "channels of the MLP do not split evenly") + over(ranks);
  for (index_t layer = 0; layer < c.layers; ++layer)
    for (const projection p : projections) {
      const std::string name = projection_name(layer, p);
      const auto how = of(name);
      if (!how) continue;
      if (std::string why = refused_linear(c, p, name, *how, ranks); !why.empty()) return why;
    }
  return "";
}

nlohmann::ordered_json serving_json(const config& c, const packing_lookup& of) {
  const auto told = [](nlohmann::ordered_json out, const char* key, const std::string& why) {
    out[key] = why.empty();
    if (!why.empty()) out["why"] = why;
    return out;
  };
  const std::string never = refused_at_all(c, of);
  nlohmann::ordered_json out = {{"vllm", told(nlohmann::ordered_json::object(), "loads", never)},
                                {"tensor_parallel", nlohmann::ordered_json::array()}};
  if (const std::string needs = rare_kernel(c, of); never.empty() && !needs.empty()) out["vllm"]["needs"] = needs;
  for (const index_t ranks : {2, 4, 8})
    out["tensor_parallel"].push_back(
        told({{"ranks", ranks}}, "works", never.empty() ? refused_over_ranks(c, of, ranks) : never));
  return out;
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "gguf/report.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "mistral/error.hpp"
#include "mistral/progress.hpp"

namespace nibble::mistral {
namespace {

struct type_sum {
  index_t tensors = 0, weights = 0;
  std::uint64_t bytes = 0;
};

template <class... Values>
std::string line(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

std::uint64_t bytes_of(const planned_tensor& t) {
  return t.info.bytes("");
}

index_t carried_tensors(const gguf_plan& plan) {
  return std::count_if(plan.tensors.begin(), plan.tensors.end(), [](const planned_tensor& t) { return t.carried; });
}

}  // namespace

std::string plan_table(const gguf_plan& plan, const mix& m, bool each) {
  std::string out;
  std::map<gguf_type, type_sum> sums;
  for (const planned_tensor& t : plan.tensors) {
    type_sum& sum = sums[t.info.type];
    ++sum.tensors, sum.weights += t.rows * t.columns, sum.bytes += bytes_of(t);
    if (each)
      out += line("%-32s %-7s %7lld x %-7lld %s\n", t.info.name.c_str(), info_of(t.info.type).name,
                  static_cast<long long>(t.rows), static_cast<long long>(t.columns),
                  t.carried                 ? "codes carried over"
                  : t.info.type == t.wanted ? ""
                                            : info_of(t.wanted).name);
  }
  if (each) out += "\n";
  out += line("%-7s tensors      weights         size\n", m.name);
  for (const auto& [type, sum] : sums)
    out += line("%-7s %7lld %12lld %12s\n", info_of(type).name, static_cast<long long>(sum.tensors),
                static_cast<long long>(sum.weights), size_text(static_cast<double>(sum.bytes)).c_str());
  if (const index_t carried = carried_tensors(plan); carried > 0)
    out += line("carried %7lld tensors hold the codes of the checkpoint\n", static_cast<long long>(carried));
  return out + line("all     %7zu %12lld %12s  %.2f bits per weight\n", plan.tensors.size(),
                    static_cast<long long>(plan.weights), size_text(static_cast<double>(plan.data_bytes)).c_str(),
                    plan.bits_per_weight());
}

void add_plan(nlohmann::ordered_json& out, const gguf_plan& plan, const mix& m) {
  out["type"] = m.name;
  out["search"] = plan.search == block_search_kind::exhaustive ? "exhaustive" : "ggml";
  out["weights"] = plan.weights;
  out["bits_per_weight"] = plan.bits_per_weight();
  out["carried"] = carried_tensors(plan);
  out["notes"] = plan.notes;
  out["tensors"] = nlohmann::ordered_json::array();
  for (const planned_tensor& t : plan.tensors) {
    nlohmann::ordered_json shape = nlohmann::ordered_json::array();
    for (auto extent = t.info.dims.rbegin(); extent != t.info.dims.rend(); ++extent) shape.push_back(*extent);
    out["tensors"].push_back({{"name", t.info.name},
                              {"type", info_of(t.info.type).name},
                              {"shape", std::move(shape)},
                              {"bytes", bytes_of(t)},
                              {"carried", t.carried}});
  }
}

std::string choice_table(const target_choice& of) {
  std::string out = line("%-32s %-7s %12s %8s  %s\n", "tensor", "type", "size", "error", "divergence");
  for (size_t i = 0; i < of.table.size(); ++i) {
    const tensor_options& row = of.table[i];
    const type_option& one = row.options[of.chosen.options[i]];
    out += line("%-32s %-7s %12s %7.3f%%  %.6f\n", row.name.c_str(), info_of(one.type).name,
                size_text(static_cast<double>(one.bytes)).c_str(), 100 * one.error, row.weight * one.error);
  }
  return out + "\n";
}

std::string choice_line(const target_choice& of) {
  return line("expected KL divergence from the model %.5f nats a token; chosen in %s\n", of.chosen.error,
              duration_text(of.seconds).c_str());
}

void add_choice(nlohmann::ordered_json& out, const target_choice& of, const size_target& target) {
  if (target.bytes > 0)
    out["target"]["bytes"] = target.bytes;
  else
    out["target"]["bits_per_weight"] = target.bits_per_weight;
  out["target"]["divergence"] = of.chosen.error;
  out["target"]["seconds"] = of.seconds;
  size_t row = 0;
  for (auto& t : out["tensors"]) {
    if (row == of.table.size() || t["name"] != of.table[row].name) continue;
    const tensor_options& from = of.table[row];
    t["error"] = from.options[of.chosen.options[row]].error;
    t["divergence"] = from.weight * from.options[of.chosen.options[row]].error;
    ++row;
  }
}

void check_room(const std::filesystem::path& output, const gguf_plan& plan) {
  std::error_code failed;
  const auto parent = std::filesystem::absolute(output).parent_path();
  const auto room = std::filesystem::space(parent, failed);
  if (failed || room.available >= plan.data_bytes) return;
  throw error("the disk of " + parent.string() + " has " + size_text(static_cast<double>(room.available)) +
              " free, and the file takes " + size_text(static_cast<double>(plan.data_bytes)) +
              "; free some, or choose another --output");
}

}  // namespace nibble::mistral

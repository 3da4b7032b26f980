// SPDX-License-Identifier: Apache-2.0
#include "gguf/measure.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "gguf/sensitivity.hpp"
#include "mistral/error.hpp"
#include "mistral/forward.hpp"
#include "mistral/gguf_writer.hpp"
#include "nibble/host/parallel.hpp"

namespace nibble::mistral {
namespace {

constexpr index_t fewest_rows = 16;
/// Rows that a thread measures at a time.
constexpr index_t measured_at_once = 4;

std::uint64_t padded_bytes(const gguf_tensor_info& t) {
  return (t.bytes("") + gguf_alignment - 1) / gguf_alignment * gguf_alignment;
}

/// Row i of `count` that are spread evenly over `rows`.
index_t spread_row(index_t i, index_t count, index_t rows) {
  return (2 * i + 1) * rows / (2 * count);
}

/// Sums over some rows: their own squares, the squared errors of noise and of each type, all weighed.
struct error_sums {
  double own = 0, noise = 0;
  std::vector<double> types;

  void add(const error_sums& other) {
    own += other.own, noise += other.noise;
    for (size_t i = 0; i < types.size(); ++i) types[i] += other.types[i];
  }
};

double weighed(const float* a, const float* b, const float* importance, index_t count) {
  double sum = 0;
  for (index_t i = 0; i < count; ++i) {
    const double off = static_cast<double>(a[i]) - (b ? static_cast<double>(b[i]) : 0.0);
    sum += (importance ? static_cast<double>(importance[i]) : 1.0) * off * off;
  }
  return sum;
}

class tensor_measurement {
 public:
  tensor_measurement(const gguf_plan& plan, const planned_tensor& t, const checkpoint& files, const config& c)
      : plan_(plan), t_(t), files_(files), types_(candidate_types(t.columns)) {
    if (!t.linear.empty()) linear_ = open_linear(files, c, t.linear, t.rows, t.columns);
  }

  /// @param divergence  what noise makes.
  tensor_options run(double divergence) const {
    const error_sums sums = measure();
    if (linear_) linear_->release();
    if (t_.direct) files_.release(*t_.direct);
    tensor_options out;
    out.name = t_.info.name;
    out.weight = sums.noise > 0 ? divergence * sums.own / sums.noise : 0.0;
    for (size_t i = 0; i < types_.size(); ++i) {
      gguf_tensor_info as = t_.info;
      as.type = types_[i];
      out.options.push_back({types_[i], padded_bytes(as), sums.own > 0 ? sums.types[i] / sums.own : 0.0});
    }
    return out;
  }

 private:
  error_sums measure() const {
    const index_t count = min(t_.rows, max(fewest_rows, weights_measured / t_.columns));
    std::vector<error_sums> parts(static_cast<size_t>(ceil_div(count, measured_at_once)));
    std::vector<std::string> wrong(parts.size());
    host::parallel_for(static_cast<index_t>(parts.size()), [&](index_t tile) {
      error_sums& sums = parts[static_cast<size_t>(tile)];
      sums.types.resize(types_.size());
      try {
        for (index_t i = tile * measured_at_once; i < min(count, (tile + 1) * measured_at_once); ++i)
          add_row(spread_row(i, count, t_.rows), sums);
      } catch (const error& refused) {
        wrong[static_cast<size_t>(tile)] = refused.what();
      }
    });
    for (const std::string& sentence : wrong)
      if (!sentence.empty()) throw error(sentence);
    for (size_t i = 1; i < parts.size(); ++i) parts[0].add(parts[i]);
    return parts[0];
  }

  void add_row(index_t row, error_sums& sums) const {
    std::vector<float> w(static_cast<size_t>(t_.columns));
    if (linear_)
      linear_->rows(row, 1, w.data());
    else
      read_floats(*t_.direct, row * t_.columns, t_.columns, w.data());
    check_values(t_, w.data(), t_.columns, files_.directory().string());
    const float* const importance = t_.importance ? t_.importance->data() : nullptr;
    sums.own += weighed(w.data(), nullptr, importance, t_.columns);
    std::vector<float> other = w;
    add_noise({other.data(), 1, t_.columns}, row);
    sums.noise += weighed(w.data(), other.data(), importance, t_.columns);
    std::vector<std::byte> bytes(w.size() * sizeof(float));
    for (size_t i = 0; i < types_.size(); ++i) {
      encode_rows(types_[i], {w.data(), 1, t_.columns}, importance, bytes.data(), plan_.search);
      decode_blocks(types_[i], bytes.data(), t_.columns / static_cast<index_t>(info_of(types_[i]).elements),
                    other.data());
      sums.types[i] += weighed(w.data(), other.data(), importance, t_.columns);
    }
  }

  const gguf_plan& plan_;
  const planned_tensor& t_;
  const checkpoint& files_;
  std::vector<gguf_type> types_;
  std::unique_ptr<linear_weights> linear_;
};

std::string decimals(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

/// @throws error that tells the range, in the target's own terms. @param others  bytes that no choice changes.
void check_target(const size_target& target, std::uint64_t budget, std::uint64_t others, byte_range range,
                  index_t weights) {
  const std::uint64_t least = range.least + others, most = range.most + others;
  if (budget >= least && budget <= most) return;
  const auto bits = [&](std::uint64_t bytes) {
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
  };
  const std::string end = budget < least ? "less than the smallest types take" : "more than F16 takes";
  const std::string towards =
      budget < least ? "; ask for more, or quantize a smaller model" : "; ask for less, or give --type F16";
  if (target.bytes > 0)
    throw error("--target-size " + std::to_string(target.bytes) + " bytes is " + end + ": this model's file can have " +
                std::to_string(least) + " to " + std::to_string(most) + " bytes" + towards);
  throw error("--target-bpw " + decimals("%g", target.bits_per_weight) + " is " + end + ": this model can have " +
              decimals("%.4f", std::ceil(bits(least) * 1e4) / 1e4) + " to " +
              decimals("%.4f", std::ceil(bits(most) * 1e4) / 1e4) + " bits per weight" + towards);
}

}  // namespace

std::vector<gguf_type> candidate_types(index_t columns) {
  using t = gguf_type;
  if (columns % 256 == 0) return {t::q2_k, t::q3_k, t::iq4_xs, t::iq4_nl, t::q4_k, t::q5_k, t::q6_k, t::q8_0, t::f16};
  if (columns % 32 == 0) return {t::iq4_nl, t::q4_0, t::q4_1, t::q5_0, t::q5_1, t::q8_0, t::f16};
  return {t::f16};
}

std::vector<tensor_options> measure_types(const gguf_plan& plan, const checkpoint& files, const config& c,
                                          const std::map<std::string, double>& sensitivity,
                                          const std::function<void(index_t)>& told) {
  std::vector<tensor_options> table;
  index_t layers = 0;
  for (const planned_tensor& t : plan.tensors) {
    if (t.info.dims.size() < 2) continue;
    const auto divergence = sensitivity.find(t.info.name);
    table.push_back(
        tensor_measurement(plan, t, files, c).run(divergence == sensitivity.end() ? 0.0 : divergence->second));
    if (t.linear == projection_name(layers, projection::down)) told(++layers);
  }
  return table;
}

chosen_types apply_target(gguf_plan& plan, const std::vector<tensor_options>& table, const size_target& target) {
  std::uint64_t vectors = 0, matrices = 0;
  std::vector<gguf_tensor_info> infos;
  for (const planned_tensor& t : plan.tensors) {
    (t.info.dims.size() < 2 ? vectors : matrices) += padded_bytes(t.info);
    infos.push_back(t.info);
  }
  const std::uint64_t others = target.bytes > 0 ? gguf_file_bytes(plan.metadata, infos) - matrices : vectors;
  const std::uint64_t budget =
      target.bytes > 0 ? target.bytes
                       : static_cast<std::uint64_t>(target.bits_per_weight / 8 * static_cast<double>(plan.weights));
  check_target(target, budget, others, bytes_of_choices(table), plan.weights);
  const chosen_types chosen = choose_types(table, budget - others);
  plan.data_bytes = 0;
  size_t row = 0;
  for (planned_tensor& t : plan.tensors) {
    if (t.info.dims.size() >= 2) {
      const gguf_type type = table[row].options[chosen.options[row]].type;
      t.carried = t.carried && type == t.info.type;
      t.info.type = t.wanted = type;
      ++row;
    }
    plan.data_bytes += t.info.bytes("");
  }
  for (auto& [key, value] : plan.metadata)
    if (key == "general.file_type") value = nearest_mix(plan).number;
  return chosen;
}

const mix& nearest_mix(const gguf_plan& plan) {
  std::map<gguf_type, std::uint64_t> bytes;
  for (const planned_tensor& t : plan.tensors)
    if (t.info.dims.size() >= 2) bytes[t.info.type] += t.info.bytes("");
  const auto most =
      std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const std::string name = info_of(most->first).name;
  const mix* const plain = find_mix(name);
  return plain ? *plain : *find_mix(name + "_M");
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "gguf/importance.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mistral/error.hpp"
#include "mistral/gguf.hpp"
#include "mistral/gguf_blocks.hpp"
#include "mistral/gguf_writer.hpp"

namespace nibble::mistral {
namespace {

constexpr std::string_view sum_suffix = ".in_sum2", count_suffix = ".counts";
constexpr const char *datasets_key = "imatrix.datasets", *chunks_key = "imatrix.chunk_count",
                     *chunk_size_key = "imatrix.chunk_size";

bool ends(std::string_view name, std::string_view with) {
  return name.size() > with.size() && name.substr(name.size() - with.size()) == with;
}

float weight_of(float sum, float count) {
  return count > 0.0f ? sum / count : 1.0f;
}

std::vector<float> stored_sums(const std::string& name, const std::vector<double>& sums) {
  std::vector<float> stored;
  for (const double sum : sums) {
    if (!(sum <= static_cast<double>(std::numeric_limits<float>::max())))
      throw error("what calibration adds up for the tensor \"" + name +
                  "\" is beyond a float; check the checkpoint, or calibrate on less");
    stored.push_back(static_cast<float>(sum));
  }
  return stored;
}

std::vector<float> values_of(const gguf_file& file, const gguf_tensor& t) {
  const std::string where = file.path().string() + ": the tensor \"" + t.name + "\"";
  if (t.type != gguf_type::f32) throw error(where + " must be F32");
  std::vector<float> values(static_cast<size_t>(t.size / 4));
  decode_blocks(t.type, t.data, static_cast<index_t>(values.size()), values.data());
  for (const float value : values)
    if (!std::isfinite(value) || value < 0.0f) throw error(where + " holds a value that is NaN, infinite or negative");
  return values;
}

}  // namespace

importance_matrix read_importance(const std::filesystem::path& path) {
  const gguf_file file(path);
  const std::string where = path.string();
  if (!file.find("general.type") || file.get<std::string>("general.type") != "imatrix")
    throw error(where + " is no importance matrix: its \"general.type\" is not \"imatrix\"");
  importance_matrix out;
  out.file = path;
  if (file.find(datasets_key)) {
    const auto& datasets = file.get_array<std::string>(datasets_key);
    if (!datasets.empty()) out.dataset = datasets.front();
  }
  out.chunks = static_cast<index_t>(file.whole(chunks_key, 0));
  for (const gguf_tensor& t : file.tensors()) {
    if (!ends(t.name, sum_suffix)) continue;
    const std::string name = t.name.substr(0, t.name.size() - sum_suffix.size());
    const gguf_tensor* count = file.find_tensor(name + std::string(count_suffix));
    if (!count) throw error(where + ": the tensor \"" + name + std::string(count_suffix) + "\" is missing");
    if (t.dims.size() > 1 && t.size / 4 != t.dims[0])
      throw error(where + ": the tensor \"" + t.name + "\" has statistics of experts, which are not supported");
    const std::vector<float> number = values_of(file, *count);
    if (number.size() != 1) throw error(where + ": the tensor \"" + count->name + "\" must hold one number");
    std::vector<float> weights = values_of(file, t);
    for (float& w : weights) w = weight_of(w, number[0]);
    if (!std::all_of(weights.begin(), weights.end(), [](float w) { return std::isfinite(w); }))
      throw error(where + ": the tensor \"" + t.name + "\" divided by its count is infinite");
    out.weights.emplace(name, std::move(weights));
  }
  if (out.weights.empty()) throw error(where + " holds no importance: no tensor's name ends in .in_sum2");
  return out;
}

importance_matrix importance_of(const importance_sums& sums) {
  importance_matrix out;
  out.dataset = sums.dataset;
  out.chunks = sums.chunks;
  const auto count = static_cast<float>(sums.tokens);
  for (const auto& [name, squares] : sums.of) {
    std::vector<float>& weights = out.weights[name] = stored_sums(name, squares);
    for (float& w : weights) w = weight_of(w, count);
  }
  return out;
}

void write_importance(const std::filesystem::path& file, const importance_sums& sums) {
  gguf_metadata keys = {{"general.type", "imatrix"},
                        {datasets_key, gguf_array(std::vector<std::string>{sums.dataset})},
                        {chunks_key, static_cast<std::uint32_t>(sums.chunks)},
                        {chunk_size_key, static_cast<std::uint32_t>(sums.chunk_size)}};
  std::vector<gguf_tensor_info> infos;
  std::vector<std::vector<float>> values;
  for (const auto& [name, squares] : sums.of) {
    infos.push_back({name + std::string(sum_suffix), {squares.size(), 1}, gguf_type::f32});
    values.push_back(stored_sums(name, squares));
    infos.push_back({name + std::string(count_suffix), {1, 1}, gguf_type::f32});
    values.push_back({static_cast<float>(sums.tokens)});
  }
  gguf_writer out(file, keys, infos);
  for (const auto& each : values) out.append(each.data(), each.size() * sizeof(float));
  out.finish();
}

}  // namespace nibble::mistral

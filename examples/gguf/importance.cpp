// SPDX-License-Identifier: Apache-2.0
#include "gguf/importance.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mistral/error.hpp"
#include "mistral/gguf.hpp"
#include "mistral/gguf_blocks.hpp"

namespace nibble::mistral {
namespace {

constexpr std::string_view sums = ".in_sum2", counts = ".counts";

bool ends(std::string_view name, std::string_view with) {
  return name.size() > with.size() && name.substr(name.size() - with.size()) == with;
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
  for (const gguf_tensor& t : file.tensors()) {
    if (!ends(t.name, sums)) continue;
    const std::string name = t.name.substr(0, t.name.size() - sums.size());
    const gguf_tensor* count = file.find_tensor(name + std::string(counts));
    if (!count) throw error(where + ": the tensor \"" + name + std::string(counts) + "\" is missing");
    if (t.dims.size() > 1 && t.size / 4 != t.dims[0])
      throw error(where + ": the tensor \"" + t.name + "\" has statistics of experts, which are not supported");
    const std::vector<float> number = values_of(file, *count);
    if (number.size() != 1) throw error(where + ": the tensor \"" + count->name + "\" must hold one number");
    std::vector<float> weights = values_of(file, t);
    for (float& w : weights) w = number[0] > 0.0f ? w / number[0] : 1.0f;
    if (!std::all_of(weights.begin(), weights.end(), [](float w) { return std::isfinite(w); }))
      throw error(where + ": the tensor \"" + t.name + "\" divided by its count is infinite");
    out.weights.emplace(name, std::move(weights));
  }
  if (out.weights.empty()) throw error(where + " holds no importance: no tensor's name ends in .in_sum2");
  return out;
}

}  // namespace nibble::mistral

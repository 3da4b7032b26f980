// SPDX-License-Identifier: Apache-2.0
#include "finite.hpp"

#include <algorithm>
#include <cmath>

namespace nibble::mistral {
namespace {

bool holds_nan(const tensor& t) {
  if (t.dtype != "F32" && t.dtype != "F16" && t.dtype != "BF16") return false;
  constexpr index_t at_once = 1 << 16;
  std::vector<float> values(static_cast<size_t>(std::min(t.size(), at_once)));
  for (index_t first = 0; first < t.size(); first += at_once) {
    const index_t count = std::min(at_once, t.size() - first);
    read_floats(t, first, count, values.data());
    if (!std::all_of(values.begin(), values.begin() + count, [](float x) { return std::isfinite(x); })) return true;
  }
  return false;
}

}  // namespace

std::string cause_of_nan(const checkpoint& files) {
  for (const auto& [name, t] : files.tensors()) {
    const bool found = holds_nan(t);
    files.release(t);
    if (found) return "the tensor \"" + name + "\" in " + t.file.string() + " holds NaN or infinity";
  }
  return "no tensor holds NaN or infinity, so values grow beyond fp32 on their way through the layers";
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
#include "precision.hpp"

namespace nibble::mistral {

host::matmul_precision calibration_precision(std::optional<host::matmul_precision> asked, const checkpoint& files) {
  if (asked) return *asked;
  for (const auto& [name, t] : files.tensors()) {
    const size_t at = name.find("_proj.");
    if (at == name.npos || name.compare(at, name.npos, "_proj.bias") == 0) continue;
    if (name.compare(at, name.npos, "_proj.weight") != 0 || t.dtype != "BF16") return host::matmul_precision::float32;
  }
  return host::fastest_precision();
}

std::string precision_note(host::matmul_precision precision) {
  if (precision == host::matmul_precision::float32 || host::has_bfloat16()) return {};
  return "this CPU has no instruction for --matmul-precision bfloat16 (AVX512_BF16): products take several times as "
         "long as in float32";
}

}  // namespace nibble::mistral

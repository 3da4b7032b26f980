// SPDX-License-Identifier: Apache-2.0
#include "precision.hpp"

#include "forward.hpp"

namespace nibble::mistral {

host::matmul_precision calibration_precision(std::optional<host::matmul_precision> asked, const checkpoint& files) {
  if (asked) return *asked;
  const std::string first = projection_name(0, projection::q) + ".weight";
  const bool rounded = files.contains(first) && files.at(first).dtype == "BF16";
  return rounded ? host::fastest_precision() : host::matmul_precision::float32;
}

std::string precision_note(host::matmul_precision precision) {
  if (precision == host::matmul_precision::float32 || host::has_bfloat16()) return {};
  return "this CPU has no instruction for --matmul-precision bfloat16 (AVX512_BF16): products take several times as "
         "long as in float32";
}

}  // namespace nibble::mistral

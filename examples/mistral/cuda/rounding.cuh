// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rounding of what linears read, and of keys and values, to what their 8-bit codes stand for, on a GPU.
#pragma once

#include <limits>

#include "mistral/cuda/detail/rounding.cuh"
#include "mistral/cuda/rows.cuh"
#include "mistral/rounding.hpp"

namespace nibble::mistral::cuda {

/// As the kernel takes it. @pre how.how is not none.
inline activation_rounding rounding_on_device(const rounded_inputs& how) {
  return {how.type == code_type::integer, how.how == input_rounding::tensor ? how.scale : 0.0f,
          how.how == input_rounding::token_block ? coded_block : std::numeric_limits<index_t>::max(), nullptr};
}

/// y (m, k) = x / by rounded as mistral::round_inputs rounds it, and off (m, k) = how much more that is than x / by, both then stored
/// in bf16; either may have no data, and y may be x. Tokens that hold NaN or infinity stay as they are.
/// @returns bad_shape, also for a scale that is no positive number or 0, bad_group, misaligned, or what launch says.
inline status round_activations(matrix<const bf16> x, activation_rounding how, matrix<bf16> y, matrix<bf16> off,
                                cudaStream_t stream) {
  if (!well_formed(x) || !(how.scale >= 0.0f) || !is_finite(how.scale)) return status::bad_shape;
  if (how.scale == 0.0f && how.group < 1) return status::bad_group;
  bool wide = x.cols % 4 == 0 && aligned(x, 4) && (how.group >= x.cols || how.group % 4 == 0);
  for (const matrix<bf16>& to : {y, off}) {
    if (to.data == nullptr) continue;
    if (!well_formed(to) || to.rows != x.rows || to.cols != x.cols) return status::bad_shape;
    if (!aligned(to)) return status::misaligned;
    wide = wide && aligned(to, 4);
  }
  if (!aligned(x) || !detail::aligned(how.by)) return status::misaligned;
  if (x.empty()) return status::ok;
  wide = wide && detail::aligned(how.by, 4);
  return detail::by_rows(wide, [&](auto tuned, auto items) {
    return launch(detail::round_kernel<decltype(tuned), items.value>, x.rows,
                  detail::row_threads(tuned, x.cols, items.value), 0, stream, x, how, y, off);
  });
}

}  // namespace nibble::mistral::cuda

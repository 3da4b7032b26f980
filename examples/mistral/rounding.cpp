// SPDX-License-Identifier: Apache-2.0
#include "rounding.hpp"

#include <algorithm>

#include "nibble/host/fit.hpp"
#include "nibble/host/fp8.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/smooth.hpp"

namespace nibble::mistral {
namespace {

/// The largest |x|, which is not finite where some x is not: magnitudes compare as their bits do, NaN beyond ±inf.
float largest_of(const float* x, index_t k) {
  int32_t most = 0;
  host::vectorised([&] {
    for (index_t j = 0; j < k; ++j) most = max(most, bit_cast<int32_t>(x[j]) & 0x7fffffff);
  });
  return bit_cast<float>(most);
}

void round_span(float* x, index_t k, code_type type, float scale) {
  host::vectorised([&] {
    if (type == code_type::integer) {
      for (index_t j = 0; j < k; ++j) x[j] = clamp(round_even(x[j] / scale), -127.0f, 127.0f) * scale;
    } else {
      for (index_t j = 0; j < k; ++j) {
        const uint8_t code = host::detail::code_of_number<float_format::e4m3>(x[j] / scale, x[j]);
        x[j] = host::detail::value_of_code<float_format::e4m3>(code) * scale;
      }
    }
  });
}

group_shape shape_of(const packing& how) {
  return {how.rows, how.group};
}

any_float_scheme float_scheme_of(dtype stored) {
  return {float_format::e4m3, stored, dtype::f32};
}

}  // namespace

float input_scale(float amax, code_type type, dtype stored) {
  const float exact =
      type == code_type::integer ? activation_scale(amax) : fit(amax, any_float_scheme{float_format::e4m3, dtype::f32});
  const float near = round_to(stored, exact);
  return near > 0.0f ? min(near, largest(stored)) : epsilon(stored);
}

void round_row(float* x, index_t k, const rounded_inputs& how) {
  if (how.how == input_rounding::none) return;
  const index_t width = how.how == input_rounding::token_block ? coded_block : k;
  for (index_t first = 0; first < k; first += width) {
    const index_t count = min(width, k - first);
    const float amax = largest_of(x + first, count);
    if (!is_finite(amax)) continue;  // NaN and infinity are for whoever reads the outputs to find
    const float scale = how.how == input_rounding::tensor ? how.scale : input_scale(amax, how.type, dtype::f32);
    round_span(x + first, count, how.type, scale);
  }
}

void round_inputs(matrix<float> x, const rounded_inputs& how) {
  host::parallel_for(x.rows, [&](index_t row) { round_row(x.row(row), x.cols, how); });
}

quantized_linear round_weights(matrix<const float> w, const packing& how, dtype stored) {
  quantized_linear q = quantized_linear::blank(w.rows, w.cols, how.group, how.rows);
  const group_shape g = shape_of(how);
  if (how.type == code_type::integer) {
    const any_scheme s = scheme_of(how, stored);
    host::fit(w, q.param_matrix(), g, s, minmax{});
    host::quantize(w, matrix<const params>(q.param_matrix()), q.code_matrix(), g, s);
    return q;
  }
  std::vector<float> scales(q.parameters.size());
  const matrix<float> view(scales.data(), q.row_groups, q.groups);
  host::fit(w, view, g, float_scheme_of(stored), minmax{});
  host::quantize(w, matrix<const float>(view), q.code_matrix(), g, float_scheme_of(stored));
  std::transform(scales.begin(), scales.end(), q.parameters.begin(), [](float scale) { return params{scale, 0}; });
  return q;
}

void unround(const quantized_linear& q, const packing& how, dtype stored, matrix<float> w) {
  const group_shape g = shape_of(how);
  if (how.type == code_type::integer)
    return host::dequantize(q.code_matrix(), q.param_matrix(), w, g, scheme_of(how, stored));
  std::vector<float> scales(q.parameters.size());
  std::transform(q.parameters.begin(), q.parameters.end(), scales.begin(), [](const params& p) { return p.scale; });
  host::dequantize(q.code_matrix(), matrix<const float>(scales.data(), q.row_groups, q.groups), w, g,
                   float_scheme_of(stored));
}

}  // namespace nibble::mistral

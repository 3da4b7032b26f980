// SPDX-License-Identifier: Apache-2.0
#include "rounding.hpp"

#include <algorithm>

#include "nibble/host/fit.hpp"
#include "nibble/host/fp8.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/smooth.hpp"

namespace nibble::mistral {
namespace {

bool all_finite(const float* x, index_t k) {
  int32_t most = 0;  // magnitudes compare as their bits do, NaN beyond ±inf
  host::vectorised([&] {
    for (index_t j = 0; j < k; ++j) most = max(most, bit_cast<int32_t>(x[j]) & 0x7fffffff);
  });
  return is_finite(bit_cast<float>(most));
}

void round_integers(matrix<float> x, const rounded_inputs& how) {
  if (how.how == input_rounding::tensor) return host::round_inputs(x, how.scale, activation_rule{});
  if (how.how == input_rounding::token) return host::round_inputs(x, activation_rule{});
  for (index_t first = 0; first < x.cols; first += coded_block)
    host::round_inputs(x.cols_at(first, min(coded_block, x.cols - first)), activation_rule{});
}

void round_floats(matrix<float> x, const rounded_inputs& how) {
  constexpr float_scheme<float_format::e4m3> e4m3;
  if (how.how == input_rounding::tensor) return host::round_inputs(x, how.scale, e4m3);
  host::round_inputs(x, how.how == input_rounding::token ? per_channel : per_group(coded_block), e4m3);
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
  round_inputs({x, 1, k}, how);
}

void round_inputs(matrix<float> x, const rounded_inputs& how) {
  if (how.how == input_rounding::none) return;
  std::vector<char> finite(static_cast<size_t>(x.rows));
  host::parallel_for(x.rows, [&](index_t row) { finite[static_cast<size_t>(row)] = all_finite(x.row(row), x.cols); });
  for (index_t first = 0, count = 0; first < x.rows; first += max(count, index_t(1))) {
    for (count = 0; first + count < x.rows && finite[static_cast<size_t>(first + count)];) ++count;
    if (count == 0) continue;
    const matrix<float> rows = x.rows_at(first, count);
    how.type == code_type::integer ? round_integers(rows, how) : round_floats(rows, how);
  }
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

void restore(const quantized_linear& q, const packing& how, dtype stored, matrix<float> w) {
  is_coded(how) ? unround(q, how, stored, w) : dequantize(q, how.group, scheme_of(how, stored), w);
}

}  // namespace nibble::mistral

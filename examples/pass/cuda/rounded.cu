// SPDX-License-Identifier: Apache-2.0
#include "pass/cuda/rounded.cuh"

#include <algorithm>
#include <numeric>

#include "mistral/cuda/rounding.cuh"
#include "mistral/rounding.hpp"
#include "nibble/kernels/awq.cuh"
#include "nibble/kernels/fit.cuh"
#include "nibble/kernels/fp8.cuh"
#include "nibble/kernels/quantize.cuh"
#include "pass/cuda/apart.cuh"

namespace nibble::mistral::cuda {
namespace {

/// Outputs that are multiplied at a time.
constexpr index_t outputs_at_once = 1024;

group_shape shape_of(const packing& how) {
  return {how.rows, how.group};
}
any_float_scheme float_scheme_of(dtype stored) {
  return {float_format::e4m3, stored, dtype::f32};
}

}  // namespace

index_t rounding_limits::bytes() const {
  const index_t y = index_t{sizeof(float)} * tokens * min(outputs, outputs_at_once);
  return elements * index_t{sizeof(float) + 2 * sizeof(bf16) + sizeof(uint8_t)} + y +
         index_t{sizeof(float)} * (widest + outputs + scales) + index_t{sizeof(bf16)} * tokens * widest +
         index_t{sizeof(params)} * groups + index_t{sizeof(double)} * (tokens * max(scales, index_t(1)) + widest);
}

rounding_search::rounding_search(const rounding_limits& limits, linear_search& search)
    : search_(search),
      scaled_(limits.elements, "scaled weights"),
      s_(limits.widest, "scales"),
      of_row_(limits.outputs, "factors of rows"),
      y_(limits.tokens * min(limits.outputs, outputs_at_once), "errors of outputs"),
      scales_(limits.scales, "scales of inputs"),
      rounded_(limits.elements, "rounded weights"),
      difference_(limits.elements, "differences"),
      off_(limits.tokens * limits.widest, "differences of inputs"),
      codes_(limits.elements, "codes"),
      parameters_(limits.groups, "parameters of groups"),
      sums_(limits.tokens * max(limits.scales, index_t(1)), "losses"),
      importance_(limits.widest, "importances") {}

void rounding_search::use(matrix<const bf16> x, const float* s, const rounded_inputs& how) {
  x_ = x;
  rounds_ = how.how != input_rounding::none;
  search_.copy_there(s_.data(), s, x.cols);
  if (!rounds_) return;
  const phase_clock::span span(search_.clock(), phase::scales);
  activation_rounding as = rounding_on_device(how);
  as.by = s_.data();
  check(round_activations(x, as, {}, {off_.data(), x.rows, x.cols}, search_.in()), "round what linears read");
}

template <class T>
double rounding_search::whole_loss(matrix<const T> w, const packing& how, dtype stored) {
  const group_shape g = shape_of(how);
  const matrix<float> scaled(scaled_.data(), w.rows, w.cols);
  const matrix<const float> weights = scaled;
  const matrix<uint8_t> codes(codes_.data(), w.rows, w.cols);
  const index_t down = g.down(w.rows), across = g.across(w.cols);
  const any_scheme integers = scheme_of(how, stored);
  const any_float_scheme floats = float_scheme_of(stored);
  const matrix<params> ranges(parameters_.data(), down, across);
  const matrix<float> scales(reinterpret_cast<float*>(parameters_.data()), down, across);
  {
    const phase_clock::span span(search_.clock(), phase::scales);
    check(kernels::scale_columns(w, s_.data(), scaled, search_.in()), "scale weights");
    if (how.type == code_type::integer) {
      check(kernels::fit(weights, ranges, g, integers, minmax{}, nullptr, search_.in()), "find ranges");
      check(kernels::quantize(weights, matrix<const params>(ranges), codes, g, integers, search_.in()),
            "round weights");
    } else {
      check(kernels::fit(weights, scales, g, floats, minmax{}, search_.in()), "find ranges");
      check(kernels::quantize(weights, matrix<const float>(scales), codes, g, floats, search_.in()), "round weights");
    }
  }
  return how.type == code_type::integer ? judge(w.rows, ranges.data, g, integers, nullptr)
                                        : judge(w.rows, scales.data, g, floats, nullptr);
}

double rounding_search::loss(matrix<const float> w, const packing& how, dtype stored, const quantized_linear& q,
                             const float* of_row) {
  const group_shape g = shape_of(how);
  search_.upload(scaled_.data(), w);
  search_.copy_there(codes_.data(), q.codes.data(), w.size());
  if (of_row != nullptr) search_.copy_there(of_row_.data(), of_row, w.rows);
  const float* const factors = of_row == nullptr ? nullptr : of_row_.data();
  const auto groups = static_cast<index_t>(q.parameters.size());
  if (how.type == code_type::integer) {
    search_.copy_there(parameters_.data(), q.parameters.data(), groups);
    return judge(w.rows, parameters_.data(), g, scheme_of(how, stored), factors);
  }
  std::vector<float> scales(q.parameters.size());
  std::transform(q.parameters.begin(), q.parameters.end(), scales.begin(), [](const params& p) { return p.scale; });
  float* const there = reinterpret_cast<float*>(parameters_.data());
  search_.copy_there(there, scales.data(), groups);
  return judge(w.rows, there, g, float_scheme_of(stored), factors);
}

/// The mean over the sample of what the codes of scaled weights, and rounded inputs, do to n outputs.
template <class P, class Scheme>
double rounding_search::judge(index_t n, const P* parameters, group_shape g, Scheme how, const float* of_row) {
  const index_t m = x_.rows;
  add_errors(n, parameters, g, how, of_row);
  std::vector<double> sums(static_cast<std::size_t>(m));
  search_.copy_back(sums.data(), sums_.data(), m);
  search_.wait();
  return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(max(m, index_t(1)));
}

/// Sums of each token's squares.
template <class P, class Scheme>
void rounding_search::add_errors(index_t n, const P* parameters, group_shape g, Scheme how, const float* of_row) {
  const index_t k = x_.cols, m = x_.rows;
  const phase_clock::span span(search_.clock(), phase::scales);
  const matrix<bf16> rounded(rounded_.data(), n, k), difference(difference_.data(), n, k);
  check(apart(matrix<const float>(scaled_.data(), n, k), matrix<const uint8_t>(codes_.data(), n, k),
              matrix<const P>(parameters, g.down(n), g.across(k)), g, how, s_.data(), of_row, rounded, difference,
              search_.in()),
        "judge codes");
  check(cudaMemsetAsync(sums_.data(), 0, static_cast<std::size_t>(m) * sizeof(double), search_.in()), "clear losses");
  const auto multiply = [&](matrix<const bf16> x, matrix<const bf16> w, float beta, matrix<float> y) {
    check(
        kernels::matmul<bf16>(search_.products(), x, kernels::reading::plain, w, kernels::reading::transposed, beta, y),
        "multiply by a linear's weights");
  };
  for (index_t first = 0; first < n; first += outputs_at_once) {
    const index_t count = min(outputs_at_once, n - first);
    const matrix<float> y(y_.data(), m, count);
    if (rounds_) multiply({off_.data(), m, k}, rounded.rows_at(first, count), 0.0f, y);
    multiply(x_, difference.rows_at(first, count), rounds_ ? 1.0f : 0.0f, y);
    check(add_squares(y, sums_.data(), search_.in()), "add up errors");
  }
}

std::vector<double> rounding_search::costs(matrix<const bf16> x, const float* s, const std::vector<double>& importance,
                                           code_type type, const std::vector<float>& scales) {
  const auto count = static_cast<index_t>(scales.size());
  search_.copy_there(s_.data(), s, x.cols);
  search_.copy_there(importance_.data(), importance.data(), x.cols);
  search_.copy_there(scales_.data(), scales.data(), count);
  const matrix<double> there(sums_.data(), count, x.rows);
  {
    const phase_clock::span span(search_.clock(), phase::scales);
    check(
        input_costs(x, s_.data(), importance_.data(), type == code_type::integer, scales_.data(), there, search_.in()),
        "judge scales of inputs");
  }
  std::vector<double> out(static_cast<std::size_t>(there.size()));
  search_.copy_back(out.data(), there.data, there.size());
  search_.wait();
  return out;
}

template double rounding_search::whole_loss(matrix<const float>, const packing&, dtype);
template double rounding_search::whole_loss(matrix<const bf16>, const packing&, dtype);

}  // namespace nibble::mistral::cuda

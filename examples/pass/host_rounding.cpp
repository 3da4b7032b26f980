// SPDX-License-Identifier: Apache-2.0
#include "pass/host_rounding.hpp"

#include <numeric>

#include "mistral/rounding.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/observe.hpp"
#include "pass/input_scale.hpp"

namespace nibble::mistral {
namespace {

/// w · diag(s).
std::vector<float> scaled(matrix<const float> w, const std::vector<float>& s) {
  std::vector<float> out(static_cast<size_t>(w.size()));
  host::parallel_for(w.rows, [&](index_t row) {
    for (index_t col = 0; col < w.cols; ++col)
      out[static_cast<size_t>(row * w.cols + col)] = w(row, col) * s[static_cast<size_t>(col)];
  });
  return out;
}

/// x·wᵀ, (m, n)
std::vector<float> outputs_of(matrix<const float> x, matrix<const float> w) {
  std::vector<float> out(static_cast<size_t>(x.rows * w.rows));
  host::matmul_nt(x, w, {out.data(), x.rows, w.rows});
  return out;
}

/// Mean over the tokens of x (m, k) of ‖rows · (x·wᵀ − wanted)‖². @param wanted (m, n). @param rows (n), or null for 1.
double output_loss(matrix<const float> x, matrix<const float> w, matrix<const float> wanted,
                   const float* rows = nullptr) {
  constexpr index_t edge = host::detail::tile_rows;
  const index_t across = ceil_div(w.rows, edge);
  std::vector<double> sums(static_cast<size_t>(ceil_div(x.rows, edge) * across), 0.0);
  host::detail::single_threaded_blas();
  host::parallel_for(static_cast<index_t>(sums.size()), [&](index_t tile) {
    const index_t token = tile / across * edge, row = tile % across * edge;
    const index_t tokens = min(edge, x.rows - token), outputs = min(edge, w.rows - row);
    thread_local std::vector<float> buffer;
    buffer.resize(static_cast<size_t>(edge * edge));
    const matrix<float> y(buffer.data(), tokens, outputs);
    host::detail::sgemm(CblasNoTrans, CblasTrans, tokens, outputs, x.cols, x.rows_at(token, tokens),
                        w.rows_at(row, outputs), 0.0f, y);
    double sum = 0;
    for (index_t i = 0; i < tokens; ++i)
      for (index_t j = 0; j < outputs; ++j) {
        const double off = static_cast<double>(y(i, j)) - static_cast<double>(wanted(token + i, row + j));
        const double unit = rows == nullptr ? 1.0 : static_cast<double>(rows[row + j]);
        sum += off * unit * off * unit;
      }
    sums[static_cast<size_t>(tile)] = sum;
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(max(x.rows, index_t(1)));
}

}  // namespace

void host_rounding::begin(index_t apart) {
  apart_ = apart;
  forget();
  for (const layer_input input : layer_inputs)
    samples_[static_cast<size_t>(input)].largest.assign(static_cast<size_t>(width(c_, input)), 0.0f);
}

void host_rounding::take(layer_input input, matrix<const float> x) {
  input_sample& into = samples_[static_cast<size_t>(input)];
  auto& rows = rows_[static_cast<size_t>(input)];
  host::absolute_maximum(x, into.largest.data());
  for (index_t row = (apart_ - into.tokens % apart_) % apart_; row < x.rows; row += apart_, ++into.kept)
    rows.insert(rows.end(), x.row(row), x.row(row) + x.cols);
  into.tokens += x.rows;
}

void host_rounding::forget() {
  samples_ = {};
  rows_ = {};
  held_.clear();
}

matrix<const float> host_rounding::rows(layer_input input) const {
  return {rows_[static_cast<size_t>(input)].data(), sample(input).kept, width(c_, input)};
}

/// The sample (m, k) over s: what the linears of an input read once s is folded into what comes before.
std::vector<float> host_rounding::rows_over(layer_input input, const std::vector<float>& s) const {
  std::vector<float> out = rows_[static_cast<size_t>(input)];
  const size_t k = s.size();
  for (size_t i = 0; i < out.size(); ++i) out[i] /= s[i % k];
  return out;
}

void host_rounding::hold(const layer_weights& w, const std::vector<projection>& linears) {
  held_.clear();
  for (const projection p : linears) held_.push_back({p, w.at(c_, p), outputs_of(rows(input_of(p)), w.at(c_, p))});
}

std::vector<double> host_rounding::losses(const layer_packing& how, dtype stored, const std::vector<float>& s,
                                          const std::vector<rounded_inputs>& inputs) const {
  std::vector<double> out;
  std::vector<float> x, rounded;
  for (size_t i = 0; i < held_.size(); ++i) {
    const linear& one = held_[i];
    const packing& as = *how[static_cast<size_t>(one.which)];
    const index_t n = one.w.rows, k = one.w.cols, m = sample(input_of(one.which)).kept;
    if (i == 0 || !(inputs[i] == inputs[i - 1])) {
      x = rows_over(input_of(one.which), s);
      round_inputs({x.data(), m, k}, inputs[i]);
    }
    const std::vector<float> weights = scaled(one.w, s);
    rounded.resize(weights.size());
    unround(round_weights({weights.data(), n, k}, as, stored), as, stored, {rounded.data(), n, k});
    out.push_back(output_loss({x.data(), m, k}, {rounded.data(), n, k}, {one.wanted.data(), m, n}));
  }
  return out;
}

double host_rounding::loss(const layer_weights& w, projection p, const packing& how, dtype stored,
                           const quantized_linear& q, const std::vector<float>& s, const rounded_inputs& inputs,
                           const float* of_row) const {
  const matrix<const float> weights = w.at(c_, p);
  std::vector<float> x = rows_over(input_of(p), s), rounded(static_cast<size_t>(weights.size()));
  const matrix<float> tokens(x.data(), sample(input_of(p)).kept, weights.cols);
  const matrix<float> coded(rounded.data(), weights.rows, weights.cols);
  const std::vector<float> wanted = outputs_of(tokens, weights);
  restore(q, how, stored, coded);
  round_inputs(tokens, inputs);
  return output_loss(tokens, coded, {wanted.data(), tokens.rows, weights.rows}, of_row);
}

std::vector<double> host_rounding::costs(layer_input input, const std::vector<float>& s,
                                         const std::vector<double>& importance, code_type type,
                                         const std::vector<float>& scales) const {
  const std::vector<float> x = rows_over(input, s);
  return costs_of({x.data(), sample(input).kept, width(c_, input)}, importance, type, scales);
}

}  // namespace nibble::mistral

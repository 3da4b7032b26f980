// SPDX-License-Identifier: Apache-2.0
#include "pass/rounded_output.hpp"

#include <algorithm>
#include <numeric>

#include "mistral/rounding.hpp"
#include "nibble/host/matmul.hpp"
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

}  // namespace

std::vector<float> sample_over(const input_sample& sample, const std::vector<float>& s) {
  std::vector<float> out = sample.rows;
  const size_t k = s.size();
  for (size_t i = 0; i < out.size(); ++i) out[i] /= s[i % k];
  return out;
}

float input_scale_of(const input_sample& sample, const std::vector<float>& s,
                     const std::vector<matrix<const float>>& linears, code_type type, dtype stored, bool whole) {
  const auto k = static_cast<index_t>(s.size());
  std::vector<float> largest(s.size());
  for (size_t j = 0; j < s.size(); ++j) largest[j] = sample.largest[j] / s[j];
  if (whole) return input_scale(*std::max_element(largest.begin(), largest.end()), type, stored);
  std::vector<double> importance(s.size(), 0.0);
  for (const auto& w : linears)
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t j = 0; j < k; ++j)
        importance[static_cast<size_t>(j)] += static_cast<double>(w(row, j)) * static_cast<double>(w(row, j));
  const std::vector<float> x = sample_over(sample, s);
  const matrix<const float> rows(x.data(), static_cast<index_t>(x.size()) / k, k);
  return choose_input_scale({rows, largest.data(), sample.tokens, importance.data()}, type, stored);
}

double output_loss(matrix<const float> x, matrix<const float> w, matrix<const float> wanted, const float* rows) {
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

rounding_judge::rounding_judge(const layer_task& t, layer_input input, const std::vector<projection>& linears,
                               const layer_weights& w)
    : t_(t), sample_(t.on.sample(input)) {
  for (const projection p : linears) {
    linear one = {*t.how[static_cast<size_t>(p)], w.at(t.c, p), {}};
    const index_t m = static_cast<index_t>(sample_.rows.size()) / one.w.cols;
    one.wanted.resize(static_cast<size_t>(m * one.w.rows));
    host::matmul_nt({sample_.rows.data(), m, one.w.cols}, one.w, {one.wanted.data(), m, one.w.rows});
    linears_.push_back(std::move(one));
  }
}

std::vector<double> rounding_judge::losses(const std::vector<float>& s, bool whole) const {
  const auto k = static_cast<index_t>(s.size()), m = static_cast<index_t>(sample_.rows.size()) / k;
  std::vector<std::vector<float>> weights;
  std::vector<matrix<const float>> views;
  for (const linear& each : linears_) {
    weights.push_back(scaled(each.w, s));
    views.emplace_back(weights.back().data(), each.w.rows, k);
  }
  std::vector<double> out;
  std::vector<float> x, rounded;
  const packing* rounded_for = nullptr;
  for (size_t i = 0; i < linears_.size(); ++i) {
    const packing& how = linears_[i].how;
    if (rounded_for == nullptr || rounded_for->inputs != how.inputs || rounded_for->type != how.type) {
      rounded_inputs inputs = {how.inputs, how.type, 0};
      if (how.inputs == input_rounding::tensor)
        inputs.scale = input_scale_of(sample_, s, views, how.type, t_.stored, whole);
      x = sample_over(sample_, s);
      round_inputs({x.data(), m, k}, inputs);
      rounded_for = &how;
    }
    rounded.resize(weights[i].size());
    const matrix<float> w(rounded.data(), views[i].rows, k);
    unround(round_weights(views[i], how, t_.stored), how, t_.stored, w);
    out.push_back(output_loss({x.data(), m, k}, matrix<const float>(w), {linears_[i].wanted.data(), m, w.rows}));
  }
  return out;
}

double rounding_judge::loss(const std::vector<float>& s) const {
  const auto all = losses(s);
  return std::accumulate(all.begin(), all.end(), 0.0);
}

}  // namespace nibble::mistral

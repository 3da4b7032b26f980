// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's search for scales at the speed of a BLAS. What follows a search (ranges under the Gram matrix, better codes) is
/// in clip.hpp and sweep.hpp, the loss that all of it shares in output_loss.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "nibble/awq.hpp"
#include "nibble/host/clip.hpp"
#include "nibble/host/fit.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/output_loss.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/host/sweep.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// largest (n, groups) ← max |w| of every group of every row; NaN and ±inf count as 0.
inline void group_maximum(matrix<const float> w, index_t width, matrix<float> largest) {
  parallel_for(w.rows, [&](index_t row) {
    vectorised([&] {
      for (index_t group = 0; group < largest.cols; ++group) {
        uint32_t most = 0;  // of bits: the order of floats that are not negative
        for (index_t col = group * width; col < min(w.cols, (group + 1) * width); ++col)
          most = max(most, bit_cast<uint32_t>(abs(observed(w(row, col)))));
        largest(row, group) = bit_cast<float>(most);
      }
    });
  });
}

/// Q(w·s)/s − w of a tile of rows, ranges fitted to w·s with each channel's error weighted by energy / s².
template <class Scheme, class Method>
matrix<float> rounding_difference(matrix<const float> w, const float* s, const float* energy, group_shape g,
                                  Scheme scheme, Method method, tile_buffers& with) {
  const auto scaled = tile_buffers::view(with.scaled, w.rows, w.cols);
  const auto difference = tile_buffers::view(with.difference, w.rows, w.cols);
  const auto importance = tile_buffers::view(with.importance, 1, w.cols);
  with.fitted.resize(static_cast<size_t>(w.rows * g.across(w.cols)));
  with.codes.resize(static_cast<size_t>(w.size()));
  const matrix<params> p(with.fitted.data(), w.rows, g.across(w.cols));
  const matrix<uint8_t> q(with.codes.data(), w.rows, w.cols);
  vectorised([&] {
    for (index_t col = 0; col < w.cols; ++col) importance(0, col) = energy[col] / (s[col] * s[col]);
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) scaled(row, col) = w(row, col) * s[col];
  });
  fit(matrix<const float>(scaled), p, g, scheme, method, importance.data);
  quantize(matrix<const float>(scaled), matrix<const params>(p), q, g, scheme);
  dequantize(matrix<const uint8_t>(q), matrix<const params>(p), difference, g, scheme);
  vectorised([&] {
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) difference(row, col) = difference(row, col) / s[col] - w(row, col);
  });
  return difference;
}

}  // namespace detail

/// reference::weight_importance; a term is rounded to float.
inline void weight_importance(matrix<const float> w, index_t group_size, double* sum) {
  const index_t width = per_group(group_size).width(w.cols), groups = ceil_div(w.cols, width);
  std::vector<float> data(static_cast<size_t>(w.rows * groups));
  const matrix<float> largest(data.data(), w.rows, groups);
  detail::group_maximum(w, width, largest);
  parallel_for(groups, [&](index_t group) {
    vectorised([&] {
      for (index_t row = 0; row < w.rows; ++row) {
        const float norm = largest(row, group) + 1e-6f;
        for (index_t col = group * width; col < min(w.cols, (group + 1) * width); ++col)
          sum[col] += static_cast<double>(abs(observed(w(row, col))) / norm);
      }
    });
  });
}

/// s (k) of one candidate, normalised to √(max · min) = 1: positive and finite whatever x̄ and w̄ hold.
/// @param activation x̄ (k). @param weight w̄ (k).
inline std::vector<float> candidate_scales(const std::vector<float>& activation, const std::vector<float>& weight,
                                           awq_ratio ratio) {
  std::vector<float> s(activation.size());
  for (size_t j = 0; j < s.size(); ++j) s[j] = awq_scale(activation[j], weight[j], ratio);
  if (s.empty() || ratio.identity()) return s;
  const auto [low, high] = std::minmax_element(s.begin(), s.end());
  const float norm = std::sqrt(*low) * std::sqrt(*high);  // their product alone could overflow
  for (float& scale : s) scale /= norm;                   // within √(low / high) and √(high / low), so finite
  return s;
}

/// What a scale search found.
struct awq_result {
  std::vector<float> scale;    ///< (k), applied to W's columns
  awq_ratio ratio;             ///< of the winner
  double identity_loss = 0;    ///< of rounding W as it is
  double loss = 0;             ///< of the winner; never above identity_loss
  std::vector<double> losses;  ///< of every candidate
};

/// Loss of rounding w · diag(s), ranges fitted to the scaled weights: candidate scales are judged with the ranges they
/// will get. @pre w is finite.
template <class Scheme, class Method>
double scaled_loss(matrix<const float> w, const float* s, const second_moment& x, index_t group_size, Scheme scheme,
                   Method method) {
  return detail::sum_over_row_tiles(w.rows, [&](index_t first, index_t rows) {
    auto& with = detail::buffers();
    const auto difference = detail::rounding_difference(w.rows_at(first, rows), s, x.diagonal().data(),
                                                        per_group(group_size), scheme, method, with);
    return detail::tile_loss(difference, x, with.product);
  });
}

/// w ← Q(w · diag(s)) · diag(s)⁻¹, as scaled_loss judges it: for losses that need the whole rounded linear.
template <class Scheme, class Method>
void round_scaled(matrix<float> w, const float* s, const second_moment& x, index_t group_size, Scheme scheme,
                  Method method) {
  detail::for_row_tiles(w.rows, [&](index_t first, index_t rows) {
    const auto tile = w.rows_at(first, rows);
    const auto difference = detail::rounding_difference(matrix<const float>(tile), s, x.diagonal().data(),
                                                        per_group(group_size), scheme, method, detail::buffers());
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) tile(row, col) += difference(row, col);
  });
}

/// Searches a scale over awq_candidate(mode, 0 … count − 1).
/// @param activation  x̄ (k). @param weight  w̄ (k) of the linears that the scale is for.
/// @param loss  loss(s) of a candidate; scaled_loss summed over the linears, or a block's output error.
/// @param fold  makes a candidate what can be stored exactly (awq_folded); may be null.
/// A candidate whose loss is NaN never wins, the identity apart; nor does one after an identity whose loss is NaN.
inline awq_result search_scale(const std::vector<float>& activation, const std::vector<float>& weight, duo_scaling mode,
                               int count, const std::function<double(const float*)>& loss,
                               const std::function<void(std::vector<float>&)>& fold = nullptr) {
  awq_result best;
  for (int i = 0; i < count; ++i) {
    const awq_ratio ratio = awq_candidate(mode, i, count);
    auto scale = candidate_scales(activation, weight, ratio);
    if (fold && !ratio.identity()) fold(scale);
    const double candidate = loss(scale.data());
    best.losses.push_back(candidate);
    if (i == 0) best.identity_loss = candidate;
    if (i > 0 && !(candidate < best.loss)) continue;
    best.scale = std::move(scale);
    best.ratio = ratio;
    best.loss = candidate;
  }
  return best;
}

/// w̄ (k) from the sums that weight_importance added up over linears of `rows` rows in all.
inline std::vector<float> mean_importance(const std::vector<double>& sums, index_t rows) {
  std::vector<float> mean(sums.size());
  for (size_t j = 0; j < sums.size(); ++j)
    mean[j] = static_cast<float>(sums[j] / static_cast<double>(max(rows, index_t(1))));
  return mean;
}

/// search_scale of the linears w (each (n_i, k)) that read x.
/// @param group_sizes  of each linear: inputs that share a scale when it is quantized.
inline awq_result search_scale(const std::vector<matrix<const float>>& w, const second_moment& x,
                               const std::vector<index_t>& group_sizes, duo_scaling mode, int count,
                               const std::function<double(const float*)>& loss,
                               const std::function<void(std::vector<float>&)>& fold = nullptr) {
  std::vector<double> sums(static_cast<size_t>(x.inputs()), 0.0);
  index_t rows = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    weight_importance(w[i], group_sizes[i], sums.data());
    rows += w[i].rows;
  }
  return search_scale(x.absolute_mean(), mean_importance(sums, rows), mode, count, loss, fold);
}

/// search_scale of linears that are all quantized in groups of `group_size`.
inline awq_result search_scale(const std::vector<matrix<const float>>& w, const second_moment& x, index_t group_size,
                               duo_scaling mode, int count, const std::function<double(const float*)>& loss,
                               const std::function<void(std::vector<float>&)>& fold = nullptr) {
  return search_scale(w, x, std::vector<index_t>(w.size(), group_size), mode, count, loss, fold);
}

}  // namespace host
NIBBLE_NAMESPACE_END

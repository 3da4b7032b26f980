// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's searches at the speed of a BLAS. Rows of W are independent under tr(ΔW·G·ΔWᵀ), so every function cuts the
/// rows into fixed tiles and runs each through the whole computation: no thread waits for another, and scratch is two
/// tiles a thread. Where calibration has fewer tokens than the linear has inputs, the loss is ‖ΔW·Xᵀ‖² instead.
#pragma once

#include <functional>
#include <vector>

#include "nibble/awq.hpp"
#include "nibble/host/fit.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows of W in a tile, columns whose codes are improved between two updates of all slopes.
inline constexpr index_t awq_rows = 128, sweep_cols = 64;

/// Buffers of one thread, kept between tiles.
struct tile_buffers {
  std::vector<float> scaled, difference, product, block, importance;
  std::vector<params> fitted;
  std::vector<uint8_t> codes;

  static matrix<float> view(std::vector<float>& data, index_t rows, index_t cols) {
    if (static_cast<index_t>(data.size()) < rows * cols) data.resize(static_cast<size_t>(rows * cols));
    return {data.data(), rows, cols};
  }
};

inline tile_buffers& buffers() {
  thread_local tile_buffers instance;
  return instance;
}

/// difference · G, or difference · Xᵀ where x keeps its tokens.
inline matrix<float> project(matrix<const float> difference, const second_moment& x, std::vector<float>& into) {
  const auto other = x.sampled() ? x.samples() : x.gram_matrix();
  const auto out = tile_buffers::view(into, difference.rows, other.rows);
  sgemm(CblasNoTrans, CblasTrans, difference.rows, other.rows, difference.cols, difference, other, 0.0f, out);
  return out;
}

/// Σ a·b over two spans, floats summed sixteen at a time, runs of 1024 in double.
inline double dot(const float* a, const float* b, index_t count) {
  double sum = 0;
  vectorised([&] {
    for (index_t first = 0; first < count; first += 1024) {
      const index_t last = min(count, first + 1024);
      float lanes[16] = {};
      index_t i = first;
      for (; i + 16 <= last; i += 16)
        for (index_t lane = 0; lane < 16; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
      float part = 0;
      for (const float lane : lanes) part += lane;
      for (; i < last; ++i) part += a[i] * b[i];
      sum += static_cast<double>(part);
    }
  });
  return sum;
}

/// tr(D·G'·Dᵀ) of a tile of rows, G' the shrunk Gram matrix.
inline double tile_loss(matrix<const float> d, const second_moment& x, std::vector<float>& product) {
  const auto projected = project(d, x, product);
  double loss = 0;
  if (!x.sampled()) {
    for (index_t row = 0; row < d.rows; ++row) loss += dot(d.row(row), projected.row(row), d.cols);
    return loss;
  }
  for (index_t row = 0; row < d.rows; ++row) loss += dot(projected.row(row), projected.row(row), projected.cols);
  loss /= static_cast<double>(max(x.tokens(), index_t(1)));
  double apart = 0;
  for (index_t row = 0; row < d.rows; ++row)
    for (index_t col = 0; col < d.cols; ++col)
      apart += static_cast<double>(d(row, col)) * static_cast<double>(d(row, col)) *
               static_cast<double>(x.diagonal()[static_cast<size_t>(col)]);
  return (1.0 - static_cast<double>(x.shrinkage())) * loss + static_cast<double>(x.shrinkage()) * apart;
}

/// f(first row, rows) for every tile, each on one thread; the sum of what f returns, in tile order.
template <class F>
double sum_over_tiles(index_t rows, F&& f) {
  std::vector<double> parts(static_cast<size_t>(ceil_div(rows, awq_rows)), 0.0);
  single_threaded_blas();
  parallel_for(static_cast<index_t>(parts.size()), [&](index_t tile) {
    const index_t first = tile * awq_rows;
    parts[static_cast<size_t>(tile)] = f(first, min(awq_rows, rows - first));
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

}  // namespace detail

/// tr(ΔW·G'·ΔWᵀ) = E‖ΔW·x‖² of difference (n, k): what the loss of a linear is measured in everywhere in this row.
inline double output_loss(matrix<const float> difference, const second_moment& x) {
  return detail::sum_over_tiles(difference.rows, [&](index_t first, index_t rows) {
    return detail::tile_loss(difference.rows_at(first, rows), x, detail::buffers().product);
  });
}

/// reference::weight_importance.
inline void weight_importance(matrix<const float> w, index_t group_size, double* mean) {
  const index_t width = per_group(group_size).width(w.cols);
  parallel_for(ceil_div(w.cols, width), [&](index_t group) {
    const index_t first = group * width, last = min(w.cols, first + width);
    for (index_t row = 0; row < w.rows; ++row) {
      float largest = 0;
      for (index_t col = first; col < last; ++col) largest = max(largest, abs(observed(w(row, col))));
      for (index_t col = first; col < last; ++col)
        mean[col] += static_cast<double>(abs(observed(w(row, col))) / (largest + 1e-6f));
    }
  });
}

/// s (k) of one candidate, normalised to √(max · min) = 1. @param activation x̄ (k). @param weight w̄ (k).
inline std::vector<float> candidate_scales(const std::vector<float>& activation, const std::vector<float>& weight,
                                           awq_ratio ratio) {
  std::vector<float> s(activation.size());
  float low = 3e38f, high = 0;
  for (size_t j = 0; j < s.size(); ++j) {
    s[j] = awq_scale(activation[j], weight[j], ratio);
    low = min(low, s[j]);
    high = max(high, s[j]);
  }
  if (ratio.identity()) return s;
  const float norm = std::sqrt(low) * std::sqrt(high);
  for (float& scale : s) scale = is_finite(scale / norm) ? scale / norm : 1.0f;
  return s;
}

namespace detail {

/// Q(w·s)/s − w of a tile of rows, ranges fitted to w·s with each channel's error weighted by energy / s².
template <class Scheme, class Method>
matrix<float> rounding_difference(matrix<const float> w, const float* s, const float* energy, group_shape g,
                                  Scheme scheme, Method method, tile_buffers& with) {
  const auto scaled = tile_buffers::view(with.scaled, w.rows, w.cols);
  const auto difference = tile_buffers::view(with.difference, w.rows, w.cols);
  const auto importance = tile_buffers::view(with.importance, 1, w.cols);
  for (index_t col = 0; col < w.cols; ++col) importance.data[col] = energy[col] / (s[col] * s[col]);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) scaled(row, col) = w(row, col) * s[col];
  with.fitted.resize(static_cast<size_t>(w.rows * g.across(w.cols)));
  with.codes.resize(static_cast<size_t>(w.size()));
  const matrix<params> p(with.fitted.data(), w.rows, g.across(w.cols));
  const matrix<uint8_t> q(with.codes.data(), w.rows, w.cols);
  fit(matrix<const float>(scaled), p, g, scheme, method, importance.data);
  quantize(matrix<const float>(scaled), matrix<const params>(p), q, g, scheme);
  dequantize(matrix<const uint8_t>(q), matrix<const params>(p), difference, g, scheme);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) difference(row, col) = difference(row, col) / s[col] - w(row, col);
  return difference;
}

}  // namespace detail

/// What a scale search found.
struct awq_result {
  std::vector<float> scale;    ///< (k), applied to W's columns
  awq_ratio ratio;             ///< of the winner
  double identity_loss = 0;    ///< of rounding W as it is
  double loss = 0;             ///< of the winner; never above identity_loss
  std::vector<double> losses;  ///< of every candidate, NaN where the scale was not usable
};

/// Loss of rounding w · diag(s), ranges fitted to the scaled weights: candidate scales are judged with the ranges they
/// will get.
template <class Scheme, class Method>
double scaled_loss(matrix<const float> w, const float* s, const second_moment& x, index_t group_size, Scheme scheme,
                   Method method) {
  return detail::sum_over_tiles(w.rows, [&](index_t first, index_t rows) {
    auto& with = detail::buffers();
    const auto d = detail::rounding_difference(w.rows_at(first, rows), s, x.diagonal().data(), per_group(group_size),
                                               scheme, method, with);
    return detail::tile_loss(d, x, with.product);
  });
}

/// w ← Q(w · diag(s)) · diag(s)⁻¹, as scaled_loss judges it: for losses that need the whole rounded linear.
template <class Scheme, class Method>
void round_scaled(matrix<float> w, const float* s, const second_moment& x, index_t group_size, Scheme scheme,
                  Method method) {
  detail::sum_over_tiles(w.rows, [&](index_t first, index_t rows) {
    const auto tile = w.rows_at(first, rows);
    const auto d = detail::rounding_difference(matrix<const float>(tile), s, x.diagonal().data(), per_group(group_size),
                                               scheme, method, detail::buffers());
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) tile(row, col) += d(row, col);
    return 0.0;
  });
}

/// Loss of codes q (n, k) with parameters p for w (n, k), which is already scaled by s (k).
template <class Scheme>
double codes_loss(matrix<const float> w, matrix<const uint8_t> q, matrix<const params> p, const float* s,
                  const second_moment& x, index_t group_size, Scheme scheme) {
  return detail::sum_over_tiles(w.rows, [&](index_t first, index_t rows) {
    auto& with = detail::buffers();
    const auto d = detail::tile_buffers::view(with.difference, rows, w.cols);
    dequantize(q.rows_at(first, rows), p.rows_at(first, rows), d, per_group(group_size), scheme);
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) d(row, col) = (d(row, col) - w(first + row, col)) / s[col];
    return detail::tile_loss(d, x, with.product);
  });
}

/// Searches the scale of the linears w (each (n_i, k)) that read x, over awq_candidate(mode, 0 … count − 1).
/// @param loss  loss(s) of a candidate; scaled_loss summed over the linears, or a block's output error.
/// @param fold  makes a candidate what can be stored exactly (awq_folded); may do nothing.
/// A candidate whose loss is not finite never wins.
inline awq_result search_scale(const std::vector<matrix<const float>>& w, const second_moment& x, index_t group_size,
                               duo_scaling mode, int count, const std::function<double(const float*)>& loss,
                               const std::function<void(std::vector<float>&)>& fold = nullptr) {
  std::vector<double> sums(static_cast<size_t>(x.inputs()), 0.0);
  index_t rows = 0;
  for (const auto& linear : w) {
    weight_importance(linear, group_size, sums.data());
    rows += linear.rows;
  }
  std::vector<float> weight(sums.size());
  for (size_t j = 0; j < sums.size(); ++j)
    weight[j] = static_cast<float>(sums[j] / static_cast<double>(max(rows, index_t(1))));

  awq_result best;
  for (int i = 0; i < count; ++i) {
    const awq_ratio ratio = awq_candidate(mode, i, count);
    auto scale = candidate_scales(x.absolute_mean(), weight, ratio);
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

/// Ranges judged under the Gram matrix's diagonal blocks, dᵀ·G_gg·d with d the group's rounding error: each end shrunk
/// by itself over steps² ranges, then finer around each row's best. p (n, ⌈k / g⌉) holds a fit already, which is one of
/// the candidates, so no group ends worse. w (n, k) is already scaled by s.
template <class Scheme>
void clip_under_gram(matrix<const float> w, const float* s, const second_moment& x, index_t group_size, Scheme scheme,
                     matrix<params> p, int steps = 6) {
  const index_t width = per_group(group_size).width(w.cols), groups = ceil_div(w.cols, width);
  const index_t tiles = ceil_div(w.rows, detail::awq_rows);
  detail::single_threaded_blas();
  parallel_for(groups, [&](index_t group) {
    const index_t col = group * width, count = min(width, w.cols - col);
    std::vector<float> block(static_cast<size_t>(count * count)), d_data, y_data;
    const matrix<float> g(block.data(), count, count);
    x.block(col, count, g);
    for (index_t i = 0; i < count; ++i)
      for (index_t j = 0; j < count; ++j) g(i, j) /= s[col + i] * s[col + j];
    for (index_t tile = 0; tile < tiles; ++tile) {
      const index_t first = tile * detail::awq_rows, rows = min(detail::awq_rows, w.rows - first);
      struct state {
        float low = 0, high = 0, at_low = 1, at_high = 1;
        double loss = 0;
        params best{};
      };
      std::vector<state> of(static_cast<size_t>(rows));
      std::vector<params> candidate(static_cast<size_t>(rows));
      std::vector<uint8_t> codes(static_cast<size_t>(rows * count));
      const auto d = detail::tile_buffers::view(d_data, rows, count),
                 y = detail::tile_buffers::view(y_data, rows, count);
      const auto part = w.rows_at(first, rows).cols_at(col, count);
      const auto judge = [&](auto&& take) {
        const matrix<const params> of_row(candidate.data(), rows, 1);
        const matrix<uint8_t> q(codes.data(), rows, count);
        quantize(part, of_row, q, per_channel, scheme);
        dequantize(matrix<const uint8_t>(q), of_row, d, per_channel, scheme);
        for (index_t row = 0; row < rows; ++row)
          for (index_t j = 0; j < count; ++j) d(row, j) -= observed(part(row, j));
        detail::sgemm(CblasNoTrans, CblasNoTrans, rows, count, count, d, g, 0.0f, y);
        for (index_t row = 0; row < rows; ++row) take(row, detail::dot(d.row(row), y.row(row), count));
      };
      for (index_t row = 0; row < rows; ++row) {
        state& r = of[static_cast<size_t>(row)];
        for (index_t j = 0; j < count; ++j) {
          r.low = min(r.low, observed(w(first + row, col + j)));
          r.high = max(r.high, observed(w(first + row, col + j)));
        }
        candidate[static_cast<size_t>(row)] = r.best = p(first + row, group);
      }
      judge([&](index_t row, double loss) { of[static_cast<size_t>(row)].loss = loss; });
      const auto attempt = [&](auto&& ends) {
        std::vector<float> low(static_cast<size_t>(rows)), high(low.size());
        for (index_t row = 0; row < rows; ++row) {
          const auto at = static_cast<size_t>(row);
          ends(of[at], low[at], high[at]);
          candidate[at] = fit(of[at].low * low[at], of[at].high * high[at], scheme);
        }
        judge([&](index_t row, double loss) {
          const auto at = static_cast<size_t>(row);
          if (loss < of[at].loss) of[at] = {of[at].low, of[at].high, low[at], high[at], loss, candidate[at]};
        });
      };
      const float step = 0.5f / static_cast<float>(steps);
      for (int i = 0; i <= steps; ++i)
        for (int j = 0; j <= steps; ++j) {
          if (scheme.symmetric && i != j) continue;
          attempt([&](const state&, float& low, float& high) {
            low = 1 - step * static_cast<float>(i);
            high = 1 - step * static_cast<float>(j);
          });
        }
      for (float finer = step / 2; finer > step / 8; finer /= 2)
        for (int i = -1; i <= 1; ++i)
          for (int j = -1; j <= 1; ++j) {
            if ((i == 0 && j == 0) || (scheme.symmetric && i != j)) continue;
            attempt([&](const state& r, float& low, float& high) {
              low = r.at_low + finer * static_cast<float>(i);
              high = r.at_high + finer * static_cast<float>(j);
            });
          }
      for (index_t row = 0; row < rows; ++row) p(first + row, group) = of[static_cast<size_t>(row)].best;
    }
  });
}

/// Sweeps over the codes q (n, k) of w (n, k), already scaled by s (k), under G' of the unscaled inputs: see awq.hpp.
/// Columns in order, in blocks of 64 whose slopes are updated at once and all others' by a matrix product afterwards.
/// Neither p nor the range changes. Each row's loss only falls, up to rounding in float.
template <class Scheme>
void sweep(matrix<const float> w, const float* s, const second_moment& x, matrix<const params> p, index_t group_size,
           Scheme scheme, int rounds, matrix<uint8_t> q) {
  const index_t k = w.cols, width = per_group(group_size).width(k);
  const auto top = static_cast<float>(max_code(scheme));
  const float apart = x.sampled() ? x.shrinkage() : 0.0f;
  const float kept = x.sampled() ? (1.0f - apart) / static_cast<float>(max(x.tokens(), index_t(1))) : 1.0f;
  detail::sum_over_tiles(w.rows, [&](index_t first, index_t rows) {
    auto& buffers = detail::buffers();
    const auto d = detail::tile_buffers::view(buffers.difference, rows, k);  // (ŵ − w) / s
    const auto g = detail::tile_buffers::view(buffers.block, detail::sweep_cols, detail::sweep_cols);
    std::vector<float> change_data, slope_data;
    const auto change = detail::tile_buffers::view(change_data, rows, detail::sweep_cols);
    const auto slope = detail::tile_buffers::view(slope_data, rows, detail::sweep_cols);
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < k; ++col)
        d(row, col) =
            (dequantize(q(first + row, col), p(first + row, col / width), scheme) - w(first + row, col)) / s[col];
    const auto projected = detail::project(d, x, buffers.product);  // D·G', or D·Xᵀ
    for (int round = 0; round < rounds; ++round)
      for (index_t col = 0; col < k; col += detail::sweep_cols) {
        const index_t count = min(detail::sweep_cols, k - col);
        const auto block = g.cols_at(0, count);
        x.block(col, count, block);
        if (x.sampled())
          detail::sgemm(CblasNoTrans, CblasNoTrans, rows, count, x.tokens(), projected, x.samples().cols_at(col, count),
                        0.0f, slope);
        bool any = false;
        vectorised([&] {
          for (index_t row = 0; row < rows; ++row) {
            float* const r = slope.row(row);
            for (index_t j = 0; j < count; ++j)
              r[j] = x.sampled() ? kept * r[j] + apart * d(row, col + j) * x.diagonal()[static_cast<size_t>(col + j)]
                                 : projected(row, col + j);
            for (index_t i = 0; i < count; ++i) {
              change(row, i) = 0;
              if (!(block(i, i) > 0)) continue;
              const params of = p(first + row, (col + i) / width);
              uint8_t& code = q(first + row, col + i);
              const auto now = static_cast<float>(int32_t(code) - of.zero);
              const float wanted = now - r[i] / block(i, i) * s[col + i] / of.scale + static_cast<float>(of.zero);
              const float next = clamp(round_even(wanted), 0.0f, top);
              if (!(next >= 0.0f) || static_cast<uint8_t>(next) == code) continue;
              code = static_cast<uint8_t>(next);
              const float step = (static_cast<float>(int32_t(code) - of.zero) - now) * of.scale / s[col + i];
              change(row, i) = step;
              any = true;
              for (index_t j = 0; j < count; ++j) r[j] += step * block(i, j);
            }
            for (index_t j = 0; j < count; ++j) d(row, col + j) += change(row, j);
          }
        });
        if (!any) continue;
        if (x.sampled())
          detail::sgemm(CblasNoTrans, CblasTrans, rows, x.tokens(), count, change, x.samples().cols_at(col, count),
                        1.0f, projected);
        else
          detail::sgemm(CblasNoTrans, CblasNoTrans, rows, k, count, change, x.gram_matrix().rows_at(col, count), 1.0f,
                        projected);
      }
    return 0.0;
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END

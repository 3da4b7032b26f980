// SPDX-License-Identifier: Apache-2.0
#include "pass/cuda/linears.cuh"

#include <algorithm>

#include "nibble/host/parallel.hpp"
#include "nibble/kernels/awq.cuh"
#include "nibble/kernels/clip.cuh"
#include "nibble/kernels/fit.cuh"
#include "nibble/kernels/quantize.cuh"
#include "nibble/kernels/sweep.cuh"

namespace nibble::mistral::cuda {
namespace {

/// Bytes of a pinned buffer.
constexpr index_t piece_bytes = index_t(16) << 20;
/// Rows whose products gram_loss and sweep hold at a time, columns that sweep changes at a time, weights of the smallest group.
constexpr index_t loss_rows = 1024, sweep_columns = 64, smallest_group = 32;

}  // namespace

linear_search::linear_search(const search_limits& limits, cudaStream_t in, cublasHandle_t products)
    : in_(in),
      products_(products),
      clock_(in),
      staging_(max(piece_bytes, limits.widest * index_t{sizeof(float)})),
      limits_(limits),
      gram_(limits.widest * limits.panel, "a Gram matrix in bf16"),
      difference_(limits.elements, "differences"),
      tile_(limits.tile, "a tile of weights"),
      scale_(limits.widest, "scales"),
      importance_(limits.widest, "importances"),
      sum_(limits.widest, "importances"),
      losses_(ceil_div(limits.widest, limits.panel), "losses"),
      codes_(limits.tile, "a tile of codes") {}

index_t search_limits::bytes() const {
  const index_t rows = min(loss_rows, ceil_div(elements, widest));
  return index_t{sizeof(bf16)} * (widest * panel + elements) + tile * index_t{sizeof(float) + sizeof(uint8_t)} +
         2 * index_t{sizeof(params)} * ceil_div(tile, smallest_group) +
         max(rows * (2 * widest + sweep_columns) * index_t{sizeof(float)}, workspace) + 16 * widest;
}

/// f(first row, rows, parameters of those rows' groups), a tile at a time.
template <class F>
void linear_search::for_tiles(index_t n, index_t k, index_t group, F f) {
  const index_t most = limits_.rows(n, k), groups = per_group(group).across(k);
  workspace::reserve(parameters_, 2 * most * groups, "parameters of groups");
  for (index_t row = 0; row < n; row += most) {
    const index_t rows = min(most, n - row);
    f(row, rows, matrix<params>(parameters_.data(), rows, groups));
  }
}

void linear_search::use(const input_statistics& x) {
  if (x_ == &x) return;
  x_ = &x;
  if (limits_.panel >= x.k()) round_gram(0, x.k());
}

/// Columns [first, first + count) of the Gram matrix in use, to gram_.
void linear_search::round_gram(index_t first, index_t count) {
  check(kernels::scale_columns(matrix<const float>(x_->gram_matrix().cols_at(first, count)), nullptr,
                               matrix<bf16>(gram_.data(), x_->k(), count), in_),
        "round a Gram matrix");
}

/// And what errors of scaled channels weigh.
const float* linear_search::use_scale(const float* s) {
  std::vector<float> importance(x_->energy.size());
  for (std::size_t i = 0; i < importance.size(); ++i) importance[i] = x_->energy[i] / (s[i] * s[i]);
  copy_there(scale_.data(), s, x_->k());
  copy_there(importance_.data(), importance.data(), x_->k());
  return scale_.data();
}

void linear_search::multiply_rows(const float* of_row, index_t n) {
  rows_multiplied_ = of_row != nullptr;
  if (!rows_multiplied_) return;
  workspace::reserve(of_row_, n, "factors of rows");
  copy_there(of_row_.data(), of_row, n);
}

void linear_search::fit_ranges(matrix<const float> w, matrix<params> p, const packed& as, clip_search clip) {
  const group_shape g = per_group(as.group);
  check(clip == clip_search::none ? kernels::fit(w, p, g, as.scheme, minmax{}, nullptr, in_)
                                  : kernels::fit(w, p, g, as.scheme, ends_search{}, importance_.data(), in_),
        "find ranges");
}

void linear_search::find_ranges(matrix<const float> w, matrix<params> p, const packed& as, clip_search clip) {
  const phase_clock::span span(clock_, phase::ranges);
  fit_ranges(w, p, as, clip);
  if (clip == clip_search::gram)
    check(kernels::clip_under_gram(w, scale_.data(), matrix<const float>(x_->gram_matrix()), as.group, as.scheme, p,
                                   clip_steps, in_),
          "search ranges");
}

void linear_search::choose_nearest(matrix<const float> w, matrix<const params> p, const packed& as,
                                   matrix<uint8_t> codes) {
  check(kernels::quantize(w, p, codes, per_group(as.group), as.scheme, in_), "round weights");
}

/// The differences that codes of a tile of scaled weights make, which begins at `row`.
void linear_search::judge(matrix<const float> w, matrix<const uint8_t> codes, matrix<const params> p, const packed& as,
                          index_t row, const float* of_row) {
  check(kernels::codes_error(w, codes, p, scale_.data(), of_row, differences(row, w.rows, w.cols), as.group, as.scheme,
                             in_),
        "judge codes");
}

/// tr(D·G·Dᵀ) of all differences D (n, k). Waits.
double linear_search::loss(index_t n, index_t k) {
  index_t panels = 0;
  {
    const phase_clock::span span(clock_, phase::scales);
    const index_t wide = min(limits_.panel, k);
    for (index_t first = 0; first < k; first += wide, ++panels) {
      const index_t count = min(wide, k - first);
      if (wide < k) round_gram(first, count);
      workspace_.run(
          [&](void* memory, index_t& bytes) {
            return kernels::gram_loss_of_columns(matrix<const bf16>(differences(0, n, k)),
                                                 matrix<const bf16>(gram_.data(), k, count), first,
                                                 losses_.data() + panels, memory, bytes, products_);
          },
          "judge rounding");
    }
  }
  std::vector<double> losses(static_cast<std::size_t>(panels));
  copy_back(losses.data(), losses_.data(), panels);
  wait();
  double sum = 0;
  for (const double each : losses) sum += each;
  return sum;
}

template <class T>
double linear_search::unscaled_loss(matrix<const T> w, const packed& as) {
  const std::vector<float> ones(static_cast<std::size_t>(w.cols), 1.0f);
  use_scale(ones.data());
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params>) {
    const phase_clock::span span(clock_, phase::scales);
    check(kernels::scaled_error(w.rows_at(row, rows), scale_.data(), differences(row, rows, w.cols), matrix<params>(),
                                as.group, as.scheme, in_),
          "round to nearest");
  });
  return loss(w.rows, w.cols);
}

template <class T>
void linear_search::add_importance(matrix<const T> w, const packed& as, double* sum) {
  copy_there(sum_.data(), sum, w.cols);
  {
    const phase_clock::span span(clock_, phase::scales);
    workspace_.run(
        [&](void* memory, index_t& bytes) {
          return kernels::weight_importance(w, as.group, sum_.data(), memory, bytes, in_);
        },
        "weigh weights");
  }
  copy_back(sum, sum_.data(), w.cols);
  wait();
}

template <class T>
double linear_search::scaled_loss(matrix<const T> w, const packed& as, clip_search clip, const float* s) {
  find_differences(w, as, clip, s);
  return loss(w.rows, w.cols);
}

template <class T>
void linear_search::find_differences(matrix<const T> w, const packed& as, clip_search clip, const float* s,
                                     index_t first) {
  use_scale(s);
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params> ranges) {
    const phase_clock::span span(clock_, phase::scales);
    const matrix<float> scaled(tile_.data(), rows, w.cols);
    const matrix<uint8_t> codes(codes_.data(), rows, w.cols);
    check(kernels::scale_columns(w.rows_at(row, rows), scale_.data(), scaled, in_), "scale weights");
    fit_ranges(scaled, ranges, as, clip);
    choose_nearest(scaled, ranges, as, codes);
    judge(scaled, codes, ranges, as, first + row, nullptr);
  });
}

chosen_codes linear_search::choose_codes(matrix<const float> w, const packed& as, clip_search clip, int sweeps,
                                         const std::vector<float>& s) {
  const matrix<const float> g = x_->gram_matrix();
  return choose_codes(w, as, s, [&](index_t, matrix<float> part, matrix<params> ranges, matrix<uint8_t> codes) {
    const matrix<const float> weights = part;
    find_ranges(weights, ranges, as, clip);
    const phase_clock::span span(clock_, phase::codes);
    choose_nearest(weights, ranges, as, codes);
    if (sweeps == 0) return;
    workspace_.run(
        [&](void* memory, index_t& bytes) {
          return kernels::sweep(weights, scale_.data(), g, matrix<const params>(ranges), as.group, as.scheme, sweeps,
                                codes, memory, bytes, products_);
        },
        "improve codes");
  });
}

chosen_codes linear_search::choose_codes(matrix<const float> w, const packed& as, const std::vector<float>& s,
                                         const tile_rounding& round, const index_t* column) {
  chosen_codes out;
  quantized_linear& q = out.q = quantized_linear::blank(w.rows, w.cols, as.group);
  std::vector<params> whole(q.parameters.size());
  use_scale(s.data());
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params> ranges) {
    const matrix<float> part(tile_.data(), rows, w.cols);
    const matrix<uint8_t> codes(codes_.data(), rows, w.cols);
    const matrix<params> widest(ranges.data + ranges.size(), ranges.rows, ranges.cols);
    upload(part.data, w.rows_at(row, rows), column);
    {
      const phase_clock::span span(clock_, phase::ranges);
      check(kernels::fit(matrix<const float>(part), widest, per_group(as.group), as.scheme, minmax{}, nullptr, in_),
            "find ranges");
    }
    round(row, part, ranges, codes);
    {
      const phase_clock::span span(clock_, phase::codes);
      judge(part, codes, ranges, as, row, rows_multiplied_ ? of_row_.data() + row : nullptr);
    }
    const phase_clock::span span(clock_, phase::copy);
    copy_back(q.codes.data() + row * w.cols, codes.data, codes.size());
    copy_back(q.parameters.data() + row * q.groups, ranges.data, ranges.size());
    copy_back(whole.data() + row * q.groups, widest.data, ranges.size());
  });
  out.loss = loss(w.rows, w.cols);
  out.range = compare_ranges(q.param_matrix(), {whole.data(), q.n, q.groups});
  return out;
}

template <class T>
void linear_search::upload(T* to, matrix<const float> w, const index_t* column) {
  wait();  // for what reads `to`
  staging_.copy(to, w.rows, w.cols * index_t{sizeof(T)}, [&](index_t first, index_t count, void* buffer) {
    constexpr index_t rows = 64;
    host::parallel_for(ceil_div(count, rows), [&](index_t tile) {
      const index_t begin = tile * rows, end = min(begin + rows, count);
      for (index_t row = begin; row < end; ++row) {
        const float* const from = w.row(first + row);
        T* const out = static_cast<T*>(buffer) + row * w.cols;
        for (index_t i = 0; i < w.cols; ++i) out[i] = static_cast<T>(from[column == nullptr ? i : column[i]]);
      }
    });
  });
  arrived_.record(staging_.in());
  const phase_clock::span span(clock_, phase::copy);
  arrived_.hold(in_);
}

template double linear_search::unscaled_loss(matrix<const float>, const packed&);
template double linear_search::unscaled_loss(matrix<const bf16>, const packed&);
template void linear_search::add_importance(matrix<const float>, const packed&, double*);
template void linear_search::add_importance(matrix<const bf16>, const packed&, double*);
template double linear_search::scaled_loss(matrix<const float>, const packed&, clip_search, const float*);
template double linear_search::scaled_loss(matrix<const bf16>, const packed&, clip_search, const float*);
template void linear_search::find_differences(matrix<const float>, const packed&, clip_search, const float*, index_t);
template void linear_search::find_differences(matrix<const bf16>, const packed&, clip_search, const float*, index_t);
template void linear_search::upload(float*, matrix<const float>, const index_t*);
template void linear_search::upload(bf16*, matrix<const float>, const index_t*);

}  // namespace nibble::mistral::cuda

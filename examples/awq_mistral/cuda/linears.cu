// SPDX-License-Identifier: Apache-2.0
#include "cuda/linears.cuh"

#include <cstring>

#include "nibble/host/parallel.hpp"
#include "nibble/kernels/awq.cuh"
#include "nibble/kernels/clip.cuh"
#include "nibble/kernels/fit.cuh"
#include "nibble/kernels/quantize.cuh"
#include "nibble/kernels/sweep.cuh"

namespace nibble::mistral::cuda {
namespace {

/// Weights of a tile of rows at most, steps that each end of a range is searched by (host's), bytes of a pinned buffer.
constexpr index_t tile_goal = index_t(1) << 25, piece_bytes = index_t(16) << 20;
constexpr int clip_steps = 6;
/// Rows whose products gram_loss and sweep hold at a time, columns that sweep changes at a time, weights of the smallest group.
constexpr index_t loss_rows = 1024, sweep_columns = 64, smallest_group = 32;

index_t tile_elements(index_t elements, index_t widest) {
  return min(elements, max(tile_goal, widest));
}

}  // namespace

linear_search::linear_search(index_t elements, index_t widest, cudaStream_t in, cublasHandle_t products)
    : in_(in),
      products_(products),
      clock_(in),
      staging_(max(piece_bytes, widest * index_t{sizeof(float)})),
      gram_(widest * widest, "a Gram matrix in bf16"),
      difference_(tile_elements(elements, widest), "a tile of differences"),
      tile_(tile_elements(elements, widest), "a tile of weights"),
      scale_(widest, "scales"),
      importance_(widest, "importances"),
      sum_(widest, "importances"),
      codes_(tile_elements(elements, widest), "a tile of codes") {}

index_t linear_search::bytes(index_t elements, index_t widest) {
  constexpr index_t of_weight = sizeof(bf16) + sizeof(float) + sizeof(uint8_t);
  const index_t tile = tile_elements(elements, widest), rows = min(loss_rows, ceil_div(elements, widest));
  return index_t{sizeof(bf16)} * widest * widest + tile * of_weight +
         2 * index_t{sizeof(params)} * ceil_div(tile, smallest_group) +
         rows * (2 * widest + sweep_columns) * index_t{sizeof(float)} + 16 * widest;
}

/// f(first row, rows, parameters of those rows' groups), a tile at a time.
template <class F>
void linear_search::for_tiles(index_t n, index_t k, index_t group, F f) {
  const index_t most = max(index_t(1), min(n, tile_.size() / k)), groups = per_group(group).across(k);
  workspace::reserve(parameters_, 2 * most * groups, "parameters of groups");
  workspace::reserve(losses_, ceil_div(n, most), "losses");
  for (index_t row = 0; row < n; row += most) {
    const index_t rows = min(most, n - row);
    f(row, rows, matrix<params>(parameters_.data(), rows, groups));
  }
}

void linear_search::use(const input_statistics& x) {
  if (x_ == &x) return;
  x_ = &x;
  check(kernels::scale_columns(matrix<const float>(x.gram_matrix()), nullptr, matrix<bf16>(gram_.data(), x.k(), x.k()),
                               in_),
        "round a Gram matrix");
}

/// s, and what errors of scaled channels weigh, on the device.
void linear_search::use_scale(const float* s) {
  std::vector<float> importance(x_->energy.size());
  for (std::size_t i = 0; i < importance.size(); ++i) importance[i] = x_->energy[i] / (s[i] * s[i]);
  copy_there(scale_.data(), s, x_->k());
  copy_there(importance_.data(), importance.data(), x_->k());
  wait();  // `importance` ends here
}

void linear_search::fit_ranges(matrix<const float> w, matrix<params> p, const packed& as, clip_search clip) {
  const group_shape g = per_group(as.group);
  check(clip == clip_search::none ? kernels::fit(w, p, g, as.scheme, minmax{}, nullptr, in_)
                                  : kernels::fit(w, p, g, as.scheme, ends_search{}, importance_.data(), in_),
        "find ranges");
}

void linear_search::choose_nearest(matrix<const float> w, matrix<const params> p, const packed& as,
                                   matrix<uint8_t> codes) {
  check(kernels::quantize(w, p, codes, per_group(as.group), as.scheme, in_), "round weights");
}

/// Adds what the codes of a tile of scaled weights lose.
void linear_search::judge(matrix<const float> w, matrix<const uint8_t> codes, matrix<const params> p,
                          const packed& as) {
  const matrix<bf16> difference(difference_.data(), w.rows, w.cols);
  check(kernels::codes_error(w, codes, p, scale_.data(), difference, as.group, as.scheme, in_), "judge codes");
  add_loss(difference);
}

/// Adds tr(D·G·Dᵀ) of a tile's differences D to what total_loss() will tell.
void linear_search::add_loss(matrix<const bf16> difference) {
  const matrix<const bf16> g(gram_.data(), x_->k(), x_->k());
  double* const loss = losses_.data() + judged_++;
  workspace_.run(
      [&](void* memory, index_t& bytes) { return kernels::gram_loss(difference, g, loss, memory, bytes, products_); },
      "judge rounding");
}

double linear_search::total_loss() {
  std::vector<double> losses(static_cast<std::size_t>(judged_));
  copy_back(losses.data(), losses_.data(), judged_);
  wait();
  judged_ = 0;
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return sum;
}

double linear_search::unscaled_loss(matrix<const float> w, const packed& as) {
  const std::vector<float> ones(static_cast<std::size_t>(w.cols), 1.0f);
  use_scale(ones.data());
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params>) {
    const phase_clock::span span(clock_, phase::scales);
    const matrix<bf16> difference(difference_.data(), rows, w.cols);
    check(kernels::scaled_error(w.rows_at(row, rows), scale_.data(), difference, matrix<params>(), as.group, as.scheme,
                                in_),
          "round to nearest");
    add_loss(difference);
  });
  return total_loss();
}

void linear_search::add_importance(matrix<const float> w, const packed& as, double* sum) {
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

double linear_search::scaled_loss(matrix<const float> w, const packed& as, clip_search clip, const float* s) {
  use_scale(s);
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params> ranges) {
    const phase_clock::span span(clock_, phase::scales);
    const matrix<float> scaled(tile_.data(), rows, w.cols);
    const matrix<uint8_t> codes(codes_.data(), rows, w.cols);
    check(kernels::scale_columns(w.rows_at(row, rows), scale_.data(), scaled, in_), "scale weights");
    fit_ranges(scaled, ranges, as, clip);
    choose_nearest(scaled, ranges, as, codes);
    judge(scaled, codes, ranges, as);
  });
  return total_loss();
}

chosen_codes linear_search::choose_codes(matrix<const float> w, const packed& as, clip_search clip, int sweeps,
                                         const std::vector<float>& s) {
  const matrix<const float> g = x_->gram_matrix();
  chosen_codes out;
  quantized_linear& q = out.q = quantized_linear::blank(w.rows, w.cols, as.group);
  std::vector<params> whole(q.parameters.size());
  use_scale(s.data());
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params> ranges) {
    const matrix<float> to(tile_.data(), rows, w.cols);
    const matrix<const float> part = to;
    const matrix<uint8_t> codes(codes_.data(), rows, w.cols);
    const matrix<params> widest(ranges.data + ranges.size(), ranges.rows, ranges.cols);
    upload(to.data, w.rows_at(row, rows));
    {
      const phase_clock::span span(clock_, phase::ranges);
      fit_ranges(part, ranges, as, clip);
      if (clip == clip_search::gram)
        check(kernels::clip_under_gram(part, scale_.data(), g, as.group, as.scheme, ranges, clip_steps, in_),
              "search ranges");
      check(kernels::fit(part, widest, per_group(as.group), as.scheme, minmax{}, nullptr, in_), "find ranges");
    }
    {
      const phase_clock::span span(clock_, phase::codes);
      choose_nearest(part, ranges, as, codes);
      if (sweeps > 0)
        workspace_.run(
            [&](void* memory, index_t& bytes) {
              return kernels::sweep(part, scale_.data(), g, matrix<const params>(ranges), as.group, as.scheme, sweeps,
                                    codes, memory, bytes, products_);
            },
            "improve codes");
      judge(part, codes, ranges, as);
    }
    const phase_clock::span span(clock_, phase::copy);
    copy_back(q.codes.data() + row * w.cols, codes.data, codes.size());
    copy_back(q.parameters.data() + row * q.groups, ranges.data, ranges.size());
    copy_back(whole.data() + row * q.groups, widest.data, ranges.size());
  });
  out.loss = total_loss();
  out.range = compare_ranges(q.param_matrix(), {whole.data(), q.n, q.groups});
  return out;
}

void linear_search::upload(float* to, matrix<const float> w) {
  wait();  // for what reads `to`
  staging_.copy(to, w.rows, w.cols * index_t{sizeof(float)}, [&](index_t first, index_t count, void* buffer) {
    constexpr index_t rows = 64;
    host::parallel_for(ceil_div(count, rows), [&](index_t tile) {
      const index_t row = tile * rows, n = min(rows, count - row);
      std::memcpy(static_cast<float*>(buffer) + row * w.cols, w.row(first + row),
                  static_cast<std::size_t>(n * w.cols) * sizeof(float));
    });
  });
  arrived_.record(staging_.in());
  const phase_clock::span span(clock_, phase::copy);
  arrived_.hold(in_);
}

}  // namespace nibble::mistral::cuda

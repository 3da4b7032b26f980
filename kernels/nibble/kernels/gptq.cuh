// SPDX-License-Identifier: Apache-2.0
/// @file
/// GPTQ on a GPU: codes of all rows, a block of up to 128 columns after another. One product brings what the errors of all columns
/// before are worth to a block; within it a warp takes a row through the columns. Needs cuBLAS.
#pragma once

#include "nibble/kernels/blas.cuh"
#include "nibble/kernels/clip.cuh"
#include "nibble/kernels/detail/gptq.cuh"
#include "nibble/kernels/fit.cuh"
#include "nibble/kernels/hessian.cuh"
#include "nibble/kernels/tuning/gptq.cuh"
#include "nibble/kernels/workspace.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Steps that the search of gptq_ranges::gram takes of either end, as host::clip_steps.
inline constexpr int gptq_clip_steps = 6;

/// Where the groups of an order end, as a launcher sees it.
struct order_cuts {
  index_t k, width;
  const index_t* parameters;  ///< in host memory, or null

  index_t group(index_t i) const noexcept { return parameters == nullptr ? i / width : parameters[i]; }
  bool starts(index_t i) const noexcept { return i == 0 || group(i) != group(i - 1); }
  index_t group_end(index_t first) const noexcept {
    index_t end = first + 1;
    while (end < k && group(end) == group(first)) ++end;
    return end;
  }
  /// Whole groups as many as 128 columns hold, or one, or a part of one.
  index_t block_end(index_t first, bool several) const noexcept {
    index_t end = group_end(first);
    while (several && end < k && group_end(end) - first <= factor_block) end = group_end(end);
    return min(end, first + factor_block);
  }
};

/// Whether `order` is one of k columns in `groups` groups. @returns bad_group where ranges are to be found of groups that are not
/// neighbours.
inline status check_order(const solving_order& order, index_t k, index_t groups, bool given) noexcept {
  if ((order.column == nullptr) != (order.parameters == nullptr)) return status::bad_shape;
  if (!aligned(order.column) || !aligned(order.parameters) || !aligned(order.on_host)) return status::misaligned;
  if (given || order.parameters == nullptr) return status::ok;
  if (order.on_host == nullptr) return status::bad_shape;
  const order_cuts cuts{k, 1, order.on_host};
  index_t found = 0;
  for (index_t i = 0; i < k; ++i) {
    if (order.on_host[i] < 0 || order.on_host[i] >= groups) return status::bad_shape;
    found += cuts.starts(i) ? 1 : 0;
  }
  return found == groups ? status::ok : status::bad_group;
}

/// How a caller's workspace is divided.
struct gptq_workspace {
  index_t n, k, rows, wide;  ///< wide: columns of a group whose range is not found as its codes are; 0 where none is
  bool gram;

  index_t floats(index_t count) const noexcept { return round_up(count * index_t{sizeof(float)}, workspace_alignment); }
  index_t stride() const noexcept { return round_up(k, 4); }
  index_t bytes() const noexcept {
    return round_up(n * index_t{sizeof(double)}, workspace_alignment) + floats(rows * stride()) +
           floats(rows * factor_block) + floats(rows * round_up(wide, 4)) + floats(wide) +
           (gram ? floats(wide) + 2 * floats(wide * wide) : 0);
  }
};

/// A launcher's view of rows that are being solved.
template <class Tuned, class Scheme>
class gptq_rows {
 public:
  gptq_rows(matrix<const float> w, matrix<const float> l, const solving_order& order, order_cuts cuts,
            gptq_ranges ranges, Scheme scheme, matrix<params> p, matrix<uint8_t> q, const gptq_workspace& room,
            void* memory, index_t first_row, cublasHandle_t blas, cudaStream_t stream) noexcept
      : w_(w),
        l_(l),
        order_(order),
        cuts_(cuts),
        ranges_(ranges),
        scheme_(scheme),
        p_(p),
        q_(q),
        blas_(blas),
        stream_(stream) {
    auto* at = static_cast<char*>(memory);
    const auto take = [&](index_t rows, index_t cols) {
      auto* const floats = reinterpret_cast<float*>(at);
      at += room.floats(rows * cols);
      return floats;
    };
    loss_ = reinterpret_cast<double*>(at) + first_row;
    at += round_up(room.n * index_t{sizeof(double)}, workspace_alignment);
    difference_ = {take(room.rows, room.stride()), w.rows, room.k, room.stride()};
    carried_ = {take(room.rows, factor_block), w.rows, factor_block};
    left_ = {take(room.rows, round_up(room.wide, 4)), w.rows, room.wide, round_up(room.wide, 4)};
    importance_ = take(1, room.wide);
    if (!room.gram) return;
    ones_ = take(1, room.wide);
    lower_ = take(room.wide, room.wide);
    cost_ = take(room.wide, room.wide);
  }

  status solve() {
    const bool given = ranges_ == gptq_ranges::given, fused = !given && left_.cols == 0;
    status done = status::ok;
    for (index_t first = 0, end = 0; first < w_.cols && done == status::ok; first = end) {
      end = given ? min(w_.cols, first + factor_block) : cuts_.block_end(first, fused);
      const bool find = !given && !fused && cuts_.starts(first);
      if (find) done = find_range(first, cuts_.group_end(first));
      if (done == status::ok && !(find && end == cuts_.group_end(first))) done = carry(first, end - first);
      if (done == status::ok) done = fused ? choose<true>(first, end - first) : choose<false>(first, end - first);
    }
    return done;
  }

 private:
  matrix<const float> block_of_factor(index_t first, index_t count) const {
    return l_.rows_at(first, count).cols_at(first, count);
  }
  column_block block(index_t first, index_t count) const {
    return {first, static_cast<int>(count), order_.column, order_.parameters, cuts_.width};
  }
  matrix<const float> carried(index_t first, index_t count) const {
    return first == 0 ? matrix<const float>() : matrix<const float>(carried_.cols_at(0, count));
  }

  /// carried ← Σ_{j<first} (w_j − ŵ_j)·L_ij for i in [first, first + count).
  status carry(index_t first, index_t count) const {
    if (first == 0) return status::ok;
    return matmul(blas_, matrix<const float>(difference_.cols_at(0, first)), reading::plain,
                  l_.rows_at(first, count).cols_at(0, first), reading::transposed, 0.0f, carried_.cols_at(0, count));
  }

  template <bool Fit>
  status choose(index_t first, index_t count) const {
    constexpr auto policy = Tuned::value;
    return launch(codes_kernel<Tuned, Fit, Scheme>, ceil_div(w_.rows, policy.threads / 32), policy.threads, 0, stream_,
                  w_, carried(first, count), block_of_factor(first, count), block(first, count), scheme_, p_, q_,
                  difference_.cols_at(first, count), loss_);
  }

  /// Parameters of columns [first, end), a group.
  status find_range(index_t first, index_t end) const {
    constexpr auto policy = Tuned::value;
    status done = status::ok;
    for (index_t part = first; part < end && done == status::ok; part += factor_block) {
      const index_t count = min(index_t{factor_block}, end - part);
      done = carry(part, count);
      if (done == status::ok)
        done = launch(give_way_kernel<Tuned>, ceil_div(w_.rows, policy.threads / 32), policy.threads, 0, stream_, w_,
                      carried(part, count), block_of_factor(part, count), block(part, count),
                      left_.cols_at(part - first, count), difference_.cols_at(part, count));
    }
    if (done != status::ok) return done;
    const index_t cols = end - first;
    const matrix<const float> left = left_.cols_at(0, cols);
    const matrix<params> p = p_.cols_at(cuts_.group(first), 1);
    if (ranges_ == gptq_ranges::minmax) return fit(left, p, per_channel, scheme_, minmax{}, nullptr, stream_);
    const bool gram = ranges_ == gptq_ranges::gram;
    const matrix<float> lower = gram ? matrix<float>(lower_, cols, cols) : matrix<float>();
    done = launch(group_cost_kernel<Tuned>, ceil_div(cols, policy.threads), policy.threads, 0, stream_,
                  block_of_factor(first, cols), importance_, lower, ones_);
    if (done == status::ok)
      done = fit(left, p, per_channel, scheme_, ends_search{}, static_cast<const float*>(importance_), stream_);
    if (done != status::ok || !gram) return done;
    const matrix<float> cost(cost_, cols, cols);
    done = matmul(blas_, matrix<const float>(lower), reading::transposed, matrix<const float>(lower), reading::plain,
                  0.0f, cost);
    if (done != status::ok) return done;
    return clip_under_gram(left, static_cast<const float*>(ones_), matrix<const float>(cost), -1, scheme_, p,
                           gptq_clip_steps, stream_);
  }

  matrix<const float> w_, l_;
  const solving_order& order_;
  order_cuts cuts_;
  gptq_ranges ranges_;
  Scheme scheme_;
  matrix<params> p_;
  matrix<uint8_t> q_;
  cublasHandle_t blas_;
  cudaStream_t stream_;
  double* loss_;
  matrix<float> difference_;  ///< w − ŵ in the order of solving; −y of a group whose range is being found
  matrix<float> carried_, left_;
  float *importance_ = nullptr, *ones_ = nullptr, *lower_ = nullptr, *cost_ = nullptr;
};

}  // namespace detail

/// host::gptq in the stream of `blas`: codes q (n, k), and, unless `ranges` is given, parameters p (n, ⌈k / group_size⌉) of w (n, k), whose
/// columns are scaled by what the factor l (k, k) was made with. *loss, in device memory, unless null, ← tr(ΔW·H·ΔWᵀ) under the damped
/// Hessian in its unit. Within a block of columns every operation is rounded as the host's; products between blocks, and so codes, differ
/// from the host's where a target lies within their rounding of a tie. All four kinds of ranges; min-max of groups of up to 128 in
/// the same kernel as the codes. The workspace holds errors of 16384 rows, what is left of a group's weights and its cost.
/// @pre w is finite; a row that is not has codes that mean nothing, and others do not notice.
/// @returns bad_bits, bad_group, also for ranges of groups that are not neighbours in `order`, bad_shape, misaligned, too_large,
/// workspace_too_small, launch_failed, unsupported_device.
template <class Scheme>
status gptq(matrix<const float> w, matrix<const float> l, const solving_order& order, index_t group_size,
            gptq_ranges ranges, Scheme scheme, matrix<params> p, matrix<uint8_t> q, double* loss, void* workspace,
            index_t& workspace_bytes, cublasHandle_t blas) {
  if (scheme.bits < 1 || scheme.bits > 8) return status::bad_bits;
  const status grouped = detail::check_groups(p, w.rows, w.cols, per_group(group_size));
  if (grouped != status::ok) return grouped;
  if (!detail::well_formed(w) || !detail::well_formed(q) || q.rows != w.rows || q.cols != w.cols)
    return status::bad_shape;
  if (!detail::well_formed(l) || l.rows != w.cols || l.cols != w.cols) return status::bad_shape;
  if (!detail::aligned(w) || !detail::aligned(l) || !detail::aligned(loss)) return status::misaligned;
  const bool given = ranges == gptq_ranges::given;
  const status ordered = detail::check_order(order, w.cols, p.cols, given);
  if (ordered != status::ok) return ordered;
  return dispatch(tuning::gptq{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    const index_t width = per_group(group_size).width(w.cols), cols = min(width, w.cols);
    const bool apart = !given && (ranges != gptq_ranges::minmax || cols > detail::factor_block);
    const detail::gptq_workspace room{w.rows, w.cols, min(w.rows, index_t{policy.rows}), apart ? cols : 0,
                                      ranges == gptq_ranges::gram};
    const status enough = detail::check_workspace(workspace, workspace_bytes, room.bytes());
    if (enough != status::ok || workspace == nullptr) return enough;
    cudaStream_t stream = nullptr;
    status done = detail::stream_of(blas, stream);
    if (done != status::ok) return done;
    const auto of_rows = static_cast<size_t>(w.rows) * sizeof(double);
    if (of_rows > 0 && cudaMemsetAsync(workspace, 0, of_rows, stream) != cudaSuccess) return status::launch_failed;
    for (index_t row = 0; row < w.rows && done == status::ok; row += room.rows) {
      const index_t count = min(room.rows, w.rows - row);
      done =
          detail::gptq_rows<decltype(tuned), Scheme>(
              w.rows_at(row, count), l, order, {w.cols, width, order.parameters == nullptr ? nullptr : order.on_host},
              ranges, scheme, p.rows_at(row, count), q.rows_at(row, count), room, workspace, row, blas, stream)
              .solve();
    }
    if (done != status::ok || loss == nullptr) return done;
    return launch(detail::sum_kernel<decltype(tuned)>, 1, policy.threads, 0, stream,
                  static_cast<const double*>(workspace), w.rows, loss);
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END

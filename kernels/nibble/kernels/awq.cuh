// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's search on a GPU: importance of weights, what a candidate scale loses, and the loss of codes. Scales themselves are made on
/// the host, by host::candidate_scales and awq_folded: k powers a candidate are nothing beside n·k² products, and CPU and GPU
/// then try the very same ones. A candidate costs one pass over W (scaled_error) and one product (gram_loss). Needs cuBLAS.
#pragma once

#include "nibble/kernels/blas.cuh"
#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/awq.cuh"
#include "nibble/kernels/detail/observe.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/awq.cuh"
#include "nibble/kernels/tuning/observe.cuh"
#include "nibble/kernels/workspace.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Whether a group size is one, and how wide its groups of k columns are.
inline status check_width(index_t group_size, index_t k, index_t& width) noexcept {
  if (group_size == 0 || group_size < -1) return status::bad_group;
  width = per_group(group_size).width(k);
  return status::ok;
}

/// Whether two matrices have one shape, and s, of their columns, is there.
template <class T, class To>
status check_scaled(matrix<T> w, const float* s, matrix<To> out) noexcept {
  if (!well_formed(w) || !well_formed(out) || w.rows != out.rows || w.cols != out.cols) return status::bad_shape;
  if (s == nullptr && !w.empty()) return status::bad_shape;
  return aligned(w) && aligned(out) && aligned(s) ? status::ok : status::misaligned;
}

/// Elements that one access of 16 bytes moves of the wider of two types.
template <class T, class To>
inline constexpr int items_of = 16 / int{sizeof(T) < sizeof(To) ? sizeof(To) : sizeof(T)};

inline bool scales_aligned(const float* s) noexcept {
  return reinterpret_cast<size_t>(s) % 16 == 0;
}

/// start(items, lanes, blocks) for a team of lanes a group: by chunks of Items where `wide`, else by single elements.
template <int Items, class F>
status launch_teams(index_t rows, index_t cols, index_t width, int threads, bool wide, F start) {
  const auto by = [&](auto items) {
    const index_t lanes = power_of_two(ceil_div(min(width, cols), items.value), 32), groups = ceil_div(cols, width);
    if (rows > (index_t{1} << 62) / groups) return status::too_large;
    return start(items, static_cast<int>(lanes), ceil_div(rows * groups, threads / lanes));
  };
  return wide && width % Items == 0 ? by(constant<Items>{}) : by(constant<1>{});
}

/// start(items, grid, block, blocks across) for a thread a chunk of a row.
template <int Items, class F>
status launch_chunks(index_t rows, index_t cols, int threads, bool wide, F start) {
  const auto by = [&](auto items) {
    const index_t chunks = ceil_div(cols, items.value), across_threads = power_of_two(chunks, threads);
    const index_t across = ceil_div(chunks, across_threads), down = ceil_div(rows, threads / across_threads);
    if (across > 2147483647 / down) return status::too_large;
    return start(items, extent3(across * down), extent3(across_threads, threads / across_threads),
                 static_cast<unsigned>(across));
  };
  return wide ? by(constant<Items>{}) : by(constant<1>{});
}

}  // namespace detail

/// reference::weight_importance on device pointers, asynchronous in `stream`: sum (k) += Σ over the rows of w (n, k) of
/// |w| / (max |w| of its group + 1e-6). Terms are rounded to float, as host's; sums in double over tiles of 256 rows, tiles in order.
/// @error (2·2⁻²⁴ + n·2⁻⁵³) of the sum.
/// @returns bad_group, bad_shape, misaligned, workspace_too_small, or what launch says.
template <class T>
status weight_importance(matrix<const T> w, index_t group_size, double* sum, void* workspace, index_t& workspace_bytes,
                         cudaStream_t stream) {
  index_t width = 0;
  const status grouped = detail::check_width(group_size, w.cols, width);
  if (grouped != status::ok) return grouped;
  if (!detail::well_formed(w) || (sum == nullptr && w.cols > 0)) return status::bad_shape;
  if (!detail::aligned(w) || !detail::aligned(sum)) return status::misaligned;
  return dispatch(tuning::awq{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    constexpr int wide = 16 / int{sizeof(T)};
    const index_t tiles = ceil_div(w.rows, policy.rows), groups = ceil_div(w.cols, width);
    const index_t sums = tiles * w.cols * static_cast<index_t>(sizeof(double));
    const status checked = detail::check_workspace(workspace, workspace_bytes,
                                                   sums + w.rows * groups * static_cast<index_t>(sizeof(float)));
    if (checked != status::ok || workspace == nullptr || w.empty()) return checked;
    const matrix<double> partial(static_cast<double*>(workspace), tiles, w.cols);
    const matrix<float> largest(reinterpret_cast<float*>(static_cast<char*>(workspace) + sums), w.rows, groups);
    const bool whole = detail::aligned(w, wide);
    const auto maxima = [&](auto items, int lanes, index_t blocks) {
      return launch(detail::group_maximum_kernel<decltype(tuned), items.value, T>, blocks, policy.threads, 0, stream, w,
                    width, lanes, largest);
    };
    status done = detail::launch_teams<wide>(w.rows, w.cols, width, policy.threads, whole, maxima);
    if (done != status::ok) return done;
    const auto importance = [&](auto items) {
      const index_t across = ceil_div(w.cols, policy.across * items.value);
      if (across > 2147483647 / tiles) return status::too_large;
      return launch(detail::importance_kernel<decltype(tuned), items.value, T>, across * tiles,
                    extent3(policy.across, policy.down), 0, stream, w, matrix<const float>(largest), width, partial,
                    static_cast<unsigned>(across));
    };
    done = whole ? importance(constant<wide>{}) : importance(constant<1>{});
    if (done != status::ok) return done;
    constexpr index_t threads = policy.across * policy.down;
    return launch(detail::fold_kernel<decltype(tuned)>, ceil_div(w.cols, threads), threads, 0, stream,
                  matrix<const double>(partial), sum);
  });
}

/// out (n, k) ← w · diag(s), each product rounded to float, then to what `out` stores; only converted where s is null.
template <class T, class To>
status scale_columns(matrix<const T> w, const float* s, matrix<To> out, cudaStream_t stream) {
  const float one = 1.0f;
  const status checked = detail::check_scaled(w, s == nullptr ? &one : s, out);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::awq{}, [&](auto tuned) {
    constexpr int wide = detail::items_of<T, To>;
    const auto start = [&](auto items, extent3 grid, extent3 block, unsigned across) {
      return launch(detail::scale_columns_kernel<decltype(tuned), items.value, T, To>, grid, block, 0, stream, w, s,
                    out, across);
    };
    const bool whole = detail::aligned(w, wide) && detail::aligned(out, wide) && detail::scales_aligned(s);
    return detail::launch_chunks<wide>(w.rows, w.cols, tuned.value.threads, whole, start);
  });
}

/// difference (n, k) ← Q(w · diag(s)) · diag(s)⁻¹ − w with ranges fitted by min-max to the scaled weights, as host::scaled_loss has it, bit
/// for bit before `difference` stores it; p, unless its data is null, ← the parameters (n, ⌈k / group_size⌉).
/// @pre s positive and finite. @returns bad_bits, bad_group, bad_shape, misaligned, or what launch says.
template <class Scheme, class T, class To>
status scaled_error(matrix<const T> w, const float* s, matrix<To> difference, matrix<params> p, index_t group_size,
                    Scheme scheme, cudaStream_t stream) {
  index_t width = 0;
  if (scheme.bits < 1 || scheme.bits > 8) return status::bad_bits;
  const status grouped = detail::check_width(group_size, w.cols, width);
  if (grouped != status::ok) return grouped;
  const status checked = detail::check_scaled(w, s, difference);
  if (checked != status::ok) return checked;
  if (p.data != nullptr) {
    const status fits = detail::check_groups(p, w.rows, w.cols, per_group(group_size));
    if (fits != status::ok) return fits;
  }
  if (w.empty()) return status::ok;
  return dispatch(tuning::awq{}, [&](auto tuned) {
    constexpr int wide = detail::items_of<T, To>;
    const auto start = [&](auto items, int lanes, index_t blocks) {
      return launch(detail::scaled_error_kernel<decltype(tuned), items.value, Scheme, T, To>, blocks,
                    tuned.value.threads, 0, stream, w, s, difference, p, width, lanes, scheme);
    };
    const bool whole = detail::aligned(w, wide) && detail::aligned(difference, wide) && detail::scales_aligned(s);
    return detail::launch_teams<wide>(w.rows, w.cols, width, tuned.value.threads, whole, start);
  });
}

/// difference (n, k) ← diag(of_row) · (what codes q stand for with parameters p − w) · diag(s)⁻¹, w already scaled by s: the error
/// that host::codes_loss judges, bit for bit before `difference` stores it. @param of_row (n), or null for 1. Statuses as
/// scaled_error's.
template <class Scheme, class T, class To>
status codes_error(matrix<const T> w, matrix<const uint8_t> q, matrix<const params> p, const float* s,
                   const float* of_row, matrix<To> difference, index_t group_size, Scheme scheme, cudaStream_t stream) {
  index_t width = 0;
  if (scheme.bits < 1 || scheme.bits > 8) return status::bad_bits;
  const status grouped = detail::check_width(group_size, w.cols, width);
  if (grouped != status::ok) return grouped;
  const status checked = detail::check_scaled(w, s, difference);
  if (checked != status::ok) return checked;
  if (!detail::well_formed(q) || q.rows != w.rows || q.cols != w.cols) return status::bad_shape;
  const status fits = detail::check_groups(p, w.rows, w.cols, per_group(group_size));
  if (fits != status::ok) return fits;
  if (!detail::aligned(of_row)) return status::misaligned;
  if (w.empty()) return status::ok;
  return dispatch(tuning::awq{}, [&](auto tuned) {
    constexpr int wide = detail::items_of<T, To>;
    const auto start = [&](auto items, extent3 grid, extent3 block, unsigned across) {
      return launch(detail::codes_error_kernel<decltype(tuned), items.value, Scheme, T, To>, grid, block, 0, stream, w,
                    q, p, s, of_row, difference, width, scheme, across);
    };
    const bool whole = detail::aligned(w, wide) && detail::aligned(q, wide) && detail::aligned(difference, wide) &&
                       detail::scales_aligned(s);
    return detail::launch_chunks<wide>(w.rows, w.cols, tuned.value.threads, whole, start);
  });
}

/// *loss ← what columns [first, first + c) of G give of tr(D·G·Dᵀ) = Σ (D·G)∘D, in the stream of `blas`: the product in fp32, the sum in
/// double in one order. D (n, k) and G's columns (k, c) of one dtype: float, or fp16 or bf16 for tensor cores. For a G of which only
/// some columns are there at a time. The workspace holds the products of 1024 rows.
/// @error (k + 1)·2⁻²⁴·Σ_rows(Σ_i|d_i|√G_ii)² over all columns in float; twice that for fp16 and bf16, for D and G as they are stored.
/// @returns bad_shape, misaligned, too_large, workspace_too_small, launch_failed, unsupported_device.
template <class T>
status gram_loss_of_columns(matrix<const T> difference, matrix<const T> g, index_t first, double* loss, void* workspace,
                            index_t& workspace_bytes, cublasHandle_t blas) {
  if (!detail::well_formed(difference) || !detail::well_formed(g) || loss == nullptr) return status::bad_shape;
  if (g.rows != difference.cols || first < 0 || first > g.rows - g.cols) return status::bad_shape;
  if (!detail::aligned(difference) || !detail::aligned(g) || !detail::aligned(loss)) return status::misaligned;
  return dispatch(tuning::awq{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    const index_t n = difference.rows, k = g.cols, rows = min(n, index_t(policy.loss_rows));
    const index_t sums = round_up(n * static_cast<index_t>(sizeof(double)), workspace_alignment);
    const status checked =
        detail::check_workspace(workspace, workspace_bytes, sums + rows * k * static_cast<index_t>(sizeof(float)));
    if (checked != status::ok || workspace == nullptr) return checked;
    auto* const of_row = static_cast<double*>(workspace);
    auto* const products = reinterpret_cast<float*>(static_cast<char*>(workspace) + sums);
    cudaStream_t stream = nullptr;
    status done = detail::stream_of(blas, stream);
    for (index_t row = 0; row < n && done == status::ok; row += rows) {
      const auto part = difference.rows_at(row, min(rows, n - row));
      const matrix<float> product(products, part.rows, k);
      done = matmul(blas, part, reading::plain, g, reading::plain, 0.0f, product);
      if (done == status::ok)
        done = launch(detail::row_dot_kernel<decltype(tuned), T>, part.rows, policy.threads, 0, stream,
                      matrix<const float>(product), part.cols_at(first, k), of_row + row);
    }
    if (done != status::ok) return done;
    return launch(detail::sum_kernel<decltype(tuned)>, 1, policy.threads, 0, stream, static_cast<const double*>(of_row),
                  n, loss);
  });
}

/// *loss ← tr(D·G·Dᵀ): all columns of G (k, k), symmetric. Bound and statuses as gram_loss_of_columns's.
template <class T>
status gram_loss(matrix<const T> difference, matrix<const T> g, double* loss, void* workspace, index_t& workspace_bytes,
                 cublasHandle_t blas) {
  if (g.cols != difference.cols) return status::bad_shape;
  return gram_loss_of_columns(difference, g, 0, loss, workspace, workspace_bytes, blas);
}

}  // namespace kernels
NIBBLE_NAMESPACE_END

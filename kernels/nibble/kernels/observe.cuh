// SPDX-License-Identifier: Apache-2.0
/// @file
/// Statistics of activations on a GPU: reference::absolute_sum, absolute_maximum and gram, and the finished Gram matrix that
/// losses are taken under. Every result is the same bytes in every run. Needs cuBLAS for gram.
#pragma once

#include "nibble/kernels/blas.cuh"
#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/observe.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/observe.cuh"
#include "nibble/kernels/workspace.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {

/// What observe() adds to, in device memory; null: not wanted.
struct statistics {
  double* absolute_sum = nullptr;     ///< (k) += Σ |x|
  float* absolute_maximum = nullptr;  ///< (k) = max(it, |x|). @pre not negative, no NaN
  uint64_t* non_finite = nullptr;     ///< (1) += how many elements are NaN or ±inf
};

namespace detail {

template <class T>
status check_observe(matrix<const T> x, statistics to, matrix<T> clean) noexcept {
  const bool cleans = clean.data != nullptr;
  if (!well_formed(x)) return status::bad_shape;
  if (cleans && (!well_formed(clean) || clean.rows != x.rows || clean.cols != x.cols)) return status::bad_shape;
  const bool all = aligned(to.absolute_sum) && aligned(to.absolute_maximum) && aligned(to.non_finite);
  return all && aligned(x) && aligned(clean) ? status::ok : status::misaligned;
}

/// Launches what observe() checked. @param partial (row tiles, k) doubles, only for sums.
template <class T>
status launch_observe(matrix<const T> x, statistics to, matrix<T> clean, void* partial, cudaStream_t stream) {
  if (x.empty()) return status::ok;
  return dispatch(tuning::observe{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    const index_t tiles = ceil_div(x.rows, policy.tokens);
    const matrix<double> sums(to.absolute_sum == nullptr ? nullptr : static_cast<double*>(partial), tiles, x.cols);
    const auto by = [&](auto items) {
      const index_t across = ceil_div(x.cols, policy.across * items.value);
      if (across > 2147483647 / tiles) return status::too_large;
      return launch(observe_kernel<decltype(tuned), items.value, T>, across * tiles,
                    extent3(policy.across, policy.down), 0, stream, x, sums, to.absolute_maximum, to.non_finite, clean,
                    static_cast<unsigned>(across));
    };
    constexpr int wide = 16 / int{sizeof(T)};
    const bool whole = aligned(x, wide) && (clean.data == nullptr || aligned(clean, wide));
    const status observed = whole ? by(constant<wide>{}) : by(constant<1>{});
    if (observed != status::ok || to.absolute_sum == nullptr) return observed;
    constexpr index_t threads = policy.across * policy.down;
    return launch(fold_kernel<decltype(tuned)>, ceil_div(x.cols, threads), threads, 0, stream,
                  matrix<const double>(sums), to.absolute_sum);
  });
}

}  // namespace detail

/// All statistics of x (m, k), float, fp16 or bf16, in one pass, asynchronous in `stream`; NaN and ±inf count as 0. `clean`, unless its
/// data is null, (m, k) ← x with 0 for them. By 16-byte accesses where x and clean are aligned for them. Sums are in double, over tiles
/// of 256 tokens, tiles in order: off by m·2⁻⁵³ of a sum at most, and chunks of multiples of 256 tokens give the bytes of one chunk.
/// Only sums need the workspace.
/// @returns bad_shape, misaligned (to less than an element), workspace_too_small, or what launch says.
template <class T>
status observe(matrix<const T> x, statistics to, matrix<T> clean, void* workspace, index_t& workspace_bytes,
               cudaStream_t stream) {
  const status formed = detail::check_observe(x, to, clean);
  if (formed != status::ok) return formed;
  return dispatch(tuning::observe{}, [&](auto tuned) {
    const index_t sums = to.absolute_sum == nullptr ? 0 : ceil_div(x.rows, tuned.value.tokens) * x.cols;
    const status checked =
        detail::check_workspace(workspace, workspace_bytes, sums * static_cast<index_t>(sizeof(double)));
    if (checked != status::ok || workspace == nullptr) return checked;
    return detail::launch_observe(x, to, clean, workspace, stream);
  });
}

/// reference::absolute_sum on device pointers, asynchronous in `stream`; bound and statuses as observe's.
template <class T>
status absolute_sum(matrix<const T> x, double* sum, void* workspace, index_t& workspace_bytes, cudaStream_t stream) {
  if (sum == nullptr && x.cols > 0) return status::bad_shape;
  statistics to;
  to.absolute_sum = sum;
  return observe(x, to, matrix<T>(), workspace, workspace_bytes, stream);
}

/// reference::absolute_maximum on device pointers, asynchronous in `stream`. @pre maximum is not negative and no NaN.
template <class T>
status absolute_maximum(matrix<const T> x, float* maximum, cudaStream_t stream) {
  statistics to;
  to.absolute_maximum = maximum;
  const status formed = detail::check_observe(x, to, matrix<T>());
  if (formed != status::ok || (maximum == nullptr && x.cols > 0))
    return formed != status::ok ? formed : status::bad_shape;
  return detail::launch_observe(x, to, matrix<T>(), nullptr, stream);
}

/// *count += how many elements of x (m, k) are NaN or ±inf.
template <class T>
status count_non_finite(matrix<const T> x, uint64_t* count, cudaStream_t stream) {
  statistics to;
  to.non_finite = count;
  const status formed = detail::check_observe(x, to, matrix<T>());
  if (formed != status::ok || count == nullptr) return formed != status::ok ? formed : status::bad_shape;
  return detail::launch_observe(x, to, matrix<T>(), nullptr, stream);
}

namespace detail {

template <class T>
status check_gram(matrix<const T> x, matrix<float> g) noexcept {
  if (!well_formed(x) || !well_formed(g) || g.rows != x.cols || g.cols != x.cols) return status::bad_shape;
  return aligned(x) && aligned(g) ? status::ok : status::misaligned;
}

}  // namespace detail

/// gram() of x (m, k) that is known to be finite, such as what observe() cleaned. Without a workspace.
template <class T>
status gram_of_finite(matrix<const T> x, matrix<float> g, cublasHandle_t blas) {
  const status checked = detail::check_gram(x, g);
  if (checked != status::ok || x.empty()) return checked;
  return dispatch(tuning::gram{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    for (index_t token = 0; token < x.rows; token += policy.tokens) {
      const auto part = x.rows_at(token, min(index_t(policy.tokens), x.rows - token));
      for (index_t col = 0; col < x.cols; col += policy.panel) {
        const index_t rows = min(index_t(policy.panel), x.cols - col), cols = x.cols - col;
        const status done = matmul(blas, part.cols_at(col, rows), reading::transposed, part.cols_at(col, cols),
                                   reading::plain, 1.0f, g.rows_at(col, rows).cols_at(col, cols));
        if (done != status::ok) return done;
      }
    }
    return status::ok;
  });
}

/// reference::gram in fp32, on and above the diagonal, in the stream of `blas`: g (k, k) += xᵀ·x of x (m, k) float, fp16 or bf16, c =
/// 2048 tokens a product, each product added to g. Below the diagonal, whole panels of 1024 stay untouched; mirror() fills them.
/// @error (c + 2·⌈m / c⌉ + 1)·2⁻²⁴·√(G_ii·G_jj), where m < c is the c; twice that for fp16 and bf16, whose tensor cores truncate.
/// Infinite where a square does not fit a float. The workspace holds the tokens of a product, NaN and ±inf made 0.
/// @returns bad_shape, misaligned, too_large, workspace_too_small, launch_failed, unsupported_device.
template <class T>
status gram(matrix<const T> x, matrix<float> g, void* workspace, index_t& workspace_bytes, cublasHandle_t blas) {
  const status formed = detail::check_gram(x, g);
  if (formed != status::ok) return formed;
  return dispatch(tuning::gram{}, [&](auto tuned) {
    constexpr index_t tokens = tuned.value.tokens, items = 16 / sizeof(T);
    const index_t stride = round_up(x.cols, items);
    const status checked = detail::check_workspace(workspace, workspace_bytes,
                                                   min(tokens, x.rows) * stride * static_cast<index_t>(sizeof(T)));
    if (checked != status::ok || workspace == nullptr || x.empty()) return checked;
    cudaStream_t stream = nullptr;
    status done = detail::stream_of(blas, stream);
    for (index_t token = 0; token < x.rows && done == status::ok; token += tokens) {
      const auto part = x.rows_at(token, min(tokens, x.rows - token));
      const matrix<T> clean(static_cast<T*>(workspace), part.rows, x.cols, stride);
      done = detail::launch_observe(part, statistics{}, clean, nullptr, stream);
      if (done == status::ok) done = gram_of_finite(matrix<const T>(clean), g, blas);
    }
    return done;
  });
}

/// What host::second_moment makes of a gathered Gram matrix, bit for bit: g (k, k) ← shrink(factor · g), factor one over the tokens, the
/// lower triangle copied from the upper; diagonal (k), unless null, ← E[x²].
/// @returns bad_shape, also for a shrinkage outside [0, 1], misaligned, or what launch says.
inline status mirror(matrix<float> g, float factor, float shrinkage, float* diagonal, cudaStream_t stream) {
  if (!detail::well_formed(g) || g.rows != g.cols) return status::bad_shape;
  if (!(shrinkage >= 0.0f && shrinkage <= 1.0f)) return status::bad_shape;
  if (!detail::aligned(g) || !detail::aligned(diagonal)) return status::misaligned;
  if (g.empty()) return status::ok;
  return dispatch(tuning::gram{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    const index_t tiles = ceil_div(g.rows, policy.tile);
    if (tiles > 46340) return status::too_large;  // whose square is the last below 2^31
    return launch(detail::mirror_kernel<decltype(tuned)>, tiles * tiles, extent3(policy.tile, policy.down), 0, stream,
                  g, factor, shrinkage, diagonal, static_cast<unsigned>(tiles));
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END

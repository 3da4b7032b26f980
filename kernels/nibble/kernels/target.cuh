// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a linear should do with inputs that quantized layers before it changed, on a GPU: nibble/host/target.hpp has the formula. Needs
/// cuBLAS.
#pragma once

#include "nibble/kernels/awq.cuh"
#include "nibble/kernels/detail/target.cuh"
#include "nibble/kernels/hessian.cuh"
#include "nibble/kernels/tuning/gptq.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Tokens whose products cuBLAS sums before they are added, as the host's.
inline constexpr index_t drift_tokens = 512;

/// x (rows, k) ← y of y·Lᵀ·L = x: backwards through the factor, then forwards, blocks of 128 columns joined by products.
template <class Tuned>
status solve_normal(matrix<const float> l, matrix<float> x, cublasHandle_t blas, cudaStream_t stream) {
  constexpr int threads = Tuned::value.threads;
  const index_t k = x.cols, blocks = ceil_div(x.rows, threads / 32);
  const auto corner = [&](index_t first, index_t count) { return l.rows_at(first, count).cols_at(first, count); };
  status done = status::ok;
  for (index_t first = (k - 1) / factor_block * factor_block; first >= 0 && done == status::ok; first -= factor_block) {
    const index_t count = min(k - first, index_t{factor_block}), after = k - first - count;
    const auto own = x.cols_at(first, count);
    if (after > 0)
      done = matmul(blas, matrix<const float>(x.cols_at(first + count, after)), reading::plain,
                    l.rows_at(first + count, after).cols_at(first, count), reading::plain, 1.0f, own, -1.0f);
    if (done == status::ok)
      done = launch(solve_kernel<Tuned, true>, blocks, threads, 0, stream, corner(first, count), own);
  }
  for (index_t first = 0; first < k && done == status::ok; first += factor_block) {
    const index_t count = min(k - first, index_t{factor_block});
    const auto own = x.cols_at(first, count);
    if (first > 0)
      done = matmul(blas, matrix<const float>(x.cols_at(0, first)), reading::plain,
                    l.rows_at(first, count).cols_at(0, first), reading::transposed, 1.0f, own, -1.0f);
    if (done == status::ok)
      done = launch(solve_kernel<Tuned, false>, blocks, threads, 0, stream, corner(first, count), own);
  }
  return done;
}

}  // namespace detail

/// sum (k, k) += Σ (x₀ − x)·xᵀ over the tokens of x₀ and x (m, k), what is not finite as 0, in the stream of `blas`: products in fp32, as
/// host::drift adds them. T float, fp16 or bf16. The workspace holds 512 tokens twice, as floats.
/// @error (m + 2)·2⁻²⁴·Σ|x₀ − x|·|x|. @returns bad_shape, misaligned, too_large, workspace_too_small, launch_failed, unsupported_device.
template <class T>
status drift(matrix<const T> original, matrix<const T> x, matrix<float> sum, void* workspace, index_t& workspace_bytes,
             cublasHandle_t blas) {
  const index_t k = x.cols;
  if (!detail::well_formed(original) || !detail::well_formed(x) || original.rows != x.rows || original.cols != k)
    return status::bad_shape;
  if (!detail::well_formed(sum) || sum.rows != k || sum.cols != k) return status::bad_shape;
  if (!detail::aligned(original) || !detail::aligned(x) || !detail::aligned(sum)) return status::misaligned;
  return dispatch(tuning::gptq{}, [&](auto tuned) {
    constexpr int wide = 16 / int{sizeof(T)};
    const index_t most = min(x.rows, detail::drift_tokens);
    const status enough =
        detail::check_workspace(workspace, workspace_bytes, 2 * most * k * static_cast<index_t>(sizeof(float)));
    if (enough != status::ok || workspace == nullptr || x.empty()) return enough;
    cudaStream_t stream = nullptr;
    status done = detail::stream_of(blas, stream);
    const bool whole = detail::aligned(original, wide) && detail::aligned(x, wide);
    for (index_t first = 0; first < x.rows && done == status::ok; first += most) {
      const index_t rows = min(most, x.rows - first);
      const matrix<float> clean(static_cast<float*>(workspace), rows, k), apart(clean.data + most * k, rows, k);
      const auto start = [&](auto items, extent3 grid, extent3 block, unsigned across) {
        return launch(detail::apart_kernel<decltype(tuned), items.value, T>, grid, block, 0, stream,
                      original.rows_at(first, rows), x.rows_at(first, rows), clean, apart, across);
      };
      done = detail::launch_chunks<wide>(rows, k, tuned.value.threads, whole, start);
      if (done == status::ok)
        done = matmul(blas, matrix<const float>(apart), reading::transposed, matrix<const float>(clean), reading::plain,
                      1.0f, sum);
    }
    return done;
  });
}

/// sum (n, k) += Σ (r₀ − r)·xᵀ over the tokens of r₀, r (m, n) and x (m, k), as above: how what the linear's output joins has drifted. The
/// workspace holds 512 tokens of r and of x, as floats. @returns as above.
template <class R, class T>
status drift(matrix<const R> original, matrix<const R> residual, matrix<const T> x, matrix<float> sum, void* workspace,
             index_t& workspace_bytes, cublasHandle_t blas) {
  const index_t k = x.cols, n = residual.cols;
  if (!detail::well_formed(original) || !detail::well_formed(residual) || !detail::well_formed(x))
    return status::bad_shape;
  if (original.rows != x.rows || original.cols != n || residual.rows != x.rows) return status::bad_shape;
  if (!detail::well_formed(sum) || sum.rows != n || sum.cols != k) return status::bad_shape;
  if (!detail::aligned(original) || !detail::aligned(residual) || !detail::aligned(x) || !detail::aligned(sum))
    return status::misaligned;
  return dispatch(tuning::gptq{}, [&](auto tuned) {
    const index_t most = min(x.rows, detail::drift_tokens);
    const status enough =
        detail::check_workspace(workspace, workspace_bytes, most * (n + k) * static_cast<index_t>(sizeof(float)));
    if (enough != status::ok || workspace == nullptr || x.empty() || residual.empty()) return enough;
    cudaStream_t stream = nullptr;
    status done = detail::stream_of(blas, stream);
    const auto start = [&](auto before, auto now, matrix<float> clean, matrix<float> apart) {
      using type = std::remove_const_t<std::remove_pointer_t<decltype(now.data)>>;
      constexpr int wide = 16 / int{sizeof(type)};
      const bool whole = detail::aligned(before, wide) && detail::aligned(now, wide);
      return detail::launch_chunks<wide>(now.rows, now.cols, tuned.value.threads, whole,
                                         [&](auto items, extent3 grid, extent3 block, unsigned across) {
                                           return launch(detail::apart_kernel<decltype(tuned), items.value, type>, grid,
                                                         block, 0, stream, before, now, clean, apart, across);
                                         });
    };
    for (index_t first = 0; first < x.rows && done == status::ok; first += most) {
      const index_t rows = min(most, x.rows - first);
      const matrix<float> clean(static_cast<float*>(workspace), rows, k), apart(clean.data + most * k, rows, n);
      const auto now = x.rows_at(first, rows);
      done = start(now, now, clean, {nullptr, rows, k});
      if (done == status::ok)
        done = start(original.rows_at(first, rows), residual.rows_at(first, rows), {nullptr, rows, n}, apart);
      if (done == status::ok)
        done = matmul(blas, matrix<const float>(apart), reading::transposed, matrix<const float>(clean), reading::plain,
                      1.0f, sum);
    }
    return done;
  });
}

/// What the output of a linear (n, k) joins, where that has drifted as well, and how much of it the linear is to make up for.
struct residual_drift {
  matrix<const float> sum;          ///< (n, k), of the tokens that sum of inputs is of; empty: nothing is made up for
  const index_t* column = nullptr;  ///< (k): its columns in the order of solving; null: as they lie
  float share = 0;
};

/// host::moved_target in the stream of `blas`: target (n, k) ← w + share·(w* − w) for w (n, k), whose columns are scaled by s (k), or null
/// for 1, as the factor's are; sum (k, k) is drift's over so many tokens, which is not scaled, nor is what is known of a residual
/// stream. column, l and state are factor's. Where the result is not finite, and where there is no factor, w. target may be w. The
/// workspace holds a (k, k) and what 16384 rows move by. @error 10⁻⁴ of a row's largest weight where λ ≥ 0.01.
/// @param shrinkage λ, of what is beside the diagonal of sum. @pre tokens > 0.
/// @returns bad_shape, misaligned, too_large, workspace_too_small, launch_failed, unsupported_device.
inline status moved_target(matrix<const float> w, const float* s, matrix<const float> sum, index_t tokens,
                           const index_t* column, matrix<const float> l, const factored* state, float share,
                           float shrinkage, const residual_drift& residual, matrix<float> target, void* workspace,
                           index_t& workspace_bytes, cublasHandle_t blas) {
  const index_t k = w.cols;
  const bool joined = !residual.sum.empty();
  if (joined && (!detail::well_formed(residual.sum) || residual.sum.rows != w.rows || residual.sum.cols != k))
    return status::bad_shape;
  if (!detail::well_formed(w) || !detail::well_formed(target) || target.rows != w.rows || target.cols != k)
    return status::bad_shape;
  for (const auto& square : {sum, l})
    if (!detail::well_formed(square) || square.rows != k || square.cols != k) return status::bad_shape;
  if (state == nullptr || tokens < 1) return status::bad_shape;
  if (!detail::aligned(w) || !detail::aligned(target) || !detail::aligned(sum) || !detail::aligned(l) ||
      !detail::aligned(s) || !detail::aligned(column) || !detail::aligned(state) || !detail::aligned(residual.sum) ||
      !detail::aligned(residual.column))
    return status::misaligned;
  return dispatch(tuning::gptq{}, [&](auto tuned) {
    using policy = decltype(tuned);
    constexpr int threads = tuned.value.threads;
    const index_t rows = min(w.rows, index_t{tuned.value.rows}), stride = round_up(k, 4);
    const status enough =
        detail::check_workspace(workspace, workspace_bytes, (k + rows) * stride * static_cast<index_t>(sizeof(float)));
    if (enough != status::ok || workspace == nullptr || w.empty()) return enough;
    const matrix<float> ordered(static_cast<float*>(workspace), k, k, stride);
    cudaStream_t stream = nullptr;
    status done = detail::stream_of(blas, stream);
    const double per_token = static_cast<double>(share) / static_cast<double>(tokens);
    const double of_residual = static_cast<double>(residual.share) / static_cast<double>(tokens);
    if (done == status::ok)
      done = launch(detail::ordered_drift_kernel<policy>, k, threads, 0, stream, sum, s, column, per_token, shrinkage,
                    state, ordered);
    for (index_t row = 0; row < w.rows && done == status::ok; row += rows) {
      const index_t count = min(rows, w.rows - row);
      const matrix<float> moved(ordered.data + k * stride, count, k, stride);
      if (joined)
        done = launch(detail::ordered_residual_kernel<policy>, count, threads, 0, stream,
                      residual.sum.rows_at(row, count), s, column, residual.column, of_residual, state, moved);
      if (done == status::ok)
        done = matmul(blas, w.rows_at(row, count), reading::plain, matrix<const float>(ordered), reading::plain,
                      joined ? 1.0f : 0.0f, moved);
      if (done == status::ok) done = detail::solve_normal<policy>(l, moved, blas, stream);
      if (done == status::ok)
        done = launch(detail::move_kernel<policy>, count, threads, 0, stream, w.rows_at(row, count),
                      matrix<const float>(moved), column, state, target.rows_at(row, count));
    }
    return done;
  });
}
/// Where there is nothing that the output joins, or that has not drifted.
inline status moved_target(matrix<const float> w, const float* s, matrix<const float> sum, index_t tokens,
                           const index_t* column, matrix<const float> l, const factored* state, float share,
                           float shrinkage, matrix<float> target, void* workspace, index_t& workspace_bytes,
                           cublasHandle_t blas) {
  return moved_target(w, s, sum, tokens, column, l, state, share, shrinkage, {}, target, workspace, workspace_bytes,
                      blas);
}

}  // namespace kernels
NIBBLE_NAMESPACE_END

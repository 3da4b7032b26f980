// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrix products on fixed tiles: a single-threaded BLAS call a tile, our threads over the tiles. The cut follows from
/// the shapes alone, so the bytes of a product do not depend on the number of threads.
/// Factors are floats, or rounded to bfloat16 first (host/matmul/bfloat16.hpp), which on some machines takes half the time.
/// Needs a CBLAS (OpenBLAS, BLIS, MKL's cblas.h), and so does what includes it: observe, output_loss, clip, sweep, awq.
#pragma once

#include <cblas.h>

#include "nibble/host/matmul/bfloat16.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/math.hpp"
#include "nibble/matrix.hpp"

extern "C" {
#if defined(__GNUC__)
__attribute__((weak)) void openblas_set_num_threads(int threads);
#endif
}

NIBBLE_NAMESPACE_BEGIN
namespace host {

/// What the factors of a product are; sums are floats.
enum class matmul_precision { float32, bfloat16 };

/// Whether this machine has an instruction for products in bfloat16. Without one they are plain loops, far slower than a BLAS.
inline bool has_bfloat16() noexcept {
#if defined(__GNUC__) && defined(__x86_64__)
  return detail::has_avx512_bf16();
#else
  return false;
#endif
}

/// The one that this machine multiplies faster. Of Intel's processors those that have AVX512_BF16 multiply as many floats a cycle.
inline matmul_precision fastest_precision() noexcept {
#if defined(__GNUC__) && defined(__x86_64__)
  if (has_bfloat16() && __builtin_cpu_is("amd")) return matmul_precision::bfloat16;
#endif
  return matmul_precision::float32;
}

namespace detail {

/// Keeps OpenBLAS from starting threads of its own beside ours.
inline void single_threaded_blas() {
#if defined(__GNUC__)
  static const bool once = [] {
    if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(once);
#endif
}

/// A BLAS wants a stride of 1 at least, also of a matrix without columns.
inline int leading(index_t stride) {
  return static_cast<int>(max(stride, index_t(1)));
}

/// c (m, n) = op(a) (m, k) · op(b) (k, n) + beta · c. @pre extents and strides are below 2^31.
inline void sgemm(CBLAS_TRANSPOSE trans_a, CBLAS_TRANSPOSE trans_b, index_t m, index_t n, index_t k,
                  matrix<const float> a, matrix<const float> b, float beta, matrix<float> c) {
  if (m == 0 || n == 0) return;
  cblas_sgemm(CblasRowMajor, trans_a, trans_b, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1.0f,
              a.data, leading(a.stride), b.data, leading(b.stride), beta, c.data, leading(c.stride));
}

/// Of y. The BLAS copies x's rows for each 512 columns, and w's for each 256 rows: with tiles of 256 × 256, which copy more, a small
/// model's pass took 4 % longer, and with 512 × 512, which outgrow a cache, 2 %.
inline constexpr index_t tile_rows = 256, tile_cols = 512;

template <class F>
void over_tiles(index_t rows, index_t cols, F&& f) {
  single_threaded_blas();
  const index_t across = ceil_div(cols, tile_cols);
  parallel_for(ceil_div(rows, tile_rows) * across, [&](index_t tile) {
    const index_t row = tile / across * tile_rows, col = tile % across * tile_cols;
    f(row, min(tile_rows, rows - row), col, min(tile_cols, cols - col));
  });
}

/// y (m, n) = x (m, k) · w (n, k)ᵀ, on the thread that calls.
inline void multiply_nt(matrix<const float> x, matrix<const float> w, matrix<float> y, matmul_precision how) {
  if (how == matmul_precision::bfloat16) return multiply_rounded<true>(x, w, y);
  sgemm(CblasNoTrans, CblasTrans, x.rows, w.rows, x.cols, x, w, 0.0f, y);
}

/// y (m, n) = x (m, k) · w (k, n), likewise.
inline void multiply_nn(matrix<const float> x, matrix<const float> w, matrix<float> y, matmul_precision how) {
  if (how == matmul_precision::bfloat16) return multiply_rounded<false>(x, w, y);
  sgemm(CblasNoTrans, CblasNoTrans, x.rows, w.cols, x.cols, x, w, 0.0f, y);
}

}  // namespace detail

/// y (m, n) = x (m, k) · w (n, k)ᵀ: a linear layer, as checkpoints store it.
inline void matmul_nt(matrix<const float> x, matrix<const float> w, matrix<float> y,
                      matmul_precision how = matmul_precision::float32) {
  detail::over_tiles(x.rows, w.rows, [&](index_t row, index_t rows, index_t col, index_t cols) {
    detail::multiply_nt(x.rows_at(row, rows), w.rows_at(col, cols), y.rows_at(row, rows).cols_at(col, cols), how);
  });
}

/// y (m, n) = x (m, k) · w (k, n).
inline void matmul_nn(matrix<const float> x, matrix<const float> w, matrix<float> y,
                      matmul_precision how = matmul_precision::float32) {
  detail::over_tiles(x.rows, w.cols, [&](index_t row, index_t rows, index_t col, index_t cols) {
    detail::multiply_nn(x.rows_at(row, rows), w.cols_at(col, cols), y.rows_at(row, rows).cols_at(col, cols), how);
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END

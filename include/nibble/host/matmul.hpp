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

/// The one that this machine multiplies faster. Of Intel's processors those that have AVX512_BF16 but not AMX multiply as many floats a cycle.
inline matmul_precision fastest_precision() noexcept {
#if defined(NIBBLE_AMX_KNOWN)
  if (detail::has_amx_bf16()) return matmul_precision::bfloat16;
#endif
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
/// Of y where x is packed beforehand, and w for each tile; and the least that one is cut to.
inline constexpr index_t packed_tile_cols = 256, least_tile = 64;

/// f(row, rows, column, columns) of every tile.
template <class F>
void over_tiles(index_t rows, index_t cols, index_t most_rows, index_t most_cols, F&& f) {
  const index_t across = ceil_div(cols, most_cols);
  parallel_for(ceil_div(rows, most_rows) * across, [&](index_t tile) {
    const index_t row = tile / across * most_rows, col = tile % across * most_cols;
    f(row, min(most_rows, rows - row), col, min(most_cols, cols - col));
  });
}

/// y (m, n) = x (m, k) · w (n, k)ᵀ, or · w (k, n). Sums do not depend on where tiles end, so that a product of few is cut for the threads.
template <bool Rows>
void matmul_packed(const row_pairs& x, matrix<const float> w, matrix<float> y) {
  index_t most_rows = 0;
  with_pairs([&](auto of) { most_rows = decltype(of)::tile_rows; });
  index_t most_cols = packed_tile_cols;
  const auto few = [&] {
    return ceil_div(x.rows(), most_rows) * ceil_div(y.cols, most_cols) < 2 * index_t{pool().size()};
  };
  while (few() && most_cols > least_tile) most_cols /= 2;
  while (few() && most_rows > least_tile) most_rows /= 2;
  over_tiles(x.rows(), y.cols, most_rows, most_cols, [&](index_t row, index_t rows, index_t col, index_t cols) {
    multiply_rounded<Rows>(x, row, Rows ? w.rows_at(col, cols) : w.cols_at(col, cols),
                           y.rows_at(row, rows).cols_at(col, cols));
  });
}

template <bool Rows>
void matmul(matrix<const float> x, matrix<const float> w, matrix<float> y, matmul_precision how) {
  if (how == matmul_precision::bfloat16) {
    thread_local row_pairs packing;
    packing.pack(x);
    return matmul_packed<Rows>(packing, w, y);
  }
  single_threaded_blas();
  over_tiles(x.rows, y.cols, tile_rows, tile_cols, [&](index_t row, index_t rows, index_t col, index_t cols) {
    sgemm(CblasNoTrans, Rows ? CblasTrans : CblasNoTrans, rows, cols, x.cols, x.rows_at(row, rows),
          Rows ? w.rows_at(col, cols) : w.cols_at(col, cols), 0.0f, y.rows_at(row, rows).cols_at(col, cols));
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

/// Rows (m, k) that several products in bfloat16 begin with, packed once.
class packed_factor {
 public:
  void pack(matrix<const float> x) { rows_.pack(x); }
  const detail::row_pairs& rows() const noexcept { return rows_; }

 private:
  detail::row_pairs rows_;
};

/// y (m, n) = x (m, k) · w (n, k)ᵀ: a linear layer, as checkpoints store it.
inline void matmul_nt(matrix<const float> x, matrix<const float> w, matrix<float> y,
                      matmul_precision how = matmul_precision::float32) {
  detail::matmul<true>(x, w, y, how);
}
/// The same in bfloat16.
inline void matmul_nt(const packed_factor& x, matrix<const float> w, matrix<float> y) {
  detail::matmul_packed<true>(x.rows(), w, y);
}

/// y (m, n) = x (m, k) · w (k, n).
inline void matmul_nn(matrix<const float> x, matrix<const float> w, matrix<float> y,
                      matmul_precision how = matmul_precision::float32) {
  detail::matmul<false>(x, w, y, how);
}

}  // namespace host
NIBBLE_NAMESPACE_END

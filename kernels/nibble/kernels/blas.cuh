// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrix products by cuBLAS, which whoever includes this links: row-major views in, sums in fp32 out. They run in the
/// handle's own stream, and so does all else that a launcher with a handle starts. Float products are CUBLAS_COMPUTE_32F_PEDANTIC,
/// so that no math mode of the handle turns them into TF32. cuBLAS gives the same bytes in every run on one GPU unless the
/// handle allows atomics, and allocates nothing while the workspace of the handle is enough (cublasSetWorkspace).
#pragma once

#include <cublas_v2.h>

#include "nibble/half.hpp"
#include "nibble/kernels/check.hpp"
#include "nibble/kernels/status.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {

/// How a product reads one of its factors.
enum class reading : uint8_t { plain, transposed };

namespace detail {

template <class T>
constexpr cudaDataType_t blas_type() noexcept {
  return dtype_of<T>::value == dtype::f32 ? CUDA_R_32F : dtype_of<T>::value == dtype::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

/// The handle's stream. @returns launch_failed for a handle that was never created.
inline status stream_of(cublasHandle_t blas, cudaStream_t& stream) noexcept {
  if (blas == nullptr || cublasGetStream(blas, &stream) != CUBLAS_STATUS_SUCCESS) return status::launch_failed;
  return status::ok;
}

}  // namespace detail

/// c (m, n) = alpha · a (m, k) · b (k, n) + beta · c, a and b read as said; T float, fp16 or bf16.
/// @returns bad_shape, misaligned (to less than an element), too_large for what 31 bits cannot hold, launch_failed when cuBLAS
/// refuses.
template <class T>
status matmul(cublasHandle_t blas, matrix<const T> a, reading of_a, matrix<const T> b, reading of_b, float beta,
              matrix<float> c, float alpha = 1.0f) {
  const bool turn_a = of_a == reading::transposed, turn_b = of_b == reading::transposed;
  const index_t k = turn_a ? a.rows : a.cols;
  if (!detail::well_formed(a) || !detail::well_formed(b) || !detail::well_formed(c)) return status::bad_shape;
  if ((turn_a ? a.cols : a.rows) != c.rows || (turn_b ? b.rows : b.cols) != c.cols) return status::bad_shape;
  if ((turn_b ? b.cols : b.rows) != k) return status::bad_shape;
  if (!detail::aligned(a) || !detail::aligned(b) || !detail::aligned(c)) return status::misaligned;
  if (c.empty() || (k == 0 && beta == 1.0f)) return status::ok;
  for (const index_t extent : {c.rows, c.cols, k, a.stride, b.stride, c.stride})
    if (extent > 2147483647) return status::too_large;
  const auto leading = [](index_t stride) { return static_cast<int>(stride > 0 ? stride : 1); };
  cudaStream_t stream = nullptr;
  const status known = detail::stream_of(blas, stream);
  if (known != status::ok) return known;
  cublasPointerMode_t before = CUBLAS_POINTER_MODE_HOST;
  cublasGetPointerMode(blas, &before);
  cublasSetPointerMode(blas, CUBLAS_POINTER_MODE_HOST);
  // Column-major, each of the three is its own transpose: cᵀ = bᵀ · aᵀ.
  const cublasStatus_t done = cublasGemmEx(
      blas, turn_b ? CUBLAS_OP_T : CUBLAS_OP_N, turn_a ? CUBLAS_OP_T : CUBLAS_OP_N, static_cast<int>(c.cols),
      static_cast<int>(c.rows), static_cast<int>(k), &alpha, b.data, detail::blas_type<T>(), leading(b.stride), a.data,
      detail::blas_type<T>(), leading(a.stride), &beta, c.data, CUDA_R_32F, leading(c.stride),
      sizeof(T) == 4 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  cublasSetPointerMode(blas, before);
  return done == CUBLAS_STATUS_SUCCESS ? status::ok : status::launch_failed;
}

}  // namespace kernels
NIBBLE_NAMESPACE_END

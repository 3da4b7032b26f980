// SPDX-License-Identifier: Apache-2.0
/// @file
/// The little of cuBLAS that launchers use, for the SIMT executor: a product runs on the host's CBLAS, at once or when its stream comes to it, in one thread,
/// inputs of 16 bits read as floats. Elements are copied in and out here, where the sanitizers that kernels are built with
/// see them.
#pragma once

#include <cblas.h>

#include <cstddef>
#include <vector>

#include "cuda_runtime.h"
#include "nibble/half.hpp"
#include "nibble/host/matmul.hpp"

// NOLINTBEGIN(readability-identifier-naming): CUDA's names
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_NOT_INITIALIZED = 1,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_EXECUTION_FAILED = 13
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasPointerMode_t { CUBLAS_POINTER_MODE_HOST = 0, CUBLAS_POINTER_MODE_DEVICE = 1 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_PEDANTIC = 69 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };

struct cublasContext {
  cudaStream_t stream = nullptr;
  cublasPointerMode_t mode = CUBLAS_POINTER_MODE_HOST;
};
using cublasHandle_t = cublasContext*;

inline cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasGetStream(cublasHandle_t handle, cudaStream_t* stream) {
  *stream = handle->stream;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetPointerMode(cublasHandle_t handle, cublasPointerMode_t mode) {
  handle->mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasGetPointerMode(cublasHandle_t handle, cublasPointerMode_t* mode) {
  *mode = handle->mode;
  return CUBLAS_STATUS_SUCCESS;
}

namespace simt {

/// Columns of `rows` elements each, `stride` apart, as floats without gaps.
inline std::vector<float> floats(const void* data, cudaDataType_t type, int rows, int cols, int stride) {
  std::vector<float> out;
  out.reserve(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
  for (int col = 0; col < cols; ++col)
    for (int row = 0; row < rows; ++row) {
      const auto i = static_cast<std::ptrdiff_t>(col) * stride + row;
      out.push_back(type == CUDA_R_32F   ? static_cast<const float*>(data)[i]
                    : type == CUDA_R_16F ? static_cast<float>(static_cast<const nibble::fp16*>(data)[i])
                                         : static_cast<float>(static_cast<const nibble::bf16*>(data)[i]));
    }
  return out;
}

}  // namespace simt

/// Column-major c (m, n) = *alpha · op(a) (m, k) · op(b) (k, n) + *beta · c, c of floats.
inline cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                   int k, const void* alpha, const void* a, cudaDataType_t type_a, int lda,
                                   const void* b, cudaDataType_t type_b, int ldb, const void* beta, void* c,
                                   cudaDataType_t type_c, int ldc, cublasComputeType_t, cublasGemmAlgo_t) {
  const bool turn_a = op_a == CUBLAS_OP_T, turn_b = op_b == CUBLAS_OP_T;
  const int rows_a = turn_a ? k : m, rows_b = turn_b ? n : k;
  const auto least = [](int rows) { return rows > 1 ? rows : 1; };
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (m < 0 || n < 0 || k < 0 || lda < least(rows_a) || ldb < least(rows_b) || ldc < least(m) || type_a != type_b ||
      type_c != CUDA_R_32F || handle->mode != CUBLAS_POINTER_MODE_HOST)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (simt::refuses_launch()) return CUBLAS_STATUS_EXECUTION_FAILED;
  const float by = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  simt::give(handle->stream, [=] {
    const auto of_a = simt::floats(a, type_a, rows_a, turn_a ? m : k, lda);
    const auto of_b = simt::floats(b, type_b, rows_b, turn_b ? k : n, ldb);
    auto of_c = keep == 0.0f ? std::vector<float>(static_cast<std::size_t>(m) * static_cast<std::size_t>(n))
                             : simt::floats(c, type_c, m, n, ldc);
    nibble::host::detail::single_threaded_blas();
    cblas_sgemm(CblasColMajor, turn_a ? CblasTrans : CblasNoTrans, turn_b ? CblasTrans : CblasNoTrans, m, n, k, by,
                of_a.data(), least(rows_a), of_b.data(), least(rows_b), keep, of_c.data(), least(m));
    std::size_t from = 0;
    for (int col = 0; col < n; ++col)
      for (int row = 0; row < m; ++row)
        static_cast<float*>(c)[static_cast<std::ptrdiff_t>(col) * ldc + row] = of_c[from++];
  });
  return CUBLAS_STATUS_SUCCESS;
}
// NOLINTEND(readability-identifier-naming)

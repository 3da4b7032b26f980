// SPDX-License-Identifier: Apache-2.0
/// @file
/// A cuBLAS handle for tests, and launchers that need a workspace, called twice as they want it.
#pragma once

#include <cublas_v2.h>

#include "nibble/kernels/status.hpp"
#include "support/device.hpp"

namespace nibble::test {

struct blas_handle {
  cublasHandle_t handle = nullptr;
  blas_handle() { REQUIRE(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS); }
  ~blas_handle() { cublasDestroy(handle); }
  blas_handle(const blas_handle&) = delete;
  blas_handle& operator=(const blas_handle&) = delete;
  operator cublasHandle_t() const { return handle; }
};

/// call(workspace, bytes): asks for the size, then launches with exactly that much, guarded.
template <class F>
void with_workspace(F call) {
  index_t bytes = -1;
  REQUIRE(call(nullptr, bytes) == status::ok);
  REQUIRE(bytes > 0);
  const device_array<unsigned char> workspace(bytes);
  REQUIRE(call(workspace.data(), bytes) == status::ok);
  static_cast<void>(workspace.download());  // checks its guard bands
}

/// What a launcher says to a workspace one byte too small, and to one that is not aligned.
template <class F>
void refuses_bad_workspaces(F call) {
  index_t bytes = -1;
  REQUIRE(call(nullptr, bytes) == status::ok);
  const device_array<unsigned char> workspace(bytes + 16);
  index_t less = bytes - 1;
  REQUIRE(call(workspace.data(), less) == status::workspace_too_small);
  REQUIRE(call(workspace.data() + 8, bytes) == status::misaligned);
}

}  // namespace nibble::test

// SPDX-License-Identifier: Apache-2.0
#include "mistral/gpu.hpp"

#include "mistral/error.hpp"

namespace nibble::mistral {

bool built_with_cuda() {
  return false;
}

int gpu_count() {
  return 0;
}

std::uint64_t gpu_free_bytes() {
  return 0;
}

gpu open_gpu(int) {
  throw error("this build has no CUDA");
}

std::unique_ptr<batch_scorer> gpu_scorer(int) {
  throw error("this build has no CUDA");
}

}  // namespace nibble::mistral

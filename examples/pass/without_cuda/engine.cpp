// SPDX-License-Identifier: Apache-2.0
#include "pass/engine.hpp"

#include "mistral/error.hpp"

namespace nibble::mistral {

std::unique_ptr<engine> gpu_engine(const job&, const gpu&) {
  throw error("this build has no CUDA");
}

std::uint64_t gpu_memory(const job&, const gpu&) {
  throw error("this build has no CUDA");
}

}  // namespace nibble::mistral

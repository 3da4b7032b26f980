// SPDX-License-Identifier: Apache-2.0
/// @file
/// The GPU that a program runs on, if any: --backend and --device. A build without CUDA has none.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "error.hpp"
#include "evaluate.hpp"

namespace nibble::mistral {

struct gpu {
  int device;
  std::string name;  ///< "NVIDIA H200"
  std::uint64_t free_bytes;
};

/// Whether this build can use a GPU at all.
bool built_with_cuda();
/// GPUs that CUDA sees; 0 also without a driver.
int gpu_count();
/// Makes `device` the current one. @throws error when there is none, it is too old, or the build has no CUDA.
gpu open_gpu(int device);
/// Memory that the current GPU has left now.
std::uint64_t gpu_free_bytes();
/// Scores on the current GPU; the batch that later models are compared on stays there.
std::unique_ptr<batch_scorer> gpu_scorer(int device);

/// What a command line says of the machine.
struct backend_options {
  std::string name = "auto";  ///< auto, cpu or cuda
  int device = -1;            ///< of several GPUs; negative: not said

  /// Whether a GPU was asked for, so that the CPU will not do.
  bool insists() const { return name == "cuda" || device >= 0; }
};

/// The GPU to run on; nothing: the CPU. `auto` takes a GPU where there is one that can be used, and tells `note` why one that is there
/// cannot.
/// @throws usage_error for options that contradict each other or this build, error when a GPU was asked for and cannot be had.
inline std::optional<gpu> choose_gpu(const backend_options& o, const std::function<void(const std::string&)>& note) {
  if (o.name == "cpu") {
    if (o.device >= 0) throw usage_error("--device chooses a GPU; leave it out with --backend cpu");
    return {};
  }
  if (o.insists() && !built_with_cuda())
    throw usage_error(std::string(o.device >= 0 ? "--device" : "--backend cuda") +
                      " is for builds with CUDA (cmake -DNIBBLE_CUDA=ON), and this is none; use --backend cpu");
  if (o.insists()) return open_gpu(o.device < 0 ? 0 : o.device);
  if (gpu_count() == 0) return {};
  try {
    return open_gpu(0);
  } catch (const gpu_unusable& unusable) {
    note(std::string(unusable.what()) + "; the CPU takes its place");
    return {};
  }
}

/// evaluate() on the GPU, if there is one; a GPU that nobody insisted on gives way to the CPU where it has too little memory.
inline std::vector<evaluation> evaluate_on(const std::optional<gpu>& on, const backend_options& o,
                                           const std::vector<evaluated_model>& models, const std::vector<int32_t>& ids,
                                           const std::vector<window>& windows, const evaluation_progress& progress,
                                           index_t activation_bytes,
                                           const std::function<void(const std::string&)>& note) {
  if (on) {
    try {
      const auto scorer = gpu_scorer(on->device);
      const index_t there = min(index_t(1) << 30, static_cast<index_t>(gpu_free_bytes() / 8));
      return evaluate(models, ids, windows, progress, there, scorer.get());
    } catch (const gpu_unusable& unusable) {
      if (o.insists()) throw;
      note(std::string(unusable.what()) + "; the CPU takes its place");
    }
  }
  return evaluate(models, ids, windows, progress, activation_bytes);
}

}  // namespace nibble::mistral

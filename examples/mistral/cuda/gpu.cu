// SPDX-License-Identifier: Apache-2.0
#include "mistral/gpu.hpp"

#include "mistral/cuda/forward.cuh"

namespace nibble::mistral {
namespace {

class scorer_on_gpu : public batch_scorer {
 public:
  explicit scorer_on_gpu(int device) : device_(device) {}

  void score(const evaluated_model& m, const batch& tokens, const std::vector<row_range>& rows, const int32_t* targets,
             token_score* scores, bool first, const std::function<void()>& step) override {
    const config& c = m.settings;
    if (first) first_ = {};
    const index_t others = first ? 4 * tokens.tokens() * c.hidden : 0;
    cuda::forward_pass pass(c, tokens.starts, device_, others);
    pass.embed(m.files, tokens.ids);
    stage(m, pass, 0);
    for (index_t layer = 0; layer < c.layers; ++layer) {
      pass.forward_layer();
      if (layer + 1 < c.layers) stage(m, pass, layer + 1);
      step();
    }
    lm_head head = load_head(m.files, c);
    pass.score(head, rows, targets, scores, first ? nullptr : &first_.head,
               {first_.x.data(), tokens.tokens(), first_.hidden});
    if (!first) return;
    first_.hidden = c.hidden;
    first_.x = cuda::device_memory<float>(tokens.tokens() * c.hidden, "the first model's predictions");
    cuda::check(cudaMemcpy(first_.x.data(), pass.x().data, static_cast<std::size_t>(pass.x().size()) * sizeof(float),
                           cudaMemcpyDeviceToDevice),
                "keep predictions");
    first_.head = std::move(head);
  }

 private:
  static void stage(const evaluated_model& m, cuda::forward_pass& pass, index_t layer) {
    if (m.layer)
      pass.stage(m.layer(layer));
    else
      pass.stage(m.files, layer);
  }

  /// What later models of the batch are compared with.
  struct first_model {
    index_t hidden = 0;
    cuda::device_memory<float> x;
    lm_head head;
  };
  int device_;
  first_model first_;
};

}  // namespace

bool built_with_cuda() {
  return true;
}

int gpu_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  static_cast<void>(cudaGetLastError());
  return 0;
}

std::uint64_t gpu_free_bytes() {
  std::size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "tell how much memory the GPU has");
  return free;
}

gpu open_gpu(int device) {
  cuda::use_device(device);
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, device), "tell what the GPU is");
  return {device, properties.name, gpu_free_bytes()};
}

std::unique_ptr<batch_scorer> gpu_scorer(int device) {
  return std::make_unique<scorer_on_gpu>(device);
}

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels quantize and dequantize, bf16 weights, 4 bits, groups of 128, beside a copy: bench_quantize_cuda.
#include "nibble/kernels/quantize.cuh"

#include "support/device.cuh"
#include "support/linear.cuh"

using namespace nibble;

namespace {

/// One launch's matrices, and the launch.
template <class Scheme, bool Back>
struct job {
  bench::linear on;

  status operator()(cudaStream_t stream) const {
    if constexpr (Back)
      return kernels::dequantize(on.codes(), on.parameters(), on.weights(), bench::group, Scheme{}, stream);
    else
      return kernels::quantize(matrix<const bf16>(on.weights()), on.parameters(), on.codes_out(), bench::group,
                               Scheme{}, stream);
  }
};

template <class Scheme>
void add(const std::string& name) {
  const auto bytes = [](bench::extents e) { return 3 * e.size() + 8 * e.n * bench::group.across(e.k); };
  bench::add_streaming(
      "quantize/" + name,
      [](bench::extents e, unsigned seed) {
        return job<Scheme, false>{{e, seed}};
      },
      bytes);
  bench::add_streaming(
      "dequantize/" + name,
      [](bench::extents e, unsigned seed) {
        return job<Scheme, true>{{e, seed}};
      },
      bytes);
}

void add_all() {
  add<scheme<4>>("compressed_tensors/bf16");
  add<scheme<4, false, convention::compressed_tensors, dtype::bf16, dtype::bf16>>(
      "compressed_tensors/bf16, computed in bf16");
  add<scheme<4, false, convention::autoawq>>("autoawq/bf16");
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels fit and fit_quantize_pack, bf16 weights, 4 bits, groups of 128, beside a copy of as many bytes: bench_fit_cuda.
#include "nibble/kernels/fit.cuh"

#include "nibble/kernels/fit_quantize_pack.cuh"
#include "support/device.cuh"
#include "support/linear.cuh"

using namespace nibble;

namespace {

using stored_in_bf16 = scheme<4, false, convention::compressed_tensors, dtype::bf16>;

/// One launch's matrices, and the launch. Searches write p as the range does; the codes of `on` are not used.
template <class Method>
struct fit_job {
  bench::linear on;
  Method method;

  status operator()(cudaStream_t stream) const {
    const matrix<params> p(on.p.data(), on.shape.n, bench::group.across(on.shape.k));
    return kernels::fit(matrix<const bf16>(on.weights()), p, bench::group, stored_in_bf16{}, method, nullptr, stream);
  }
};

struct pack_job {
  bench::linear on;
  bench::buffer<uint32_t> words;
  bench::buffer<bf16> scales;
  bench::buffer<uint8_t> zeros;

  pack_job(bench::extents e, unsigned seed)
      : on(e, seed),
        words(e.size() / 8),
        scales(e.n * bench::group.across(e.k)),
        zeros(e.n * bench::group.across(e.k)) {}
  status operator()(cudaStream_t stream) const {
    const index_t n = on.shape.n, k = on.shape.k, groups = bench::group.across(k);
    return kernels::fit_quantize_pack(layout::compressed_tensors{4}, matrix<const bf16>(on.weights()),
                                      matrix<uint32_t>(words.data(), n, k / 8), matrix<bf16>(scales.data(), n, groups),
                                      matrix<uint8_t>(zeros.data(), n, groups), bench::group.cols, stored_in_bf16{},
                                      stream);
  }
};

template <class Method>
void add_fit(const std::string& name, Method method) {
  const auto bytes = [](bench::extents e) { return 2 * e.size() + 8 * e.n * bench::group.across(e.k); };
  const auto make = [=](bench::extents e, unsigned seed) { return fit_job<Method>{{e, seed}, method}; };
  bench::add_streaming("fit/" + name + "/bf16", make, bytes);
}

void add_all() {
  add_fit("minmax", minmax{});
  add_fit("ends_search", ends_search{});
  const auto bytes = [](bench::extents e) { return 2 * e.size() + e.size() / 2 + 3 * e.n * bench::group.across(e.k); };
  const auto make = [](bench::extents e, unsigned seed) { return pack_job(e, seed); };
  bench::add_streaming("fit_quantize_pack/compressed_tensors/bf16", make, bytes);
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels pack, unpack and repack beside a copy: bench_pack_cuda.
#include "nibble/kernels/pack.cuh"

#include "support/device.cuh"

using namespace nibble;

namespace {

/// Random words of codes (n, k) in a layout.
template <class Layout>
struct stored_weights {
  using word = typename Layout::word;
  Layout l;
  layout::extents shape;
  bench::buffer<word> words;

  stored_weights(Layout own, bench::extents e, unsigned seed)
      : l(own), shape(own.packed(e.n, e.k)), words(shape.rows * shape.cols) {
    bench::fill(words, bench::uniform_bits<word>{8 * int{sizeof(word)}}, seed);
  }
  matrix<word> out() const { return {words.data(), shape.rows, shape.cols}; }
  matrix<const word> in() const { return out(); }
};

template <class Layout>
index_t bytes_of(Layout l, bench::extents e) {
  const layout::extents shape = l.packed(e.n, e.k);
  return shape.rows * shape.cols * index_t{sizeof(typename Layout::word)};
}

/// One launch's matrices, and the launch.
template <class Layout, bool Back>
struct job {
  bench::extents shape;
  bench::buffer<uint8_t> codes;
  stored_weights<Layout> stored;

  job(Layout l, bench::extents e, unsigned seed) : shape(e), codes(e.size()), stored(l, e, seed) {
    bench::fill(codes, bench::uniform_bits<uint8_t>{l.bits}, seed);
  }
  status operator()(cudaStream_t stream) const {
    const matrix<uint8_t> all(codes.data(), shape.n, shape.k);
    if constexpr (Back)
      return kernels::unpack(stored.l, stored.in(), all, stream);
    else
      return kernels::pack(stored.l, all, stored.out(), stream);
  }
};

template <class From, class To>
struct repack_job {
  bench::extents shape;
  stored_weights<From> from;
  stored_weights<To> to;

  status operator()(cudaStream_t stream) const {
    return kernels::repack(from.l, from.in(), to.l, to.out(), shape.n, shape.k, stream);
  }
};

template <class Layout>
void add(const std::string& name, Layout l) {
  const auto bytes = [=](bench::extents e) { return e.size() + bytes_of(l, e); };
  bench::add_streaming(
      "pack/" + name, [=](bench::extents e, unsigned seed) { return job<Layout, false>(l, e, seed); }, bytes);
  bench::add_streaming(
      "unpack/" + name, [=](bench::extents e, unsigned seed) { return job<Layout, true>(l, e, seed); }, bytes);
}

template <class From, class To>
void add_repack(const std::string& name, From from, To to) {
  bench::add_streaming(
      "repack/" + name,
      [=](bench::extents e, unsigned seed) {
        return repack_job<From, To>{e, {from, e, seed}, {to, e, seed}};
      },
      [=](bench::extents e) { return bytes_of(from, e) + bytes_of(to, e); });
}

void add_all() {
  using namespace layout;
  for (const int bits : {3, 4, 8}) {
    add("compressed_tensors/" + std::to_string(bits), compressed_tensors{bits});
    add("gptq/" + std::to_string(bits), gptq{bits});
  }
  add("awq_gemm", awq_gemm{});
  add("awq_gemv_fast", awq_gemv_fast{});
  for (const int bits : {4, 8}) add("marlin/" + std::to_string(bits), marlin{bits});
  add("bitsandbytes", bitsandbytes{});
  add_repack("compressed_tensors to awq_gemm", compressed_tensors{4}, awq_gemm{});
  add_repack("awq_gemm to gptq", awq_gemm{}, gptq{4});
  add_repack("awq_gemm to marlin", awq_gemm{}, marlin{});
  add_repack("gptq to marlin", gptq{4}, marlin{});
  add_repack("compressed_tensors to marlin", compressed_tensors{4}, marlin{});
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}

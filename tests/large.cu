// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrices of more than 2^31 elements, on a GPU with room for them; on the executor the same with fewer.
#include <cuda_runtime.h>

#include <iostream>

#include "nibble/kernels/awq.cuh"
#include "nibble/kernels/distortion.cuh"
#include "nibble/kernels/fit_quantize_pack.cuh"
#include "nibble/kernels/observe.cuh"
#include "nibble/kernels/pack.cuh"
#include "nibble/kernels/quantize.cuh"
#include "support/blas.hpp"
#include "support/device.hpp"

namespace large_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr index_t pattern_rows = 32, cols = 2048;
#if defined(NIBBLE_SIMT)
constexpr index_t repeats = 3;  // the test itself is tested
#else
constexpr index_t repeats = (index_t{1} << 15) + 1;  // 2^31 elements and 65536 more
#endif

/// Some rows over and over in device memory; of results, a few rows are looked at.
template <class T>
struct repeated {
  T* data = nullptr;
  index_t wide;

  explicit repeated(index_t wide_) : wide(wide_) {
    succeeds(cudaMalloc(&data, bytes(repeats)));
    succeeds(cudaMemset(data, 0xff, bytes(repeats)));
  }
  explicit repeated(const owned<T>& pattern) : repeated(pattern.cols) {
    succeeds(cudaMemcpy(data, pattern.data.data(), bytes(1), cudaMemcpyHostToDevice));
    for (index_t filled = 1; filled < repeats; filled *= 2)
      succeeds(cudaMemcpy(data + filled * pattern_rows * wide, data, bytes(min(filled, repeats - filled)),
                          cudaMemcpyDeviceToDevice));
  }
  ~repeated() { cudaFree(data); }
  repeated(const repeated&) = delete;
  repeated& operator=(const repeated&) = delete;

  matrix<T> view() const { return {data, pattern_rows * repeats, wide}; }
  matrix<const T> const_view() const { return view(); }
  std::size_t bytes(index_t times) const { return static_cast<std::size_t>(times * pattern_rows * wide) * sizeof(T); }

  /// The first, middle and last repetition are all `pattern`.
  void require(const owned<T>& pattern) const {
    owned<T> got(pattern_rows, wide);
    for (const index_t at : {index_t{0}, repeats / 2, repeats - 1}) {
      CAPTURE(at);
      succeeds(cudaMemcpy(got.data.data(), data + at * pattern_rows * wide, bytes(1), cudaMemcpyDeviceToHost));
      REQUIRE(std::memcmp(static_cast<const void*>(got.data.data()), static_cast<const void*>(pattern.data.data()),
                          bytes(1)) == 0);
    }
  }
};

/// Whether there is a GPU with room for such matrices.
bool has_room() {
#if defined(NIBBLE_SIMT)
  std::cout << "left out: matrices of 2^31 elements, for there is no GPU\n";
  return true;
#else
  std::size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) == cudaSuccess && free > (std::size_t{14} << 30)) return true;
  std::cout << "left out: matrices of 2^31 elements, which want 14 GiB of the GPU's memory\n";
  return false;
#endif
}

void near_multiple(const std::vector<double>& got, const std::vector<double>& of_pattern) {
  for (std::size_t j = 0; j < got.size(); ++j)
    REQUIRE(std::fabs(got[j] - static_cast<double>(repeats) * of_pattern[j]) <= 1e-9 * got[j]);
}

}  // namespace

TEST_CASE("a matrix of more than 2^31 elements is quantized, packed, read back and judged as its rows by themselves") {
  if (!has_room()) return;
  any_scheme s;
  s.scale_dtype = dtype::f16;
  const group_shape g = per_group(128);
  const layout::compressed_tensors l{4};
  const auto pattern = weights<bf16>(pattern_rows, cols);
  const device_matrix<bf16> w(pattern), back(pattern_rows, cols);
  const device_matrix<params> p(pattern_rows, cols / 128);
  const device_matrix<uint8_t> q(pattern_rows, cols), zeros(pattern_rows, cols / 128);
  const device_matrix<uint32_t> words(pattern_rows, cols / 8);
  const device_matrix<fp16> scales(pattern_rows, cols / 128);
  const repeated<bf16> all_w(pattern), all_back(cols);
  const repeated<params> all_p(cols / 128);
  const repeated<uint8_t> all_q(cols), all_zeros(cols / 128);
  const repeated<uint32_t> all_words(cols / 8);
  const repeated<fp16> all_scales(cols / 128);
  const auto both = [](auto launcher) {
    REQUIRE(launcher(std::true_type{}) == status::ok);
    REQUIRE(launcher(std::false_type{}) == status::ok);
  };
  const auto pick = [](auto all, const auto& large, const auto& small) {
    if constexpr (decltype(all)::value)
      return large.view();
    else
      return small.view();
  };
  const auto read = [&](auto all, const auto& large, const auto& small) {
    return matrix<const std::remove_pointer_t<decltype(large.view().data)>>(pick(all, large, small));
  };
  both([&](auto all) {
    return kernels::fit(read(all, all_w, w), pick(all, all_p, p), g, s, minmax{}, nullptr, nullptr);
  });
  all_p.require(p.download());
  both([&](auto all) {
    return kernels::quantize(read(all, all_w, w), read(all, all_p, p), pick(all, all_q, q), g, s, nullptr);
  });
  all_q.require(q.download());
  both([&](auto all) {
    return kernels::dequantize(read(all, all_q, q), read(all, all_p, p), pick(all, all_back, back), g, s, nullptr);
  });
  all_back.require(back.download());
  both([&](auto all) { return kernels::pack(l, read(all, all_q, q), pick(all, all_words, words), nullptr); });
  all_words.require(words.download());
  const auto codes = q.download();
  succeeds(cudaMemset(all_q.data, 0xff, all_q.bytes(repeats)));
  both([&](auto all) { return kernels::unpack(l, read(all, all_words, words), pick(all, all_q, q), nullptr); });
  all_q.require(codes);
  succeeds(cudaMemset(all_words.data, 0xff, all_words.bytes(repeats)));
  both([&](auto all) {
    return kernels::fit_quantize_pack(l, read(all, all_w, w), pick(all, all_words, words),
                                      pick(all, all_scales, scales), pick(all, all_zeros, zeros), 128, s, nullptr);
  });
  all_words.require(words.download());
  all_scales.require(scales.download());
  all_zeros.require(zeros.download());

  const device_array<distortion_sums> sums(1), all_sums(1);
  for (const bool all : {false, true})
    with_workspace([&](void* workspace, index_t& bytes) {
      return all ? kernels::distortion(all_w.const_view(), all_back.const_view(), all_sums.data(), workspace, bytes,
                                       nullptr)
                 : kernels::distortion(w.const_view(), back.const_view(), sums.data(), workspace, bytes, nullptr);
    });
  REQUIRE(all_sums.download()[0].mse() == Approx(sums.download()[0].mse()).epsilon(1e-9));
  REQUIRE(all_sums.download()[0].max_error() == sums.download()[0].max_error());
  const device_array<double> divergence(pattern_rows), all_divergence(pattern_rows * repeats);
  REQUIRE(kernels::kl_divergence(w.const_view(), back.const_view(), divergence.data(), nullptr) == status::ok);
  REQUIRE(kernels::kl_divergence(all_w.const_view(), all_back.const_view(), all_divergence.data(), nullptr) ==
          status::ok);
  const auto of_rows = divergence.download(), of_all_rows = all_divergence.download();
  for (index_t row = 0; row < pattern_rows * repeats; ++row)
    if (std::memcmp(&of_all_rows[static_cast<std::size_t>(row)], &of_rows[static_cast<std::size_t>(row % pattern_rows)],
                    sizeof(double)) != 0)
      FAIL("row " << row);
}

TEST_CASE("a matrix of more than 2^31 elements is observed and scaled as its rows by themselves") {
  if (!has_room()) return;
  const any_scheme s;
  const auto pattern = weights<bf16>(pattern_rows, cols);
  const device_matrix<bf16> w(pattern), out(pattern_rows, cols);
  const repeated<bf16> all_w(pattern), all_out(cols);
  const device_array<float> by(std::vector<float>(cols, 1.25f));
  const auto zeros = [] { return device_array<double>(std::vector<double>(cols, 0.0)); };
  const auto none = [] { return device_array<float>(std::vector<float>(cols, 0.0f)); };
  const auto sum = zeros(), all_sum = zeros(), importance = zeros(), all_importance = zeros();
  const auto most = none(), all_most = none();
  const auto gather = [&](matrix<const bf16> x, double* sums, float* maxima, double* weighed) {
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::observe(x, {sums, maxima, nullptr}, matrix<bf16>(), workspace, bytes, nullptr);
    });
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::weight_importance(x, 128, weighed, workspace, bytes, nullptr);
    });
  };
  gather(w, sum.data(), most.data(), importance.data());
  gather(all_w.const_view(), all_sum.data(), all_most.data(), all_importance.data());
  near_multiple(all_sum.download(), sum.download());
  near_multiple(all_importance.download(), importance.download());
  REQUIRE(all_most.download() == most.download());

  REQUIRE(kernels::scale_columns(w.const_view(), by.data(), out.view(), nullptr) == status::ok);
  REQUIRE(kernels::scale_columns(all_w.const_view(), by.data(), all_out.view(), nullptr) == status::ok);
  all_out.require(out.download());
  const matrix<params> nowhere;
  REQUIRE(kernels::scaled_error(w.const_view(), by.data(), out.view(), nowhere, 128, s, nullptr) == status::ok);
  REQUIRE(kernels::scaled_error(all_w.const_view(), by.data(), all_out.view(), nowhere, 128, s, nullptr) == status::ok);
  all_out.require(out.download());
}

}  // namespace large_tests

// SPDX-License-Identifier: Apache-2.0
/// @file
/// A CUDA runtime or cuBLAS that refuses: whichever of a launcher's launches it is, the launcher says launch_failed.
#include <cuda_runtime.h>

#include "nibble/kernels/clip.cuh"
#include "nibble/kernels/distortion.cuh"
#include "nibble/kernels/fit_quantize_pack.cuh"
#include "nibble/kernels/observe.cuh"
#include "nibble/kernels/pack.cuh"
#include "nibble/kernels/quantize.cuh"
#include "nibble/kernels/sweep.cuh"
#include "support/blas.hpp"
#include "support/device.hpp"

namespace launches_tests {

#if defined(NIBBLE_SIMT)
using namespace nibble;
using namespace nibble::test;

namespace {

/// launches_of a launcher that wants a workspace.
template <class F>
int launches_with_workspace(F call) {
  index_t bytes = -1;
  REQUIRE(call(nullptr, bytes) == status::ok);
  const device_array<unsigned char> workspace(bytes);
  return launches_of([&] { return call(workspace.data(), bytes); });
}

}  // namespace

TEST_CASE("quantize, dequantize and fit say so when a launch is refused") {
  const any_scheme s;
  const group_shape g = per_group(16);
  const device_matrix<float> w(weights<float>(4, 32)), large(owned<float>(300, 300, 1.0f));
  const device_matrix<params> p(owned<params>(4, 2, params{1.0f, 8})), one(1, 1);
  const device_matrix<uint8_t> q(owned<uint8_t>(4, 32, 3));
  CHECK(launches_of([&] { return kernels::quantize(w.const_view(), p.const_view(), q.view(), g, s, nullptr); }) == 1);
  CHECK(launches_of([&] { return kernels::dequantize(q.const_view(), p.const_view(), w.view(), g, s, nullptr); }) == 1);
  const auto fits = [&](matrix<const float> of, matrix<params> to, group_shape shape, auto method) {
    return launches_with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::fit(of, to, shape, s, method, nullptr, workspace, bytes, nullptr);
    });
  };
  const auto fits_without = [&](matrix<const float> of, matrix<params> to, group_shape shape, auto method) {
    return launches_of([&] { return kernels::fit(of, to, shape, s, method, nullptr, nullptr); });
  };
  CHECK(fits_without(w, p, g, minmax{}) == 1);
  CHECK(fits_without(w, one, per_tensor, minmax{}) == 1);
  CHECK(fits_without(large, one, per_tensor, minmax{}) == 3);
  CHECK(fits_without(w, p, g, ends_search{1, 0.5f, 0}) == 1);
  CHECK(fits_without(w, p, g, percentile{}) == 1);
  CHECK(fits(w, p, g, mse_search{4, 0.5, 2.0f, 1}) == 2);
  CHECK(fits(w, p, g, mse_search{4, 0.5, 2.0f, 0}) == 1);
}

TEST_CASE("pack, unpack, repack and one pass say so when a launch is refused") {
  const layout::compressed_tensors words_of{4};
  const device_matrix<uint8_t> codes(owned<uint8_t>(64, 64, 3)), zeros(64, 2), of_tensor(2, 4), stored_bytes(4, 1);
  const device_matrix<uint32_t> words(64, 8), turned(64, 8);
  const device_matrix<fp16> scales(owned<fp16>(64, 2, fp16(1.0f))), across(2, 64), same(64, 2);
  CHECK(launches_of([&] { return kernels::pack(words_of, codes.const_view(), words.view(), nullptr); }) == 1);
  CHECK(launches_of([&] { return kernels::unpack(words_of, words.const_view(), codes.view(), nullptr); }) == 1);
  CHECK(launches_of([&] {
          return kernels::repack(words_of, words.const_view(), layout::awq_gemm{}, turned.view(), 64, 64, nullptr);
        }) == 1);
  const auto both_scales = [&](auto l, matrix<fp16> stored) {
    CHECK(launches_of([&] { return kernels::pack_scales(l, scales.const_view(), stored, nullptr); }) == 1);
    CHECK(launches_of([&] { return kernels::unpack_scales(l, matrix<const fp16>(stored), scales.view(), nullptr); }) ==
          1);
  };
  both_scales(layout::gptq{4}.scales(), across);
  both_scales(words_of.scales(), same);
  const device_matrix<float> w(owned<float>(64, 64, 0.5f));
  any_scheme s;
  s.scale_dtype = dtype::f16;
  const auto one_pass = [&](auto l, matrix<uint32_t> to, matrix<fp16> of, index_t group) {
    return launches_of([&] {
      return kernels::fit_quantize_pack(l, w.const_view(), to, of, zeros.view().cols_at(0, 64 / group), group, s,
                                        nullptr);
    });
  };
  CHECK(one_pass(words_of, words, same, 32) == 1);
  CHECK(one_pass(layout::awq_gemm{}, turned, across, 32) == 1);
}

TEST_CASE("distortion and observe say so when a launch is refused") {
  const device_matrix<float> x(owned<float>(4, 32, 1.0f)), y(owned<float>(4, 32, 2.0f)), g(owned<float>(32, 32, 0.0f));
  const device_array<distortion_sums> sums(1);
  const device_array<double> of_rows(4), sum(std::vector<double>(32, 0.0));
  const device_array<float> most(std::vector<float>(32, 0.0f));
  const device_array<uint64_t> bad(std::vector<uint64_t>{0});
  const blas_handle blas;
  CHECK(launches_with_workspace([&](void* workspace, index_t& bytes) {
          return kernels::distortion(x.const_view(), y.const_view(), sums.data(), workspace, bytes, nullptr);
        }) == 2);
  CHECK(launches_of([&] { return kernels::kl_divergence(x.const_view(), y.const_view(), of_rows.data(), nullptr); }) ==
        1);
  CHECK(launches_with_workspace([&](void* workspace, index_t& bytes) {
          return kernels::absolute_sum(x.const_view(), sum.data(), workspace, bytes, nullptr);
        }) == 2);
  CHECK(launches_of([&] { return kernels::absolute_maximum(x.const_view(), most.data(), nullptr); }) == 1);
  CHECK(launches_of([&] { return kernels::count_non_finite(x.const_view(), bad.data(), nullptr); }) == 1);
  CHECK(launches_with_workspace([&](void* workspace, index_t& bytes) {
          return kernels::gram(x.const_view(), g.view(), workspace, bytes, blas);
        }) == 2);
  CHECK(launches_of([&] { return kernels::gram_of_finite(x.const_view(), g.view(), blas); }) == 1);
  CHECK(launches_of([&] { return kernels::mirror(g.view(), 1.0f, 0.5f, nullptr, nullptr); }) == 1);
}

TEST_CASE("awq's launchers, ranges under a Gram matrix and sweeps say so when a launch is refused") {
  const any_scheme s;
  const index_t rows = 1030, cols = 72;  // two turns of gram_loss and sweep, two blocks of columns
  const device_matrix<float> w(weights<float>(rows, cols)), out(rows, cols), g(owned<float>(cols, cols, 0.5f));
  const device_matrix<params> p(owned<params>(rows, 1, params{0.01f, 8}));
  const device_matrix<uint8_t> q(owned<uint8_t>(rows, cols, 3));
  const device_array<float> by(std::vector<float>(cols, 1.0f));
  const device_array<double> sum(std::vector<double>(cols, 0.0)), loss(1);
  const blas_handle blas;
  const auto few = w.const_view().rows_at(0, 3), few_out = matrix<const float>(out.view().rows_at(0, 3));
  const matrix<float> to(out.view().rows_at(0, 3));
  const auto few_p = p.view().rows_at(0, 3);
  CHECK(launches_with_workspace([&](void* workspace, index_t& bytes) {
          return kernels::weight_importance(few, -1, sum.data(), workspace, bytes, nullptr);
        }) == 3);
  CHECK(launches_of([&] { return kernels::scale_columns(few, by.data(), to, nullptr); }) == 1);
  CHECK(launches_of([&] { return kernels::scaled_error(few, by.data(), to, few_p, -1, s, nullptr); }) == 1);
  CHECK(launches_of([&] {
          return kernels::codes_error(few, q.const_view().rows_at(0, 3), matrix<const params>(few_p), by.data(),
                                      nullptr, to, -1, s, nullptr);
        }) == 1);
  CHECK(launches_with_workspace([&](void* workspace, index_t& bytes) {
          return kernels::gram_loss(w.const_view(), g.const_view(), loss.data(), workspace, bytes, blas);
        }) == 5);
  CHECK(launches_of(
            [&] { return kernels::clip_under_gram(few, by.data(), g.const_view(), -1, s, few_p, 1, nullptr); }) == 1);
  CHECK(launches_with_workspace([&](void* workspace, index_t& bytes) {
          return kernels::sweep(w.const_view(), by.data(), g.const_view(), p.const_view(), -1, s, 1, q.view(),
                                workspace, bytes, blas);
        }) == 2 * (2 + 2 * 2));
  CHECK(launches_of([&] {
          return kernels::matmul(blas, few_out, kernels::reading::plain, g.const_view(), kernels::reading::plain, 0.0f,
                                 to);
        }) == 1);
}
#endif

}  // namespace launches_tests

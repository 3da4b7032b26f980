// SPDX-License-Identifier: Apache-2.0
/// @file
/// The forward pass's launchers on the executor: rows more than 2^31 elements apart, and launches that are refused.
#include "mistral/cuda/attention.cuh"
#include "mistral/cuda/rounding.cuh"
#include "mistral/cuda/score.cuh"
#include "mistral_cuda/support.hpp"

#if defined(NIBBLE_SIMT)
#include "support/far.hpp"

namespace limits_tests {

using namespace nibble;
using namespace nibble::test;
using nibble::mistral::cuda::head_layout;
namespace cuda_forward = nibble::mistral::cuda;

TEST_CASE("embedding, norm, rotation and SwiGLU reach rows more than 2^31 elements apart") {
  const head_layout heads{2, 1, 8};
  const device_array<int32_t> ids(std::vector<int32_t>{6, 0, 4, 4, 1});
  const device_array<index_t> starts(std::vector<index_t>{0, 3, 5});
  const device_array<float> by(std::vector<float>(32, 1.5f));
  for (const index_t cols : {32, 30})
    same_near_and_far([&](auto place) {
      const auto table = place(stored_as<bf16>(random_matrix(7, cols, "table")));
      const auto x = place(owned<float>(5, cols)), qkv = place(random_matrix(5, 32, "qkv"));
      const auto normed = place(owned<bf16>(5, cols)), turned = place(owned<bf16>(5, 32));
      const auto gated = place(owned<bf16>(5, cols / 2));
      const auto cosine = place(random_matrix(3, 4, "cosine")), sine = place(random_matrix(3, 4, "sine"));
      REQUIRE(cuda_forward::embed(table.const_view(), 0, ids.data(), x.view(), nullptr) == status::ok);
      REQUIRE(cuda_forward::rms_norm(x.const_view(), by.data(), 1e-5f, normed.view(), nullptr) == status::ok);
      REQUIRE(cuda_forward::rotate(qkv.const_view(), heads, starts.data(), 2, cosine.const_view(), sine.const_view(),
                                   turned.view(), nullptr) == status::ok);
      REQUIRE(cuda_forward::swiglu(x.const_view(), gated.view(), nullptr) == status::ok);
      return bytes_of(x.download(), normed.download(), turned.download(), gated.download());
    });
}

TEST_CASE("rounding reaches rows of activations more than 2^31 elements apart") {
  const device_array<float> by(std::vector<float>(32, 1.5f));
  for (const index_t cols : {32, 30})
    same_near_and_far([&](auto place) {
      const auto x = place(stored_as<bf16>(random_matrix(5, cols, "x")));
      const auto y = place(owned<bf16>(5, cols)), off = place(owned<bf16>(5, cols));
      REQUIRE(cuda_forward::round_activations(x.const_view(), {true, 0, 16, by.data()}, y.view(), off.view(),
                                              nullptr) == status::ok);
      return bytes_of(y.download(), off.download());
    });
}

TEST_CASE("both kernels of attention reach rows more than 2^31 elements apart") {
  const head_layout heads{2, 1, 16};
  const device_array<index_t> starts(std::vector<index_t>{0, 40, 45});
  const auto qkv = stored_as<bf16>(random_matrix(45, heads.width(), "qkv", 1.5f));
  for (const auto attend : {&cuda_forward::attention_plain, &cuda_forward::attention_mma})
    same_near_and_far([&](auto place) {
      const auto there = place(qkv), out = place(owned<bf16>(45, heads.q_width()));
      REQUIRE(attend(there.const_view(), heads, starts.data(), 2, 40, 0, out.view(), nullptr) == status::ok);
      return bytes_of(out.download());
    });
}

TEST_CASE("scores reach rows of logits more than 2^31 elements apart") {
  const device_array<int32_t> targets(std::vector<int32_t>{3, 0, 29, 7});
  same_near_and_far([&](auto place) {
    const auto own = place(random_matrix(4, 30, "own")), other = place(random_matrix(4, 30, "other"));
    const device_array<cuda_forward::score_state> states(4);
    REQUIRE(cuda_forward::score_tile(own.const_view(), other.const_view(), 0, targets.data(), states.data(), nullptr) ==
            status::ok);
    std::vector<double> sums;
    for (const auto& s : states.download())
      for (const double x : {s.own.sum, s.reference.sum, s.cross, double{s.target}, double{s.own.largest}})
        sums.push_back(x);
    return bytes_of(sums);
  });
}

TEST_CASE("the forward pass's launchers say so when a launch is refused") {
  const head_layout heads{2, 1, 8};
  const device_array<int32_t> ids(std::vector<int32_t>{1, 0});
  const device_array<index_t> starts(std::vector<index_t>{0, 2});
  const device_array<float> by(std::vector<float>(32, 1.0f));
  const device_matrix<bf16> table(owned<bf16>(2, 32, bf16(1.0f))), y(owned<bf16>(2, 32)), half(2, 16);
  const device_matrix<float> x(owned<float>(2, 32, 1.0f)), angles(owned<float>(2, 4, 0.5f));
  const device_array<cuda_forward::score_state> states(2);
  CHECK(launches_of([&] { return cuda_forward::embed(table.const_view(), 0, ids.data(), x.view(), nullptr); }) == 1);
  CHECK(launches_of([&] { return cuda_forward::rms_norm(x.const_view(), by.data(), 1e-5f, y.view(), nullptr); }) == 1);
  CHECK(launches_of([&] {
          return cuda_forward::rotate(x.const_view(), heads, starts.data(), 1, angles.const_view(), angles.const_view(),
                                      y.view(), nullptr);
        }) == 1);
  CHECK(launches_of([&] {
          return cuda_forward::round_activations(y.const_view(), {false, 0.5f, 0, nullptr}, y.view(), {}, nullptr);
        }) == 1);
  CHECK(launches_of([&] { return cuda_forward::swiglu(x.const_view(), half.view(), nullptr); }) == 1);
  for (const auto attend : {&cuda_forward::attention_plain, &cuda_forward::attention_mma})
    CHECK(launches_of([&] { return attend(y.const_view(), heads, starts.data(), 1, 2, 0, half.view(), nullptr); }) ==
          1);
  CHECK(launches_of(
            [&] { return cuda_forward::score_tile(x.const_view(), {}, 0, ids.data(), states.data(), nullptr); }) == 1);
}

}  // namespace limits_tests
#endif

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows more than 2^31 elements apart, on the executor: no index of a kernel may pass through 32 bits.
#include <cuda_runtime.h>

#include "nibble/kernels/clip.cuh"
#include "nibble/kernels/distortion.cuh"
#include "nibble/kernels/fit_quantize_pack.cuh"
#include "nibble/kernels/gptq.cuh"
#include "nibble/kernels/observe.cuh"
#include "nibble/kernels/pack.cuh"
#include "nibble/kernels/quantize.cuh"
#include "nibble/kernels/refit.cuh"
#include "nibble/kernels/target.cuh"
#include "support/activations.hpp"
#include "support/blas.hpp"

#if defined(NIBBLE_SIMT)
#include "support/far.hpp"

namespace far_rows_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

owned<uint8_t> some_codes(index_t rows, index_t cols, int bits) {
  std::mt19937 engine(9);
  owned<uint8_t> codes(rows, cols);
  for (uint8_t& code : codes.data) code = static_cast<uint8_t>(engine() & ((1u << bits) - 1));
  return codes;
}

owned<params> some_params(index_t rows, index_t cols) {
  owned<params> p(rows, cols, params{});
  for (size_t i = 0; i < p.data.size(); ++i)
    p.data[i] = {0.004f * static_cast<float>(i % 5 + 1), static_cast<int>(i % 16)};
  return p;
}

owned<float> gram_of(index_t k) {
  const auto exact = exact_gram(activations(2 * k, k), 0.25f);
  owned<float> g(k, k);
  for (size_t i = 0; i < g.data.size(); ++i) g.data[i] = static_cast<float>(exact.data[i]);
  return g;
}

template <class Layout>
void packs_near_and_far(Layout l, index_t n, index_t k) {
  using word = typename Layout::word;
  CAPTURE(n, k, l.bits);
  const layout::extents shape = l.packed(n, k);
  same_near_and_far([&](auto place) {
    const auto codes = place(some_codes(n, k, l.bits)), back = place(owned<uint8_t>(n, k));
    const auto words = place(owned<word>(shape.rows, shape.cols));
    REQUIRE(kernels::pack(l, codes.const_view(), words.view(), nullptr) == status::ok);
    REQUIRE(kernels::unpack(l, words.const_view(), back.view(), nullptr) == status::ok);
    REQUIRE(back.download().data == codes.download().data);
    return bytes_of(words.download());
  });
}

template <class From, class To>
void repacks_near_and_far(From from, To to, index_t n, index_t k) {
  CAPTURE(n, k, from.bits);
  const layout::extents shape = from.packed(n, k), stored_shape = to.packed(n, k);
  same_near_and_far([&](auto place) {
    const auto codes = place(some_codes(n, k, from.bits));
    const auto words = place(owned<typename From::word>(shape.rows, shape.cols));
    const auto stored = place(owned<typename To::word>(stored_shape.rows, stored_shape.cols));
    REQUIRE(kernels::pack(from, codes.const_view(), words.view(), nullptr) == status::ok);
    REQUIRE(kernels::repack(from, words.const_view(), to, stored.view(), n, k, nullptr) == status::ok);
    return bytes_of(stored.download());
  });
}

template <class ScaleLayout>
void scales_near_and_far(ScaleLayout l, index_t n, index_t groups) {
  const layout::extents shape = l.packed(n, groups);
  owned<fp16> scales(n, groups);
  for (size_t i = 0; i < scales.data.size(); ++i) scales.data[i] = fp16(static_cast<float>(i + 1));
  same_near_and_far([&](auto place) {
    const auto from = place(scales), stored = place(owned<fp16>(shape.rows, shape.cols));
    const auto back = place(owned<fp16>(n, groups));
    REQUIRE(kernels::pack_scales(l, from.const_view(), stored.view(), nullptr) == status::ok);
    REQUIRE(kernels::unpack_scales(l, stored.const_view(), back.view(), nullptr) == status::ok);
    REQUIRE(bytes_of(back.download()) == bytes_of(scales));
    return bytes_of(stored.download());
  });
}

template <class Layout>
void one_pass_near_and_far(Layout l, index_t rows, index_t cols, index_t group) {
  CAPTURE(cols, group);
  const index_t groups = layout::groups(cols, group);
  const layout::extents packed = l.packed(rows, cols), scaled = l.scales().packed(rows, groups);
  any_scheme s;
  s.scale_dtype = dtype::f16;
  same_near_and_far([&](auto place) {
    const auto w = place(weights<bf16>(rows, cols));
    const auto words = place(owned<uint32_t>(packed.rows, packed.cols));
    const auto scales = place(owned<fp16>(scaled.rows, scaled.cols));
    const auto zeros = place(owned<uint8_t>(rows, groups));
    REQUIRE(kernels::fit_quantize_pack(l, w.const_view(), words.view(), scales.view(), zeros.view(), group, s,
                                       nullptr) == status::ok);
    return bytes_of(words.download(), scales.download(), zeros.download());
  });
}

}  // namespace

TEST_CASE("quantize and dequantize reach rows more than 2^31 elements apart") {
  for (const group_shape g : {per_group(32), group_shape{2, 19}})
    same_near_and_far([&](auto place) {
      const auto w = place(weights<bf16>(5, 160)), back = place(owned<bf16>(5, 160));
      const auto p = place(some_params(g.down(5), g.across(160)));
      const auto q = place(owned<uint8_t>(5, 160));
      REQUIRE(kernels::quantize(w.const_view(), p.const_view(), q.view(), g, any_scheme{}, nullptr) == status::ok);
      REQUIRE(kernels::dequantize(q.const_view(), p.const_view(), back.view(), g, any_scheme{}, nullptr) == status::ok);
      return bytes_of(q.download(), back.download());
    });
}

TEST_CASE("a search of a grid reaches rows more than 2^31 elements apart") {
  for (const group_shape g : {per_group(32), per_tensor, group_shape{2, 24}})
    for (const int patience : {0, 3})
      same_near_and_far([&](auto place) {
        const auto w = place(weights<bf16>(4, 160));
        const auto p = place(owned<params>(g.down(4), g.across(160), params{}));
        mse_search m;
        m.patience = patience;
        with_workspace([&](void* workspace, index_t& bytes) {
          return kernels::fit(w.const_view(), p.view(), g, any_scheme{}, m, nullptr, workspace, bytes, nullptr);
        });
        return bytes_of(p.download());
      });
}

TEST_CASE("pack, unpack and repack reach rows more than 2^31 elements apart") {
  packs_near_and_far(layout::compressed_tensors{4}, 70, 72);
  packs_near_and_far(layout::gptq{4}, 64, 72);
  packs_near_and_far(layout::gptq{4}.zeros(), 64, 9);
  packs_near_and_far(layout::bitsandbytes{}, 5, 64);
  repacks_near_and_far(layout::compressed_tensors{4}, layout::awq_gemm{}, 64, 72);
  repacks_near_and_far(layout::compressed_tensors{4}.zeros(), layout::gptq{4}.zeros(), 64, 9);
  scales_near_and_far(layout::gptq{4}.scales(), 70, 40);
  scales_near_and_far(layout::compressed_tensors{4}.scales(), 70, 40);
}

TEST_CASE("one pass of fit, quantize and pack reaches rows more than 2^31 elements apart") {
  one_pass_near_and_far(layout::compressed_tensors{4}, 5, 160, 32);
  one_pass_near_and_far(layout::compressed_tensors{4}, 5, 132, 12);
  one_pass_near_and_far(layout::compressed_tensors{4}, 5, 1160, -1);
  one_pass_near_and_far(layout::awq_gemm{}, 16, 48, 16);
  one_pass_near_and_far(layout::gptq{4}, 16, 48, 16);
}

TEST_CASE("distortion and divergence reach rows more than 2^31 elements apart") {
  same_near_and_far([](auto place) {
    const auto x = place(weights<bf16>(5, 160, 1)), y = place(weights<bf16>(5, 160, 2));
    const device_array<distortion_sums> sums(1);
    const device_array<double> divergence(5);
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::distortion(x.const_view(), y.const_view(), sums.data(), workspace, bytes, nullptr);
    });
    REQUIRE(kernels::kl_divergence(x.const_view(), y.const_view(), divergence.data(), nullptr) == status::ok);
    return bytes_of(sums.download(), divergence.download());
  });
}

TEST_CASE("statistics and the Gram matrix reach rows more than 2^31 elements apart") {
  same_near_and_far([](auto place) {
    const auto x = place(nasty_weights<float>(9, 40)), clean = place(owned<float>(9, 40));
    const device_array<double> sum(std::vector<double>(40, 0.0));
    const device_array<float> most(std::vector<float>(40, 0.0f));
    const device_array<uint64_t> bad(std::vector<uint64_t>{0});
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::observe(x.const_view(), {sum.data(), most.data(), bad.data()}, clean.view(), workspace, bytes,
                              nullptr);
    });
    const blas_handle blas;
    const device_matrix<float> g(owned<float>(40, 40, 0.0f));
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::gram(x.const_view(), g.view(), workspace, bytes, blas);
    });
    return bytes_of(sum.download(), most.download(), bad.download(), clean.download(), g.download());
  });
  same_near_and_far([](auto place) {
    const auto g = place(gram_of(40));
    const device_array<float> diagonal(40);
    REQUIRE(kernels::mirror(g.view(), 0.5f, 0.25f, diagonal.data(), nullptr) == status::ok);
    return bytes_of(g.download(), diagonal.download());
  });
}

TEST_CASE("awq's launchers reach rows more than 2^31 elements apart") {
  const any_scheme s;
  same_near_and_far([&](auto place) {
    const auto w = place(weights<float>(5, 160)), scaled = place(owned<float>(5, 160)),
               apart = place(owned<float>(5, 160));
    const auto of_codes = place(owned<float>(5, 160));
    const auto q = place(some_codes(5, 160, 4));
    const auto p = place(owned<params>(5, 5, params{}));
    const device_array<float> by(std::vector<float>(160, 1.25f));
    const device_array<double> sum(std::vector<double>(160, 0.0));
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::weight_importance(w.const_view(), 32, sum.data(), workspace, bytes, nullptr);
    });
    REQUIRE(kernels::scale_columns(w.const_view(), by.data(), scaled.view(), nullptr) == status::ok);
    REQUIRE(kernels::scaled_error(w.const_view(), by.data(), apart.view(), p.view(), 32, s, nullptr) == status::ok);
    REQUIRE(kernels::codes_error(scaled.const_view(), q.const_view(), p.const_view(), by.data(), nullptr,
                                 of_codes.view(), 32, s, nullptr) == status::ok);
    return bytes_of(sum.download(), scaled.download(), apart.download(), p.download(), of_codes.download());
  });
}

TEST_CASE("the search of ranges under a Gram matrix, and sweeps, reach rows more than 2^31 elements apart") {
  const device_array<float> by(std::vector<float>(24, 1.25f));
  const device_matrix<float> g(gram_of(24));
  same_near_and_far([&](auto place) {
    const auto w = place(weights<float>(5, 24)), far_g = place(gram_of(24));
    const auto p = place(some_params(5, 3));
    REQUIRE(kernels::clip_under_gram(w.const_view(), by.data(), far_g.const_view(), 8, any_scheme{}, p.view(), 3,
                                     nullptr) == status::ok);
    return bytes_of(p.download());
  });
  same_near_and_far([&](auto place) {
    const blas_handle blas;
    const auto w = place(weights<float>(5, 24));
    const auto p = place(some_params(5, 3));
    const auto q = place(some_codes(5, 24, 4));
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::sweep(w.const_view(), by.data(), g.const_view(), p.const_view(), 8, any_scheme{}, 2, q.view(),
                            workspace, bytes, blas);
    });
    return bytes_of(q.download());
  });
}

TEST_CASE("gptq's launchers reach rows more than 2^31 elements apart, where no product needs them") {
  const blas_handle blas;
  const device_array<float> by(std::vector<float>(24, 1.25f));
  const device_array<kernels::factored> state(1);
  const device_matrix<float> near_l(24, 24);
  same_near_and_far([&](auto place) {
    const auto g = place(gram_of(24)), l = place(owned<float>(24, 24, 0.0f));
    REQUIRE(kernels::factor(g.const_view(), by.data(), nullptr, 0.01, true, l.view(), state.data(), blas) ==
            status::ok);
    return bytes_of(l.download());
  });
  REQUIRE(kernels::factor(device_matrix<float>(gram_of(24)).const_view(), nullptr, nullptr, 0.01, false, near_l.view(),
                          state.data(), blas) == status::ok);
  for (const auto ranges : {gptq_ranges::given, gptq_ranges::minmax, gptq_ranges::mse})
    same_near_and_far([&](auto place) {
      const auto w = place(weights<float>(5, 24));
      const auto p = place(some_params(5, 3));
      const auto q = place(owned<uint8_t>(5, 24));
      with_workspace([&](void* workspace, index_t& bytes) {
        return kernels::gptq(w.const_view(), near_l.const_view(), {}, 8, ranges, any_scheme{}, p.view(), q.view(),
                             nullptr, workspace, bytes, blas);
      });
      return bytes_of(p.download(), q.download());
    });
  const device_matrix<float> g(gram_of(24));
  same_near_and_far([&](auto place) {
    const auto w = place(weights<float>(5, 24));
    const auto p = place(some_params(5, 3));
    const auto q = place(some_codes(5, 24, 4));
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::sweep_and_refit(w.const_view(), by.data(), g.const_view(), 8, any_scheme{}, 2, p.view(), q.view(),
                                      workspace, bytes, blas);
    });
    return bytes_of(p.download(), q.download());
  });
  same_near_and_far([&](auto place) {
    const auto original = place(weights<float>(9, 24)), x = place(weights<float>(9, 24, 2));
    const auto before = place(weights<float>(9, 5, 3)), now = place(weights<float>(9, 5, 4));
    const device_matrix<float> sum(owned<float>(24, 24, 0.0f));
    const device_matrix<float> joined(owned<float>(5, 24, 0.0f));
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::drift(original.const_view(), x.const_view(), sum.view(), workspace, bytes, blas);
    });
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::drift(before.const_view(), now.const_view(), x.const_view(), joined.view(), workspace, bytes,
                            blas);
    });
    const device_matrix<float> w(weights<float>(5, 24));
    const auto made_up = place(joined.download());
    const auto target = place(owned<float>(5, 24, 0.0f));
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::moved_target(w.const_view(), by.data(), sum.const_view(), 9, nullptr, near_l.const_view(),
                                   state.data(), 1.0f, 0.0f, {made_up.const_view(), nullptr, 0.5f}, target.view(),
                                   workspace, bytes, blas);
    });
    return bytes_of(target.download());
  });
}

}  // namespace far_rows_tests
#endif

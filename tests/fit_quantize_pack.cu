// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/fit_quantize_pack.cuh"

#include "nibble/reference/fit.hpp"
#include "nibble/reference/pack.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/device.hpp"
#include "support/weights.hpp"

namespace fit_quantize_pack_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr convention conventions[] = {convention::compressed_tensors, convention::autoawq, convention::gptq,
                                      convention::torchao};
constexpr dtype dtypes[] = {dtype::f32, dtype::f16, dtype::bf16};

struct place {
  index_t padding = 0, offset = 0;
};

template <class S, class Layout, class T, class Scheme>
void one_pass_is_three(Layout l, const owned<T>& w, index_t group, Scheme s, place w_at = {}, place out_at = {}) {
  CAPTURE(w.rows, w.cols, group, s.bits, s.symmetric, int(s.rule), int(s.scale_dtype), int(s.compute_dtype), sizeof(T),
          sizeof(S), w_at.padding, w_at.offset, out_at.padding, out_at.offset);
  const group_shape g = group < 0 ? per_channel : per_group(group);
  const index_t groups = layout::groups(w.cols, group);
  owned<params> p(w.rows, groups);
  owned<uint8_t> codes(w.rows, w.cols), zeros(w.rows, groups);
  reference::fit(w.view(), p.view(), g, s, minmax{});
  reference::quantize(w.view(), std::as_const(p).view(), codes.view(), g, s);
  const layout::extents packed = l.packed(w.rows, w.cols), scale_extents = l.scales().packed(w.rows, groups);
  owned<uint32_t> words(packed.rows, packed.cols);
  reference::pack(l, std::as_const(codes).view(), words.view());
  owned<S> plain(w.rows, groups), scales(scale_extents.rows, scale_extents.cols);
  for (std::size_t i = 0; i < p.data.size(); ++i) {
    plain.data[i] = S(p.data[i].scale);
    zeros.data[i] = static_cast<uint8_t>(p.data[i].zero);
  }
  reference::pack_scales(l.scales(), std::as_const(plain).view(), scales.view());

  const device_matrix<T> w_there(w, w.cols + w_at.padding, w_at.offset);
  const device_matrix<uint32_t> words_there(packed.rows, packed.cols, packed.cols + out_at.padding, out_at.offset);
  const device_matrix<S> scales_there(scales.rows, scales.cols, scales.cols + out_at.padding, out_at.offset);
  const device_matrix<uint8_t> zeros_there(w.rows, groups, groups + out_at.padding, out_at.offset);
  REQUIRE(kernels::fit_quantize_pack(l, w_there.const_view(), words_there.view(), scales_there.view(),
                                     zeros_there.view(), group, s, nullptr) == status::ok);
  REQUIRE(words_there.download().data == words.data);
  REQUIRE(zeros_there.download().data == zeros.data);
  const auto got = scales_there.download();
  REQUIRE(std::memcmp(static_cast<const void*>(got.data.data()), static_cast<const void*>(scales.data.data()),
                      got.data.size() * sizeof(S)) == 0);
}

/// Weights in a dtype by `turn`, scales in the scheme's.
template <class S, class Layout>
void one_pass_is_three_in_turn(int turn, Layout l, index_t rows, index_t cols, index_t group, any_scheme s) {
  if (turn % 3 == 0) one_pass_is_three<S>(l, nasty_weights<float>(rows, cols), group, s);
  if (turn % 3 == 1) one_pass_is_three<S>(l, weights<fp16>(rows, cols), group, s);
  if (turn % 3 == 2) one_pass_is_three<S>(l, nasty_weights<bf16>(rows, cols), group, s);
}

template <class Layout>
void one_pass_is_three_in_stored_dtype(int turn, Layout l, index_t rows, index_t cols, index_t group, any_scheme s) {
  if (s.scale_dtype == dtype::f32) one_pass_is_three_in_turn<float>(turn, l, rows, cols, group, s);
  if (s.scale_dtype == dtype::f16) one_pass_is_three_in_turn<fp16>(turn, l, rows, cols, group, s);
  if (s.scale_dtype == dtype::bf16) one_pass_is_three_in_turn<bf16>(turn, l, rows, cols, group, s);
}

/// f(scheme, turn) for every convention, width and pair of dtypes.
template <class F>
void each_scheme(F f) {
  int turn = 0;
  for (const auto rule : conventions)
    for (const auto stored : dtypes)
      for (const auto compute : dtypes)
        for (const bool symmetric : {false, true}) {
          f(any_scheme{1 + turn % 8, symmetric, rule, stored, compute}, turn);
          ++turn;
        }
}

}  // namespace

TEST_CASE("one pass gives the words, scales and zero points of fit, quantize and pack under every scheme") {
  const index_t groups[] = {32, -1, 8, 128, 12, 16, 64, 1, 256};
  each_scheme([&](any_scheme s, int turn) {
    const index_t group = groups[turn % 9], cols = group < 0 ? 61 + turn : group * (1 + 130 / group);
    one_pass_is_three_in_stored_dtype(turn / 2, layout::compressed_tensors{s.bits}, 5, cols, group, s);
  });
  for (const index_t group : groups)
    one_pass_is_three<fp16>(layout::compressed_tensors{4}, weights<bf16>(40, 768), group,
                            scheme<4, false, convention::compressed_tensors, dtype::f16>{});
}

TEST_CASE("one pass takes every remainder of rows, columns and groups in every width of codes") {
  for (int bits = 1; bits <= 8; ++bits) {
    any_scheme s;
    s.bits = bits;
    const layout::compressed_tensors l{bits};
    for (index_t cols = 1; cols <= 34; ++cols) one_pass_is_three<float>(l, weights<bf16>(3, cols), -1, s);
    for (index_t group = 1; group <= 20; ++group) one_pass_is_three<float>(l, weights<bf16>(3, 3 * group), group, s);
    for (const index_t cols : {255, 256, 257, 264, 1024, 1025, 1032, 4100})
      one_pass_is_three<float>(l, weights<bf16>(3, cols), -1, s);
  }
  const layout::compressed_tensors l;
  for (index_t rows = 1; rows <= 20; ++rows) one_pass_is_three<float>(l, weights<fp16>(rows, 64), 32, any_scheme{});
  for (const index_t rows : {255, 256, 257, 1030}) one_pass_is_three<float>(l, weights<fp16>(rows, 8), 8, any_scheme{});
  one_pass_is_three<float>(l, weights<fp16>(3, 4608), 128, any_scheme{});
  one_pass_is_three<float>(l, weights<float>(3, 5120), 1280, any_scheme{});
  one_pass_is_three<float>(l, weights<float>(3, 1200), 300, any_scheme{});
}

TEST_CASE("one pass takes any stride and offset, aligned for wide accesses or not") {
  for (const index_t offset : {0, 1, 2, 4, 8})
    for (const index_t padding : {0, 1, 4, 8})
      for (const index_t group : {32, -1, 20}) {
        const layout::compressed_tensors l;
        one_pass_is_three<float>(l, weights<bf16>(5, 320), group, any_scheme{}, {padding, offset});
        one_pass_is_three<float>(l, weights<float>(5, 320), group, any_scheme{}, {padding, offset}, {offset, padding});
        one_pass_is_three<float>(l, weights<bf16>(5, 320), group, any_scheme{}, {}, {padding, offset});
      }
}

TEST_CASE("one pass writes AutoAWQ's and GPTQ's words too") {
  each_scheme([&](any_scheme s, int turn) {
    const index_t group = turn % 3 == 0 ? 32 : turn % 3 == 1 ? 128 : 64, rows = 32 + 32 * (turn % 4);
    const int bits[] = {2, 3, 4, 8};
    s.bits = bits[turn % 4];
    one_pass_is_three_in_stored_dtype(turn / 2, layout::gptq{s.bits}, rows, 2 * group, group, s);
    s.bits = 4;
    one_pass_is_three_in_stored_dtype(turn / 2 + 1, layout::awq_gemm{}, rows - 8, 3 * group, group, s);
  });
  for (index_t rows = 8; rows <= 160; rows += 8)
    one_pass_is_three<fp16>(layout::awq_gemm{}, weights<bf16>(rows, 48), 16,
                            scheme<4, false, convention::autoawq, dtype::f16>{});
  for (const index_t group : {8, 24, 40, 256, -1}) {
    one_pass_is_three<float>(layout::gptq{4}, weights<fp16>(96, group < 0 ? 200 : 2 * group), group, any_scheme{});
    one_pass_is_three<float>(layout::awq_gemm{}, weights<float>(1032, group < 0 ? 31 : 2 * group), group, any_scheme{},
                             {1, 1}, {3, 1});
  }
}

TEST_CASE("one pass gives the same bytes under every schedule") {
  // Groups of a block each, by turns wide and narrow, so that one group's range shows in another's.
  owned<float> turns(6, 8 * 1032);
  for (std::size_t i = 0; i < turns.data.size(); ++i)
    turns.data[i] = (static_cast<float>(i % 7) - 3.0f) * (i / 1032 % 2 == 0 ? 0.01f : 1.0f);
  under_schedules(5, [&] {
    one_pass_is_three<float>(layout::compressed_tensors{4}, nasty_weights<bf16>(40, 384), 128, any_scheme{});
    one_pass_is_three<float>(layout::compressed_tensors{4}, nasty_weights<bf16>(9, 2100), -1, any_scheme{});
    one_pass_is_three<float>(layout::compressed_tensors{4}, nasty_weights<bf16>(9, 120), 20, any_scheme{});
    one_pass_is_three<float>(layout::compressed_tensors{4}, turns, 1032, any_scheme{});
    one_pass_is_three<float>(layout::awq_gemm{}, nasty_weights<bf16>(136, 256), 128, any_scheme{});
    one_pass_is_three<float>(layout::gptq{4}, nasty_weights<bf16>(136, 64), 32, any_scheme{});
  });
}

TEST_CASE("one pass leaves out the zero points of a symmetric scheme when there is no room for them") {
  any_scheme s;
  s.symmetric = true;
  for (const index_t group : {32, 20, -1}) {
    const auto w = weights<bf16>(5, 320);
    owned<params> p(5, layout::groups(320, group));
    owned<uint8_t> codes(5, 320);
    owned<uint32_t> words(5, 40);
    const group_shape g = group < 0 ? per_channel : per_group(group);
    reference::fit(w.view(), p.view(), g, s, minmax{});
    reference::quantize(w.view(), std::as_const(p).view(), codes.view(), g, s);
    reference::pack(layout::compressed_tensors{}, std::as_const(codes).view(), words.view());
    const device_matrix<bf16> w_there(w);
    const device_matrix<uint32_t> words_there(5, 40);
    const device_matrix<float> scales(5, p.cols);
    REQUIRE(kernels::fit_quantize_pack(layout::compressed_tensors{}, w_there.const_view(), words_there.view(),
                                       scales.view(), matrix<uint8_t>(), group, s, nullptr) == status::ok);
    REQUIRE(words_there.download().data == words.data);
  }
}

TEST_CASE("one pass refuses what it cannot do, and says why") {
  const device_matrix<float> w(8, 64), scales(8, 2), turned(2, 8);
  const device_matrix<uint32_t> words(8, 8), awq_words(64, 1);
  const device_matrix<uint8_t> zeros(8, 2);
  const auto refused = [&](matrix<float> w_, matrix<uint32_t> words_, matrix<float> scales_, matrix<uint8_t> zeros_,
                           index_t group = 32, any_scheme s = {}, layout::compressed_tensors l = {}) {
    return kernels::fit_quantize_pack(l, matrix<const float>(w_), words_, scales_, zeros_, group, s, nullptr);
  };
  any_scheme s;
  for (const int bits : {0, 3, 9}) {
    s.bits = bits;
    CHECK(refused(w, words, scales, zeros, 32, s) == status::bad_bits);
  }
  s.bits = 9;
  CHECK(refused(w, words, scales, zeros, 32, s, {9}) == status::bad_bits);
  for (const index_t group : {0, -2, 33, 48}) CHECK(refused(w, words, scales, zeros, group) == status::bad_group);
  CHECK(refused({nullptr, 0, 64}, words, scales, zeros) == status::bad_shape);
  CHECK(refused({w.view().data, -1, 64}, words, scales, zeros) == status::bad_shape);
  CHECK(refused({w.view().data, 8, 64, 63}, words, scales, zeros) == status::bad_shape);
  CHECK(refused({nullptr, 8, 64}, words, scales, zeros) == status::bad_shape);
  CHECK(refused(w.view().rows_at(0, 7), words, scales, zeros) == status::bad_shape);
  CHECK(refused(w, words.view().cols_at(0, 7), scales, zeros) == status::bad_shape);
  CHECK(refused(w, {nullptr, 8, 8}, scales, zeros) == status::bad_shape);
  CHECK(refused(w, words, scales.view().cols_at(0, 1), zeros) == status::bad_shape);
  CHECK(refused(w, words, {nullptr, 8, 2}, zeros) == status::bad_shape);
  CHECK(refused(w, words, scales, zeros.view().cols_at(0, 1)) == status::bad_shape);
  CHECK(refused(w, words, scales, {}) == status::bad_shape);
  CHECK(refused(w, words, scales, zeros, 64) == status::bad_shape);
  const auto bytes = [](auto* p) { return reinterpret_cast<char*>(p); };
  CHECK(refused({reinterpret_cast<float*>(bytes(w.view().data) + 2), 8, 64}, words, scales, zeros) ==
        status::misaligned);
  CHECK(refused(w, {reinterpret_cast<uint32_t*>(bytes(words.view().data) + 2), 8, 8}, scales, zeros) ==
        status::misaligned);
  CHECK(refused(w, words, {reinterpret_cast<float*>(bytes(scales.view().data) + 2), 8, 2}, zeros) ==
        status::misaligned);
  const index_t many = index_t{1} << 50;
  CHECK(refused({w.view().data, many, 8}, {words.view().data, many, 1}, {scales.view().data, many, 1},
                {zeros.view().data, many, 1}, -1) == status::too_large);
  CHECK(refused({w.view().data, many, 400}, {words.view().data, many, 50}, {scales.view().data, many, 1},
                {zeros.view().data, many, 1}, -1) == status::too_large);

  const auto other = [&](auto l, matrix<float> scales_, index_t group, index_t k = 64) {
    const layout::extents e = l.packed(8, k);
    return kernels::fit_quantize_pack(l, matrix<const float>(w.view().data, 8, k), {words.view().data, e.rows, e.cols},
                                      scales_, {zeros.view().data, 8, layout::groups(k, group)}, group, any_scheme{},
                                      nullptr);
  };
  CHECK(other(layout::awq_gemm{}, scales, 32) == status::bad_shape);
  CHECK(other(layout::gptq{4}, {turned.view().data, 16, 8}, 4) == status::bad_group);
  CHECK(other(layout::awq_gemm{}, {turned.view().data, 1, 8}, -1, 257) == status::bad_group);
  {
    const device_matrix<fp16> fp16_scales(8, 2);
    CHECK(kernels::fit_quantize_pack(layout::compressed_tensors{}, w.const_view(), words.view(), fp16_scales.view(),
                                     zeros.view(), 32, any_scheme{}, nullptr) == status::bad_shape);
  }
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device pretended(sm);
    CHECK(refused(w, words, scales, zeros) == status::unsupported_device);
  }
#endif
}

}  // namespace fit_quantize_pack_tests

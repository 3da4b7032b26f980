// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/fp8.cuh"

#include "nibble/reference/fp8.hpp"
#include "support/device.hpp"
#include "support/weights.hpp"

namespace fp8_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr group_shape shapes[] = {per_tensor, per_channel, per_group(32), per_group(19), per_group(1), {3, 7},
                                  {-1, 16},   {2, -1},     per_group(16), {4, 32},       per_group(8)};

/// How the matrices lie in memory: elements between rows beyond the columns, and before the first.
struct place {
  index_t padding = 0, offset = 0;
};

/// a and b element for element, whichever NaN a NaN is.
template <class T>
bool same_numbers(const owned<T>& a, const owned<T>& b) {
  for (std::size_t i = 0; i < a.data.size(); ++i) {
    const auto x = static_cast<float>(a.data[i]), y = static_cast<float>(b.data[i]);
    if (!(is_nan(x) && is_nan(y)) && bit_cast<uint32_t>(x) != bit_cast<uint32_t>(y)) return false;
  }
  return a.data.size() == b.data.size();
}

template <class T, class Scheme>
void kernels_agree(index_t rows, index_t cols, group_shape g, Scheme s, place w_at = {}, place q_at = {}) {
  CAPTURE(rows, cols, g.rows, g.cols, w_at.padding, w_at.offset, q_at.padding, q_at.offset);
  const auto w = nasty_weights<T>(rows, cols);
  owned<float> scales(g.down(rows), g.across(cols));
  owned<uint8_t> codes(rows, cols);
  owned<T> read_back(rows, cols);
  reference::fit(w.view(), scales.view(), g, s, minmax{});
  reference::quantize(w.view(), std::as_const(scales).view(), codes.view(), g, s);
  reference::dequantize(std::as_const(codes).view(), std::as_const(scales).view(), read_back.view(), g, s);

  const device_matrix<T> w_there(w, cols + w_at.padding, w_at.offset);
  const device_matrix<float> found(scales.rows, scales.cols, scales.cols + 1, 3);
  REQUIRE(kernels::fit(w_there.const_view(), found.view(), g, s, minmax{}, nullptr) == status::ok);
  REQUIRE(same_bytes(found.download(), scales));

  const device_matrix<uint8_t> q_there(rows, cols, cols + q_at.padding, q_at.offset);
  REQUIRE(kernels::quantize(w_there.const_view(), found.const_view(), q_there.view(), g, s, nullptr) == status::ok);
  REQUIRE(q_there.download().data == codes.data);

  const device_matrix<T> out(rows, cols, cols + w_at.padding, w_at.offset);
  REQUIRE(kernels::dequantize(q_there.const_view(), found.const_view(), out.view(), g, s, nullptr) == status::ok);
  REQUIRE(same_numbers(out.download(), read_back));

  const device_matrix<float> at_once(scales.rows, scales.cols, scales.cols + 2, 1);
  const device_matrix<uint8_t> q_at_once(rows, cols, cols + q_at.padding, q_at.offset);
  REQUIRE(kernels::fit_quantize(w_there.const_view(), at_once.view(), q_at_once.view(), g, s, nullptr) == status::ok);
  REQUIRE(same_bytes(at_once.download(), scales));
  REQUIRE(q_at_once.download().data == codes.data);
}

template <class Scheme>
void kernels_agree_in_all_dtypes(index_t rows, index_t cols, group_shape g, Scheme s) {
  kernels_agree<float>(rows, cols, g, s);
  kernels_agree<fp16>(rows, cols, g, s);
  kernels_agree<bf16>(rows, cols, g, s);
}

using e4m3 = float_scheme<float_format::e4m3>;

}  // namespace

TEST_CASE("fp8 kernels find the reference's scales, codes and numbers under every scheme chosen at run time") {
  int turn = 0;
  for (const auto format : {float_format::e4m3, float_format::e5m2, float_format::e2m1})
    for (const auto compute : {dtype::f32, dtype::f16, dtype::bf16}) {
      const any_float_scheme s{format, compute, compute};
      kernels_agree_in_all_dtypes(5, 61 + turn, shapes[turn % 11], s);
      ++turn;
    }
}

TEST_CASE("fp8 kernels agree with the reference under schemes known at compile time") {
  for (const group_shape g : shapes) {
    kernels_agree_in_all_dtypes(9, 96, g, e4m3{});
    kernels_agree<bf16>(9, 96, g, float_scheme<float_format::e5m2, dtype::bf16, dtype::bf16>{});
  }
}

TEST_CASE("fp8 kernels give the reference's code to every number of 16 bits") {
  owned<bf16> brain(64, 1024);
  owned<fp16> half(64, 1024);
  for (std::size_t i = 0; i < 65536; ++i) {
    brain.data[i].bits = static_cast<uint16_t>(i);
    half.data[i].bits = static_cast<uint16_t>(i);
  }
  const auto agree = [](const auto& numbers, any_float_scheme s) {
    const owned<float> one(1, 1, 1.0f);
    owned<uint8_t> codes(64, 1024);
    reference::quantize(numbers.view(), one.view(), codes.view(), per_tensor, s);
    const device_matrix<std::decay_t<decltype(numbers.data[0])>> there(numbers);
    const device_matrix<float> scale(one);
    const device_matrix<uint8_t> q(64, 1024);
    REQUIRE(kernels::quantize(there.const_view(), scale.const_view(), q.view(), per_tensor, s, nullptr) == status::ok);
    REQUIRE(q.download().data == codes.data);
  };
  for (const auto format : {float_format::e4m3, float_format::e5m2, float_format::e2m1}) {
    agree(brain, {format, dtype::f32, dtype::f32});
    agree(half, {format, dtype::f32, dtype::f32});
  }
}

TEST_CASE("fp8 kernels take every remainder of rows and columns") {
  for (index_t cols = 1; cols <= 34; ++cols)
    for (const index_t group : {16, 3}) {
      const place whole{(8 - cols % 8) % 8};
      kernels_agree<bf16>(3, cols, per_group(group), e4m3{}, whole, whole);
      kernels_agree<bf16>(2, cols, per_group(group), e4m3{}, whole);
    }
  for (index_t cols = 1; cols <= 20; ++cols)
    kernels_agree<float>(2, cols, per_channel, e4m3{}, {(4 - cols % 4) % 4}, {(4 - cols % 4) % 4});
  for (index_t rows = 1; rows <= 36; ++rows) kernels_agree<bf16>(rows, 1, per_channel, e4m3{});
}

TEST_CASE("fp8 kernels take tokens that one warp holds, one block holds, and one block reads twice") {
  for (const index_t cols : {255, 256, 257, 2047, 2048, 8191, 8192, 8193, 8200, 10250}) {
    kernels_agree<bf16>(3, cols, per_channel, e4m3{});
    kernels_agree<bf16>(2, cols, per_channel, e4m3{}, {(8 - cols % 8) % 8}, {(8 - cols % 8) % 8});
  }
  kernels_agree<bf16>(3, 700, per_group(300), e4m3{}, {4});
  kernels_agree<bf16>(3, 720, per_group(304), e4m3{}, {}, {});
  kernels_agree<bf16>(3, 720, per_group(304), e4m3{}, {}, {1, 1});
  kernels_agree<float>(2, 5000, per_channel, e4m3{});
}

TEST_CASE("fp8 kernels find a token's greatest number wherever it lies") {
  for (const index_t cols : {257, 8193, 10241})
    for (const index_t at : {index_t{0}, cols / 2, cols - 2, cols - 1}) {
      CAPTURE(cols, at);
      owned<bf16> w(2, cols, bf16(0.5f));
      w.view()(1, at) = bf16(-8.0f);
      const device_matrix<bf16> there(w, cols + (8 - cols % 8) % 8);
      const device_matrix<float> found(2, 1), at_once(2, 1);
      const device_matrix<uint8_t> q(2, cols, cols + (8 - cols % 8) % 8);
      REQUIRE(kernels::fit(there.const_view(), found.view(), per_channel, e4m3{}, minmax{}, nullptr) == status::ok);
      REQUIRE(kernels::fit_quantize(there.const_view(), at_once.view(), q.view(), per_channel, e4m3{}, nullptr) ==
              status::ok);
      REQUIRE(found.download().data == std::vector<float>{0.5f / 448, 8.0f / 448});
      REQUIRE(same_bytes(at_once.download(), found.download()));
      REQUIRE(int(q.download().view()(1, at)) == 0xfe);
    }
}

TEST_CASE("fp8 kernels take blocks of 128 by 128 and a tensor of several pieces, some of them zeros") {
  kernels_agree<bf16>(130, 300, {128, 128}, e4m3{});
  kernels_agree<bf16>(300, 257, per_tensor, e4m3{});
  kernels_agree<bf16>(257, 600, {256, -1}, e4m3{});
  kernels_agree<float>(1, 70000, per_tensor, e4m3{});
  for (const float zero : {0.0f, -0.0f}) {
    owned<float> w(300, 300, zero);
    w.data[70] = -3.0f;
    owned<float> scale(1, 1);
    reference::fit(std::as_const(w).view(), scale.view(), per_tensor, e4m3{}, minmax{});
    const device_matrix<float> there(w), found(1, 1);
    REQUIRE(kernels::fit(there.const_view(), found.view(), per_tensor, e4m3{}, minmax{}, nullptr) == status::ok);
    REQUIRE(same_bytes(found.download(), scale));
  }
}

TEST_CASE("fp8 kernels take any stride and offset, aligned for wide accesses or not") {
  for (const index_t offset : {0, 1, 2, 4, 8})
    for (const index_t padding : {0, 1, 4, 8}) {
      kernels_agree<bf16>(6, 64, per_group(32), e4m3{}, {padding, offset});
      kernels_agree<bf16>(6, 64, per_group(32), e4m3{}, {}, {padding, offset});
      kernels_agree<float>(6, 64, per_channel, e4m3{}, {padding, offset}, {padding, offset});
    }
}

TEST_CASE("fp8 scales and codes are the same under every schedule and on every architecture") {
  on_architectures([] {
    under_schedules(3, [] {
      kernels_agree<bf16>(5, 600, per_channel, e4m3{});
      kernels_agree<bf16>(300, 257, per_tensor, e4m3{});
    });
  });
}

TEST_CASE("fp8 kernels have nothing to do in an empty matrix") {
  const e4m3 s;
  const matrix<const float> none(nullptr, 0, 8), narrow(nullptr, 8, 0);
  const matrix<float> no_scales(nullptr, 0, 1), no_groups(nullptr, 8, 0);
  const matrix<uint8_t> no_codes(nullptr, 0, 8), narrow_codes(nullptr, 8, 0);
  REQUIRE(kernels::fit(none, no_scales, per_channel, s, minmax{}, nullptr) == status::ok);
  REQUIRE(kernels::quantize(none, no_scales, no_codes, per_channel, s, nullptr) == status::ok);
  REQUIRE(kernels::fit_quantize(none, no_scales, no_codes, per_channel, s, nullptr) == status::ok);
  REQUIRE(kernels::quantize(narrow, no_groups, narrow_codes, per_group(4), s, nullptr) == status::ok);
  REQUIRE(kernels::fit_quantize(narrow, no_groups, narrow_codes, per_group(4), s, nullptr) == status::ok);
}

TEST_CASE("fp8 launchers refuse what they cannot do, and say why") {
  const device_matrix<float> w(4, 32), scales(4, 2);
  const device_matrix<uint8_t> q(4, 32);
  const any_float_scheme s;
  const auto all = [&](matrix<float> w_, matrix<float> p, matrix<uint8_t> q_, group_shape g, bool fit_too = true) {
    const status there = kernels::quantize(matrix<const float>(w_), p, q_, g, s, nullptr);
    REQUIRE(kernels::dequantize(matrix<const uint8_t>(q_), p, w_, g, s, nullptr) == there);
    REQUIRE(kernels::fit_quantize(matrix<const float>(w_), p, q_, g, s, nullptr) == there);
    if (fit_too) REQUIRE(kernels::fit(matrix<const float>(w_), p, g, s, minmax{}, nullptr) == there);
    return there;
  };
  const group_shape g = per_group(16);
  CHECK(all(w, scales, q, {1, 0}) == status::bad_group);
  CHECK(all(w, scales, q, {0, 16}) == status::bad_group);
  CHECK(all(w, scales, q, {1, -2}) == status::bad_group);
  CHECK(all(w, scales, q, {-2, 16}) == status::bad_group);
  CHECK(all(w, scales, q, per_group(8)) == status::bad_shape);
  CHECK(all(w, scales, q, {2, 16}) == status::bad_shape);
  CHECK(all(w.view().rows_at(0, 3), scales, q, g) == status::bad_shape);
  CHECK(all(w.view().cols_at(0, 31), scales, q, g, false) == status::bad_shape);
  CHECK(all({w.view().data, -1, 32}, scales, {q.view().data, -1, 32}, g) == status::bad_shape);
  CHECK(all({w.view().data, 4, 32, 31}, scales, q, g) == status::bad_shape);
  CHECK(all(w, scales, {q.view().data, 4, 32, 31}, g, false) == status::bad_shape);
  CHECK(all(w, {scales.view().data, 4, 2, 1}, q, g) == status::bad_shape);
  CHECK(all({nullptr, 4, 32}, scales, q, g) == status::bad_shape);
  CHECK(all(w, scales, {nullptr, 4, 32}, g, false) == status::bad_shape);
  CHECK(all(w, {nullptr, 4, 2}, q, g) == status::bad_shape);
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(w.view().data) + 2);
  CHECK(all({askew, 4, 32}, scales, q, g) == status::misaligned);
  const auto askew_scales = reinterpret_cast<float*>(reinterpret_cast<char*>(scales.view().data) + 2);
  CHECK(all(w, {askew_scales, 4, 2}, q, g) == status::misaligned);
  const index_t many = index_t{1} << 50;
  CHECK(all({w.view().data, many, 1}, {scales.view().data, many, 1}, {q.view().data, many, 1}, per_channel) ==
        status::too_large);
  // More rows than a grid has blocks, each too long for a warp: fit_quantize's kernel of a block a row.
  const index_t rows = index_t{1} << 31;
  CHECK(kernels::fit_quantize(matrix<const float>(w.view().data, rows, 300), {scales.view().data, rows, 1},
                              {q.view().data, rows, 300}, per_channel, s, nullptr) == status::too_large);
  CHECK(kernels::fit(matrix<const float>(w.view().data, many, 4096), {scales.view().data, 1, 1}, per_tensor, s,
                     minmax{}, nullptr) == status::too_large);
#if defined(NIBBLE_SIMT)
  {
    const pretended_device old(75);
    CHECK(all(w, scales, q, g) == status::unsupported_device);
  }
  {
    const pretended_device none(-1);
    CHECK(all(w, scales, q, g) == status::unsupported_device);
  }
#endif
}

#if defined(NIBBLE_SIMT)
TEST_CASE("fp8 launchers tell when any of their launches is refused") {
  const auto w = nasty_weights<bf16>(300, 257);
  const device_matrix<bf16> there(w);
  const device_matrix<float> scale(1, 1), rows(300, 1), blocks(3, 3);
  const device_matrix<uint8_t> q(300, 257);
  const e4m3 s;
  CHECK(launches_of([&] { return kernels::fit(there.const_view(), scale.view(), per_tensor, s, minmax{}, nullptr); }) ==
        3);
  CHECK(launches_of([&] {
          return kernels::fit_quantize(there.const_view(), scale.view(), q.view(), per_tensor, s, nullptr);
        }) == 4);
  CHECK(launches_of([&] {
          return kernels::fit_quantize(there.const_view(), rows.view(), q.view(), per_channel, s, nullptr);
        }) == 1);
  CHECK(launches_of([&] {
          return kernels::fit(there.const_view(), blocks.view(), {128, 128}, s, minmax{}, nullptr);
        }) == 1);
}
#endif

}  // namespace fp8_tests

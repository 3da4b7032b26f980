// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/quantize.cuh"

#include "nibble/reference/quantize.hpp"
#include "support/device.hpp"
#include "support/weights.hpp"

namespace quantize_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr group_shape shapes[] = {per_tensor,   per_channel, per_group(32), per_group(19),
                                  per_group(1), {3, 7},      {-1, 16},      {2, -1}};

/// Parameters of every magnitude, with every zero point in turn.
template <class Scheme>
owned<params> some_params(index_t rows, index_t cols, Scheme s) {
  owned<params> p(rows, cols, params{});
  const float scales[] = {0.01f, 0.0071f, 1.0f, 1e-38f, 3e-6f, 0.5f, 250.0f, 1e-44f};
  for (std::size_t i = 0; i < p.data.size(); ++i)
    p.data[i] = {scales[i % 8], static_cast<int32_t>(i * 7 % (static_cast<std::size_t>(max_code(s)) + 1))};
  return p;
}

/// How the matrices lie in memory: elements between rows beyond the columns, and before the first.
struct place {
  index_t padding = 0, offset = 0;
};

template <class T, class Scheme>
void kernel_agrees(index_t rows, index_t cols, group_shape g, Scheme s, place w_at = {}, place q_at = {}) {
  CAPTURE(rows, cols, g.rows, g.cols, w_at.padding, w_at.offset, q_at.padding, q_at.offset);
  const auto w = nasty_weights<T>(rows, cols);
  const auto p = some_params(g.down(rows), g.across(cols), s);
  owned<uint8_t> codes(rows, cols);
  owned<T> read_back(rows, cols);
  reference::quantize(w.view(), p.view(), codes.view(), g, s);
  reference::dequantize(std::as_const(codes).view(), p.view(), read_back.view(), g, s);

  const device_matrix<T> w_there(w, cols + w_at.padding, w_at.offset);
  const device_matrix<params> p_there(p);
  const device_matrix<uint8_t> q_there(rows, cols, cols + q_at.padding, q_at.offset);
  REQUIRE(kernels::quantize(w_there.const_view(), p_there.const_view(), q_there.view(), g, s, nullptr) == status::ok);
  REQUIRE(q_there.download().data == codes.data);

  const device_matrix<T> out(rows, cols, cols + w_at.padding, w_at.offset);
  REQUIRE(kernels::dequantize(q_there.const_view(), p_there.const_view(), out.view(), g, s, nullptr) == status::ok);
  const auto got = out.download();
  REQUIRE(got.data.size() == read_back.data.size());
  REQUIRE(std::memcmp(static_cast<const void*>(got.data.data()), static_cast<const void*>(read_back.data.data()),
                      got.data.size() * sizeof(T)) == 0);
}

template <class Scheme>
void kernel_agrees_in_all_dtypes(index_t rows, index_t cols, group_shape g, Scheme s) {
  kernel_agrees<float>(rows, cols, g, s);
  kernel_agrees<fp16>(rows, cols, g, s);
  kernel_agrees<bf16>(rows, cols, g, s);
}

}  // namespace

TEST_CASE("the kernels choose the reference's codes and read back its weights under every scheme chosen at run time") {
  any_scheme s;
  int turn = 0;
  for (const auto rule : {convention::compressed_tensors, convention::autoawq, convention::gptq, convention::torchao})
    for (const auto compute : {dtype::f32, dtype::f16, dtype::bf16})
      for (int bits = 1; bits <= 8; ++bits) {
        s.rule = rule;
        s.compute_dtype = compute;
        s.bits = bits;
        kernel_agrees_in_all_dtypes(5, 61 + turn % 20, shapes[turn % 8], s);
        ++turn;
      }
}

TEST_CASE("the kernels agree with the reference under schemes known at compile time") {
  for (const group_shape g : shapes) {
    kernel_agrees_in_all_dtypes(9, 96, g, scheme<4>{});
    kernel_agrees_in_all_dtypes(9, 96, g, scheme<3, true, convention::gptq, dtype::f16, dtype::f16>{});
    kernel_agrees_in_all_dtypes(9, 96, g, scheme<8, true, convention::autoawq, dtype::bf16, dtype::bf16>{});
  }
}

TEST_CASE("every remainder of rows and columns") {
  for (index_t cols = 1; cols <= 40; ++cols)
    for (const index_t group : {16, 3, 1}) {
      const place whole{(8 - cols % 8) % 8};
      kernel_agrees<bf16>(3, cols, per_group(group), scheme<4>{}, whole, whole);
      kernel_agrees<bf16>(3, cols, per_group(group), scheme<4>{}, whole);
    }
  for (index_t cols = 1; cols <= 20; ++cols)
    kernel_agrees<float>(2, cols, per_group(4), scheme<4>{}, {(4 - cols % 4) % 4});
  for (index_t rows = 1; rows <= 40; ++rows) kernel_agrees<fp16>(rows, 1, per_channel, scheme<4>{});
  for (const index_t rows : {127, 128, 129, 1025}) kernel_agrees<fp16>(rows, 8, per_channel, scheme<4>{});
  for (const index_t cols : {2047, 2048, 2049, 4100}) kernel_agrees<bf16>(5, cols, per_group(128), scheme<4>{});
}

TEST_CASE("any stride and offset, aligned for wide accesses or not") {
  for (const index_t offset : {0, 1, 2, 4, 8})
    for (const index_t padding : {0, 1, 4, 8}) {
      kernel_agrees<bf16>(6, 64, per_group(32), scheme<4>{}, {padding, offset});
      kernel_agrees<bf16>(6, 64, per_group(32), scheme<4>{}, {}, {padding, offset});
      kernel_agrees<float>(6, 64, per_group(32), scheme<4>{}, {padding, offset}, {padding, offset});
      kernel_agrees<fp16>(1, 64, per_group(32), scheme<4>{}, {padding, offset}, {padding, offset});
    }
}

TEST_CASE("an empty matrix is nothing to do") {
  const any_scheme s;
  const matrix<const float> none(nullptr, 0, 8);
  REQUIRE(kernels::quantize(none, {nullptr, 0, 1}, matrix<uint8_t>(nullptr, 0, 8), per_channel, s, nullptr) ==
          status::ok);
  const matrix<const float> narrow(nullptr, 8, 0);
  REQUIRE(kernels::quantize(narrow, {nullptr, 8, 0}, matrix<uint8_t>(nullptr, 8, 0), per_group(4), s, nullptr) ==
          status::ok);
}

TEST_CASE("quantize and dequantize refuse what they cannot do, and say why") {
  const device_matrix<float> w(4, 32);
  const device_matrix<uint8_t> q(4, 32);
  const device_matrix<params> p(4, 2);
  const auto both = [&](matrix<float> w_, matrix<const params> p_, matrix<uint8_t> q_, group_shape g,
                        any_scheme s = {}) {
    const status there = kernels::quantize(matrix<const float>(w_), p_, q_, g, s, nullptr);
    const status back = kernels::dequantize(matrix<const uint8_t>(q_), p_, w_, g, s, nullptr);
    REQUIRE(there == back);
    return there;
  };
  const group_shape g = per_group(16);
  const auto with_bits = [](int bits) {
    any_scheme s;
    s.bits = bits;
    return s;
  };
  CHECK(both(w, p, q, g, with_bits(0)) == status::bad_bits);
  CHECK(both(w, p, q, g, with_bits(9)) == status::bad_bits);
  CHECK(both(w, p, q, {1, 0}) == status::bad_group);
  CHECK(both(w, p, q, {0, 16}) == status::bad_group);
  CHECK(both(w, p, q, {1, -2}) == status::bad_group);
  CHECK(both(w, p, q, {-2, 16}) == status::bad_group);
  CHECK(both(w, p, q, per_group(8)) == status::bad_shape);
  CHECK(both(w, p, q, {2, 16}) == status::bad_shape);
  CHECK(both(w.view().rows_at(0, 3), p, q, g) == status::bad_shape);
  CHECK(both(w.view().cols_at(0, 31), p, q, g) == status::bad_shape);
  CHECK(both({w.view().data, -1, 32}, p, {q.view().data, -1, 32}, g) == status::bad_shape);
  CHECK(both({w.view().data, 4, 32, 31}, p, q, g) == status::bad_shape);
  CHECK(both(w, p, {q.view().data, 4, 32, 31}, g) == status::bad_shape);
  CHECK(both(w, {p.view().data, 4, 2, 1}, q, g) == status::bad_shape);
  CHECK(both({nullptr, 4, 32}, p, q, g) == status::bad_shape);
  CHECK(both(w, p, {nullptr, 4, 32}, g) == status::bad_shape);
  CHECK(both(w, {nullptr, 4, 2}, q, g) == status::bad_shape);
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(w.view().data) + 2);
  CHECK(both({askew, 4, 32}, p, q, g) == status::misaligned);
  const auto askew_params = reinterpret_cast<const params*>(reinterpret_cast<const char*>(p.view().data) + 2);
  CHECK(both(w, {askew_params, 4, 2}, q, g) == status::misaligned);
  CHECK(both({w.view().data, index_t{1} << 50, 1}, {p.view().data, index_t{1} << 50, 1},
             {q.view().data, index_t{1} << 50, 1}, per_channel) == status::too_large);
#if defined(NIBBLE_SIMT)
  {
    const pretended_device old(75);
    CHECK(both(w, p, q, g) == status::unsupported_device);
  }
  {
    const pretended_device none(-1);
    CHECK(both(w, p, q, g) == status::unsupported_device);
  }
#endif
}

}  // namespace quantize_tests

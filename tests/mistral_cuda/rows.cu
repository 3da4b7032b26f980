// SPDX-License-Identifier: Apache-2.0
#include "mistral/cuda/rows.cuh"

#include <cmath>

#include "mistral/rotary.hpp"
#include "mistral_cuda/support.hpp"

namespace rows_tests {

using namespace nibble;
using namespace nibble::test;
using nibble::mistral::cuda::head_layout;
namespace cuda_forward = nibble::mistral::cuda;

namespace {

/// A stride that is a multiple of `unit`, and elements before the first: wide accesses want multiples of 4 of both.
struct place {
  index_t unit = 1, offset = 0;
  index_t stride(index_t cols) const { return round_up(cols, unit); }
};
constexpr place places[] = {{1, 0}, {4, 0}, {16, 4}, {3, 0}, {1, 1}, {4, 1}};

void norm_agrees(index_t rows, index_t cols, float size, place at = {}) {
  CAPTURE(rows, cols, size, at.unit, at.offset);
  const auto x = random_matrix(rows, cols, "x", size);
  const auto weight = random_values(3, "w", cols, 1.0f, 0.5f);
  const float epsilon = 1e-5f;
  const device_matrix<float> there(x, at.stride(cols), at.offset);
  const device_array<float> by(weight);
  const device_matrix<bf16> y(rows, cols, at.stride(cols), at.offset);
  REQUIRE(cuda_forward::rms_norm(there.const_view(), by.data(), epsilon, y, nullptr) == status::ok);
  const auto got = y.download();
  for (index_t row = 0; row < rows; ++row) {
    double squares = 0;
    for (index_t i = 0; i < cols; ++i) squares += std::pow(double{x.view()(row, i)}, 2);
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(cols) + double{epsilon});
    for (index_t i = 0; i < cols; ++i) {
      const double expected = double{x.view()(row, i)} * inverse * double{weight[static_cast<std::size_t>(i)]};
      // A thread adds cols / 256 squares, blocks 13 sums, each rounded by 2^-24, and the root halves that; some six more.
      const double bound = bf16_rounding + (static_cast<double>(cols) / 512 + 14) * 0x1p-24;
      if (!(std::fabs(double{float(got.view()(row, i))} - expected) <= bound * std::fabs(expected) + 1e-38))
        FAIL("row " << row << ", column " << i << ": " << float(got.view()(row, i)) << " for " << expected);
    }
  }
}

}  // namespace

TEST_CASE("a norm on the device divides by the root mean square, whatever the magnitude, width and place") {
  for (const float size : {1e-3f, 1.0f, 1e6f}) norm_agrees(3, 96, size);
  for (index_t cols = 1; cols <= 12; ++cols) norm_agrees(2, cols, 1.0f);
  for (const index_t cols : {255, 256, 257, 1023, 1024, 1028, 2051}) norm_agrees(2, cols, 1.0f);
  for (const place at : places) norm_agrees(5, 64, 1.0f, at);
}

TEST_CASE("a norm gives the same bytes under every schedule, and NaN stays in its token") {
  auto x = random_matrix(4, 520, "x");
  x.view()(2, 77) = not_a_number;
  const device_matrix<float> there(x);
  const device_array<float> by(std::vector<float>(520, 1.0f));
  owned<bf16> first(4, 520);
  bool known = false;
  under_schedules(8, [&] {
    const device_matrix<bf16> y(4, 520);
    REQUIRE(cuda_forward::rms_norm(there.const_view(), by.data(), 1e-5f, y, nullptr) == status::ok);
    const auto got = y.download();
    if (known) REQUIRE(same_bytes(got, first));
    first = got, known = true;
  });
  for (index_t row = 0; row < 4; ++row)
    for (index_t col = 0; col < 520; ++col) REQUIRE(std::isnan(float(first.view()(row, col))) == (row == 2));
}

TEST_CASE("the embedding finds every id's row, also when the table comes in parts") {
  for (const index_t cols : {1, 3, 4, 8, 30, 1040})
    for (const place at : places) {
      CAPTURE(cols, at.unit, at.offset);
      const auto table = stored_as<bf16>(random_matrix(11, cols, "table"));
      const std::vector<int32_t> ids = {10, 0, 3, 3, 7, 6, 10};
      const device_matrix<bf16> whole(table, at.stride(cols), at.offset);
      const device_array<int32_t> of(ids);
      const device_matrix<float> x(7, cols, at.stride(cols), at.offset);
      for (const index_t first : {0, 4, 8}) {
        const auto part = whole.const_view().rows_at(first, first == 8 ? 3 : 4);
        REQUIRE(cuda_forward::embed(part, first, of.data(), x, nullptr) == status::ok);
      }
      const auto got = x.download();
      for (index_t t = 0; t < 7; ++t)
        for (index_t col = 0; col < cols; ++col)
          REQUIRE(got.view()(t, col) == float(table.view()(ids[static_cast<std::size_t>(t)], col)));
    }
}

TEST_CASE("a part of the table leaves the rows of all other ids alone") {
  const auto table = stored_as<bf16>(random_matrix(11, 8, "table"));
  const std::vector<int32_t> ids = {3, 4, 5, 7, 8, 9};
  const device_matrix<bf16> whole(table);
  const device_array<int32_t> of(ids);
  const device_matrix<float> x(6, 8);
  REQUIRE(cuda_forward::embed(whole.const_view().rows_at(4, 4), 4, of.data(), x, nullptr) == status::ok);
  const auto got = x.download();
  for (index_t t = 0; t < 6; ++t) REQUIRE(std::isnan(got.view()(t, 0)) == (t == 0 || t > 3));
}

TEST_CASE("the rotary embedding turns q and k as the host does, from each sequence's own start, and leaves v") {
  const std::vector<index_t> starts = {0, 3, 4, 9, 15};
  for (const index_t head_dim : {2, 6, 8, 64, 80, 256})
    for (const place at : places) {
      CAPTURE(head_dim, at.unit, at.offset);
      const head_layout heads{6, 2, head_dim};
      const index_t width = heads.width(), half = head_dim / 2, tokens = starts.back();
      const mistral::rotary_table table(head_dim, 10000.0, 6);
      owned<float> cosine(6, half), sine(6, half);
      for (index_t p = 0; p < 6; ++p)
        for (index_t i = 0; i < half; ++i) {
          std::vector<float> one(static_cast<std::size_t>(head_dim));
          one[static_cast<std::size_t>(i)] = 1;
          table.rotate(one.data(), p);
          cosine.view()(p, i) = one[static_cast<std::size_t>(i)];
          sine.view()(p, i) = one[static_cast<std::size_t>(i + half)];
        }
      auto expected = random_matrix(tokens, width, "qkv", 4.0f);
      const device_matrix<float> qkv(expected, at.stride(width), at.offset);
      const device_matrix<float> c(cosine), s(sine);
      const device_array<index_t> from(starts);
      const device_matrix<bf16> out(tokens, width, at.stride(width), at.offset);
      REQUIRE(cuda_forward::rotate(qkv, heads, from.data(), 4, c, s, out, nullptr) == status::ok);
      for (std::size_t sequence = 0; sequence + 1 < starts.size(); ++sequence)
        for (index_t token = starts[sequence]; token < starts[sequence + 1]; ++token)
          for (index_t head = 0; head < 8; ++head)
            table.rotate(expected.view().row(token) + head * head_dim, token - starts[sequence]);
      REQUIRE(same_bytes(out.download(), stored_as<bf16>(expected)));
    }
}

TEST_CASE("SwiGLU is gate / (1 + exp(-gate)) * up, saturated gates included, and NaN stays in its element") {
  for (const index_t cols : {1, 2, 3, 4, 7, 8, 64, 255, 1028})
    for (const place at : places) {
      CAPTURE(cols, at.unit, at.offset);
      auto x = random_matrix(3, 2 * cols, "gate", 12.0f);
      x.view()(1, 0) = -1000.0f;
      x.view()(2, 0) = 1000.0f;
      if (cols > 1) x.view()(0, cols - 1) = not_a_number;
      const device_matrix<float> there(x, at.stride(2 * cols), at.offset);
      const device_matrix<bf16> out(3, cols, at.stride(cols), at.offset);
      REQUIRE(cuda_forward::swiglu(there.const_view(), out, nullptr) == status::ok);
      const auto got = out.download();
      for (index_t row = 0; row < 3; ++row)
        for (index_t col = 0; col < cols; ++col) {
          const double gate = double{x.view()(row, col)}, up = double{x.view()(row, col + cols)};
          const double expected = gate / (1 + std::exp(-gate)) * up, value = double{float(got.view()(row, col))};
          // The exponent -gate · log2 e is rounded twice, |gate| 2^-23 of e^-gate; 2^x errs by 2^-22, the rest by 2^-24 each.
          const double bound = bf16_rounding + (2 * std::fabs(gate) + 8) * 0x1p-24;
          if (std::isnan(expected) ? !std::isnan(value)
                                   : !(std::fabs(value - expected) <= bound * std::fabs(expected) + 1e-30))
            FAIL("row " << row << ", column " << col << ": " << value << " for " << expected);
        }
    }
}

TEST_CASE("the steps between products refuse what they cannot do, and say why") {
  const device_matrix<float> x(4, 32), wide(4, 64);
  const device_matrix<bf16> y(4, 32), table(9, 32);
  const device_array<float> weight(32);
  const device_array<int32_t> ids(std::vector<int32_t>(4));
  const device_array<index_t> starts(std::vector<index_t>{0, 4});
  const device_matrix<float> turn(4, 4);
  const auto fx = x.view(), fw = wide.view();
  const auto by = y.view();
  const auto norm = [&](matrix<const float> x_, const float* w, matrix<bf16> y_) {
    return cuda_forward::rms_norm(x_, w, 1e-5f, y_, nullptr);
  };
  CHECK(norm(fx, weight.data(), {by.data, 3, 32}) == status::bad_shape);
  CHECK(norm(fx, weight.data(), {by.data, 4, 31, 32}) == status::bad_shape);
  CHECK(norm({fx.data, 4, 32, 31}, weight.data(), by) == status::bad_shape);
  CHECK(norm({nullptr, 4, 32}, weight.data(), by) == status::bad_shape);
  CHECK(norm(fx, weight.data(), {nullptr, 4, 32}) == status::bad_shape);
  CHECK(norm(fx, nullptr, by) == status::bad_shape);
  CHECK(norm({nullptr, 0, 32}, nullptr, {nullptr, 0, 32}) == status::ok);
  CHECK(norm({askew(fx.data), 4, 32}, weight.data(), by) == status::misaligned);
  CHECK(norm(fx, weight.data(), {askew(by.data), 4, 32}) == status::misaligned);
  CHECK(norm(fx, askew(weight.data()), by) == status::misaligned);
  CHECK(norm({fx.data, index_t{1} << 40, 0}, weight.data(), {by.data, index_t{1} << 40, 0}) == status::ok);
  CHECK(norm({fx.data, index_t{1} << 40, 32}, weight.data(), {by.data, index_t{1} << 40, 32}) == status::too_large);

  const auto find = [&](matrix<const bf16> t, index_t first, const int32_t* i, matrix<float> x_) {
    return cuda_forward::embed(t, first, i, x_, nullptr);
  };
  CHECK(find({table.view().data, 9, 31, 32}, 0, ids.data(), fx) == status::bad_shape);
  CHECK(find({nullptr, 9, 32}, 0, ids.data(), fx) == status::bad_shape);
  CHECK(find(table.view(), 0, ids.data(), {nullptr, 4, 32}) == status::bad_shape);
  CHECK(find(table.view(), -1, ids.data(), fx) == status::bad_shape);
  CHECK(find(table.view(), 0, nullptr, fx) == status::bad_shape);
  CHECK(find({nullptr, 0, 32}, 0, nullptr, fx) == status::ok);
  CHECK(find({askew(table.view().data), 9, 32}, 0, ids.data(), fx) == status::misaligned);
  CHECK(find(table.view(), 0, askew(ids.data()), fx) == status::misaligned);
  CHECK(find(table.view(), 0, ids.data(), {askew(fx.data), 4, 32}) == status::misaligned);

  const head_layout heads{2, 1, 8};
  const auto turned = [&](matrix<const float> in, head_layout h, const index_t* s, index_t sequences,
                          matrix<const float> c, matrix<const float> n,
                          matrix<bf16> out) { return cuda_forward::rotate(in, h, s, sequences, c, n, out, nullptr); };
  const matrix<const float> t = turn.view();
  CHECK(turned(fx, heads, starts.data(), 1, t, t, by) == status::ok);
  CHECK(turned(fx, {2, 1, 7}, starts.data(), 1, t, t, by) == status::bad_shape);
  CHECK(turned(fx, {0, 1, 8}, starts.data(), 1, t, t, by) == status::bad_shape);
  CHECK(turned(fx, {2, 0, 8}, starts.data(), 1, t, t, by) == status::bad_shape);
  CHECK(turned(fx, {1, 1, 8}, starts.data(), 1, t, t, by) == status::bad_shape);
  CHECK(turned(fx, heads, nullptr, 1, t, t, by) == status::bad_shape);
  CHECK(turned(fx, heads, starts.data(), 0, t, t, by) == status::bad_shape);
  CHECK(turned(fx, heads, starts.data(), 1, t.cols_at(0, 3), t, by) == status::bad_shape);
  CHECK(turned(fx, heads, starts.data(), 1, t, t.rows_at(0, 3), by) == status::bad_shape);
  CHECK(turned(fx, heads, starts.data(), 1, {t.data, 0, 4}, {t.data, 0, 4}, by) == status::bad_shape);
  CHECK(turned(fx, heads, starts.data(), 1, t, t, by.rows_at(0, 3)) == status::bad_shape);
  CHECK(turned({askew(fx.data), 4, 32}, heads, starts.data(), 1, t, t, by) == status::misaligned);
  CHECK(turned(fx, heads, askew(starts.data()), 1, t, t, by) == status::misaligned);
  CHECK(turned(fx, heads, starts.data(), 1, {askew(t.data), 4, 4}, t, by) == status::misaligned);
  CHECK(turned(fx, heads, starts.data(), 1, t, {askew(t.data), 4, 4}, by) == status::misaligned);
  CHECK(turned(fx, heads, starts.data(), 1, t, t, {askew(by.data), 4, 32}) == status::misaligned);

  const auto gated = [&](matrix<const float> in, matrix<bf16> out) { return cuda_forward::swiglu(in, out, nullptr); };
  CHECK(gated(fx, by) == status::bad_shape);
  CHECK(gated({fw.data, 3, 64}, by) == status::bad_shape);
  CHECK(gated({nullptr, 4, 64}, by) == status::bad_shape);
  CHECK(gated(fw, {nullptr, 4, 32}) == status::bad_shape);
  CHECK(gated({nullptr, 0, 64}, {nullptr, 0, 32}) == status::ok);
  CHECK(gated({askew(fw.data), 4, 64}, by) == status::misaligned);
  CHECK(gated(fw, {askew(by.data), 4, 32}) == status::misaligned);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device old(sm);
    CHECK(norm(fx, weight.data(), by) == status::unsupported_device);
    CHECK(find(table.view(), 0, ids.data(), fx) == status::unsupported_device);
    CHECK(turned(fx, heads, starts.data(), 1, t, t, by) == status::unsupported_device);
    CHECK(gated(fw, by) == status::unsupported_device);
  }
#endif
}

}  // namespace rows_tests

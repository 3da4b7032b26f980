// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/matmul.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>

#include "support/activations.hpp"

namespace matmul_tests {

using namespace nibble;

namespace {

constexpr host::matmul_precision precisions[] = {host::matmul_precision::float32, host::matmul_precision::bfloat16};

/// y against Σ_i x(r, i)·b(i, c) in double. Float products summed in any order are off by k·u·Σ|x·b| at most.
template <class B>
void near_product(matrix<const float> x, B b, matrix<const float> y) {
  for (index_t row = 0; row < y.rows; ++row)
    for (index_t col = 0; col < y.cols; ++col) {
      double sum = 0, size = 0;
      for (index_t i = 0; i < x.cols; ++i) {
        const double term = static_cast<double>(x(row, i)) * static_cast<double>(b(i, col));
        sum += term;
        size += std::fabs(term);
      }
      INFO("element " << row << ", " << col);
      REQUIRE(std::fabs(static_cast<double>(y(row, col)) - sum) <= static_cast<double>(x.cols) * roundoff * size);
    }
}

/// x rounded to bfloat16.
owned<float> rounded(owned<float> x) {
  for (float& value : x.data) value = bf16_value(bf16_bits(value));
  return x;
}

}  // namespace

TEST_CASE("a product is the plain sum up to rounding, on both sides of a tile's edge") {
  for (const auto& [m, n, k] :
       {std::array<index_t, 3>{1, 1, 1}, {3, 257, 5}, {256, 256, 64}, {257, 300, 33}, {513, 2, 100}, {2, 513, 1}}) {
    const auto x = activations(m, k), w = activations(n, k, 4), t = activations(k, n, 5);
    owned<float> y(m, n, 99.0f);  // what was there before must not show
    host::matmul_nt(x.view(), w.view(), y.view());
    near_product(
        x.view(), [&](index_t i, index_t col) { return w.view()(col, i); }, y.view());
    host::matmul_nn(x.view(), t.view(), y.view());
    near_product(x.view(), t.view(), y.view());
  }
}

TEST_CASE(
    "a product in bfloat16 is the plain sum of rounded factors, on both sides of the edges of blocks, tiles and runs") {
  constexpr auto how = host::matmul_precision::bfloat16;
  for (const auto& [m, n, k] : {std::array<index_t, 3>{1, 1, 1},
                                {3, 257, 5},
                                {8, 32, 2},
                                {7, 31, 33},
                                {9, 33, 31},
                                {16, 64, 64},
                                {257, 513, 34},
                                {12, 40, 511},
                                {12, 40, 512},
                                {12, 40, 513},
                                {9, 17, 1100}}) {
    CAPTURE(m, n, k);
    const auto x = activations(m, k), w = activations(n, k, 4), t = activations(k, n, 5);
    const auto rx = rounded(x), rw = rounded(w), rt = rounded(t);
    owned<float> y(m, n, 99.0f);
    host::matmul_nt(x.view(), w.view(), y.view(), how);
    near_product(
        rx.view(), [&](index_t i, index_t col) { return rw.view()(col, i); }, y.view());
    host::matmul_nn(x.view(), t.view(), y.view(), how);
    near_product(rx.view(), rt.view(), y.view());
  }
}

TEST_CASE("a product in bfloat16 reads and writes views whose rows lie apart, and nothing beside them") {
  constexpr auto how = host::matmul_precision::bfloat16;
  const auto x = activations(300, 90), w = activations(70, 90, 4), t = activations(50, 80, 5);
  const auto rx = rounded(x), rw = rounded(w), rt = rounded(t);
  owned<float> y(300, 80, 99.0f);
  const auto untouched = [&] {
    for (index_t row = 0; row < 300; ++row)
      for (index_t col = 0; col < 80; ++col)
        if (col < 5 || col >= 75) REQUIRE(y.view()(row, col) == 99.0f);
  };
  host::matmul_nt(x.view().cols_at(10, 50), w.view().cols_at(20, 50), y.view().cols_at(5, 70), how);
  near_product(
      rx.view().cols_at(10, 50), [&](index_t i, index_t col) { return rw.view()(col, 20 + i); },
      y.view().cols_at(5, 70));
  untouched();
  host::matmul_nn(x.view().cols_at(10, 50), t.view().cols_at(3, 70), y.view().cols_at(5, 70), how);
  near_product(rx.view().cols_at(10, 50), rt.view().cols_at(3, 70), y.view().cols_at(5, 70));
  untouched();
}

TEST_CASE("plain tiles and plain pairs are sums of rounded factors, also of columns") {
  const auto check = [](auto of) {
    using pairs_t = decltype(of);
    for (const auto& [m, n, k] : {std::array<index_t, 3>{1, 1, 1}, {31, 33, 31}, {33, 65, 33}, {70, 40, 1100}}) {
      CAPTURE(m, n, k);
      const auto x = activations(m, k), w = activations(n, k, 4), t = activations(k, n, 5);
      const auto rx = rounded(x), rw = rounded(w), rt = rounded(t);
      owned<float> y(m, n, 99.0f);
      host::detail::row_pairs packed;
      packed.pack<pairs_t>(x.view());
      host::detail::multiply_pairs<pairs_t, true>(packed, 0, w.view(), y.view());
      near_product(
          rx.view(), [&](index_t i, index_t col) { return rw.view()(col, i); }, y.view());
      host::detail::multiply_pairs<pairs_t, false>(packed, 0, t.view(), y.view());
      near_product(rx.view(), rt.view(), y.view());
      if (k > host::detail::product_depth) continue;
      const auto a = activations(k, m, 6), ra = rounded(a);
      owned<float> turned(m, k);
      for (index_t i = 0; i < m; ++i)
        for (index_t j = 0; j < k; ++j) turned.view()(i, j) = ra.view()(j, i);
      host::detail::packed_columns first, second;
      first.pack<pairs_t>(a.view());
      second.pack<pairs_t>(t.view(), false);
      std::fill(y.data.begin(), y.data.end(), 0.0f);
      host::detail::add_columns_product<pairs_t>(first, 0, second, 0, y.view());
      near_product(turned.view(), rt.view(), y.view());
    }
  };
  check(host::detail::plain_pairs{});
  check(host::detail::plain_tiles{});
}

namespace {

/// Products of numbers, and of some that are infinite or none, in Own are the bytes that they are in Plain.
template <class Plain, class Own>
void same_bytes() {
  std::mt19937 engine(7);
  std::normal_distribution<float> normal;
  constexpr float inf = std::numeric_limits<float>::infinity();
  // Products stay in float's range, beyond which an instruction, which fuses, may give an infinity where loops give NaN.
  const float odd[] = {inf, -inf, std::numeric_limits<float>::quiet_NaN(), 1e15f, -1e15f, 1e-15f, -1e-15f, 0.0f, -0.0f};
  for (const bool nasty : {false, true})
    for (const auto& [m, n, k] :
         {std::array<index_t, 3>{8, 32, 64}, {13, 45, 333}, {64, 64, 512}, {40, 70, 1025}, {100, 33, 1100}}) {
      CAPTURE(nasty, m, n, k);
      owned<float> x(m, k), w(n, k), t(k, n), y(m, n), wanted(m, n);
      for (owned<float>* each : {&x, &w, &t})
        for (size_t i = 0; i < each->data.size(); ++i)
          each->data[i] = nasty && i % 17 == 3 ? odd[engine() % 9] : normal(engine);
      const auto same = [&] {
        for (size_t i = 0; i < y.data.size(); ++i) {
          INFO("element " << i << ": " << y.data[i] << ", not " << wanted.data[i]);
          REQUIRE((bit_cast<uint32_t>(y.data[i]) == bit_cast<uint32_t>(wanted.data[i]) ||
                   (std::isnan(y.data[i]) && std::isnan(wanted.data[i]))));
        }
      };
      host::detail::row_pairs plain, own;
      plain.pack<Plain>(x.view());
      own.pack<Own>(x.view());
      host::detail::multiply_pairs<Plain, true>(plain, 0, w.view(), wanted.view());
      host::detail::multiply_pairs<Own, true>(own, 0, w.view(), y.view());
      same();
      host::detail::multiply_pairs<Plain, false>(plain, 0, t.view(), wanted.view());
      host::detail::multiply_pairs<Own, false>(own, 0, t.view(), y.view());
      same();
      const index_t rows = min(k, host::detail::product_depth);
      owned<float> sums(n, n, 0.5f), wanted_sums(n, n, 0.5f);
      host::detail::packed_columns plain_columns, own_columns;
      plain_columns.pack<Plain>(t.view().rows_at(0, rows));
      own_columns.pack<Own>(t.view().rows_at(0, rows));
      host::detail::add_columns_product<Plain>(plain_columns, 0, plain_columns, 0, wanted_sums.view());
      host::detail::add_columns_product<Own>(own_columns, 0, own_columns, 0, sums.view());
      y = sums, wanted = wanted_sums;
      same();
    }
}

}  // namespace

TEST_CASE(
    "a product in bfloat16 is the same bytes in plain loops as in this machine's instructions, by infinities and NaN "
    "too") {
#if defined(__GNUC__) && defined(__x86_64__)
  if (host::detail::has_avx512_bf16())
    same_bytes<host::detail::plain_pairs, host::detail::avx512_pairs>();
  else
    WARN("left out: this machine has no AVX512_BF16");
#endif
#if defined(NIBBLE_AMX_KNOWN)
  if (host::detail::has_amx_bf16())
    same_bytes<host::detail::plain_tiles, host::detail::amx_tiles>();
  else
    WARN("left out: this machine has no AMX");
#endif
}

TEST_CASE("several products of rows that are packed once are those of rows that are packed for each") {
  constexpr auto how = host::matmul_precision::bfloat16;
  host::packed_factor packed;
  for (const auto& [m, k] : {std::array<index_t, 2>{700, 300}, {5, 1200}}) {  // the second takes the first one's room
    const auto x = activations(m, k);
    packed.pack(x.view());
    for (const index_t n : {1, 40, 600}) {
      const auto w = activations(n, k, static_cast<unsigned>(n));
      owned<float> y(m, n, 99.0f), wanted(m, n);
      host::matmul_nt(packed, w.view(), y.view());
      host::matmul_nt(x.view(), w.view(), wanted.view(), how);
      REQUIRE(y.data == wanted.data);
    }
  }
}

namespace {

/// y is x·w in double but for `off` of Σ|x·w|.
void near_sum(matrix<const float> x, matrix<const float> w, double off, matrix<const float> y) {
  for (index_t row = 0; row < y.rows; ++row)
    for (index_t col = 0; col < y.cols; ++col) {
      double sum = 0, size = 0;
      for (index_t i = 0; i < x.cols; ++i) {
        const double term = static_cast<double>(x(row, i)) * static_cast<double>(w(i, col));
        sum += term, size += std::fabs(term);
      }
      INFO("element " << row << ", " << col);
      REQUIRE(std::fabs(static_cast<double>(y(row, col)) - sum) <= off * size);
    }
}

template <class Pairs>
void split_products() {
  using namespace host::detail;
  const double off = std::ldexp(1.0, -16);
  for (const auto& [m, n, k] :
       {std::array<index_t, 3>{1, 1, 1}, {33, 45, 31}, {5, 70, 512}, {130, 33, 513}, {9, 40, 1100}}) {
    CAPTURE(m, n, k);
    const auto x = activations(m, k), w = activations(k, n, 5);
    packed_panels high, low;
    high.pack<Pairs>(w.view());
    low.pack<Pairs>(w.view(), true);
    split_rows rows;
    rows.pack<Pairs>(x.view());
    owned<float> y(m, n, 99.0f);
    multiply_split<Pairs>(rows, high, low, 0, 0, y.view());
    near_sum(x.view(), w.view(), off, y.view());
    if (k < 96 || n <= block_cols) continue;
    // Rows 64 to 95 of w, and its columns from 32 on.
    rows.pack<Pairs>(x.view().cols_at(64, 32));
    const auto part = y.view().cols_at(block_cols, n - block_cols);
    multiply_split<Pairs>(rows, high, low, 64, block_cols, part);
    near_sum(x.view().cols_at(64, 32), w.view().rows_at(64, 32).cols_at(block_cols, n - block_cols), off, part);
    // Some runs of rounded factors.
    const auto rx = rounded(x), rw = rounded(w);
    rows.pack<Pairs>(x.view());
    const index_t last = min(k, product_depth);
    for (const auto& [first, end] : {std::array<index_t, 2>{0, last}, {last, k}, {0, k}, {last, last}}) {
      multiply_pairs<Pairs>(rows.high, high, first, end, block_cols, part);
      near_sum(rx.view().cols_at(first, end - first),
               rw.view().rows_at(first, end - first).cols_at(block_cols, n - block_cols),
               static_cast<double>(k) * roundoff, part);
    }
  }
}

}  // namespace

TEST_CASE(
    "factors split into two bfloat16 give the product of floats but for a 2^16th, also of some rows and columns") {
  split_products<host::detail::plain_pairs>();
  split_products<host::detail::plain_tiles>();
#if defined(__GNUC__) && defined(__x86_64__)
  if (host::detail::has_avx512_bf16()) split_products<host::detail::avx512_pairs>();
#endif
#if defined(NIBBLE_AMX_KNOWN)
  if (host::detail::has_amx_bf16()) split_products<host::detail::amx_tiles>();
#endif
}

TEST_CASE("a product reads and writes views whose rows lie apart, and nothing beside them") {
  const auto x = activations(300, 90), w = activations(70, 90, 4);
  owned<float> y(300, 80, 99.0f);
  host::matmul_nt(x.view().cols_at(10, 50), w.view().cols_at(20, 50), y.view().cols_at(5, 70));
  near_product(
      x.view().cols_at(10, 50), [&](index_t i, index_t col) { return w.view()(col, 20 + i); }, y.view().cols_at(5, 70));
  for (index_t row = 0; row < 300; ++row)
    for (index_t col = 0; col < 80; ++col)
      if (col < 5 || col >= 75) REQUIRE(y.view()(row, col) == 99.0f);
}

TEST_CASE("a product over no inputs is 0, and an empty one touches nothing") {
  for (const auto how : precisions) {
    owned<float> none(300, 0), y(300, 4, 99.0f);
    host::matmul_nt(none.view(), matrix<const float>(nullptr, 4, 0), y.view(), how);
    REQUIRE(y.data == std::vector<float>(1200, 0.0f));
    y.data.assign(1200, 99.0f);
    host::matmul_nn(none.view(), matrix<const float>(nullptr, 0, 4), y.view(), how);
    REQUIRE(y.data == std::vector<float>(1200, 0.0f));
    host::matmul_nt(matrix<const float>(nullptr, 0, 5), activations(4, 5).view(), matrix<float>(nullptr, 0, 4), how);
  }
}

TEST_CASE("a product is the same bytes for any number of threads") {
  const auto x = activations(700, 300), w = activations(600, 300, 4);
  for (const auto how : precisions)
    REQUIRE(same_for_any_threads([&] {
      owned<float> y(700, 600);
      host::matmul_nt(x.view(), w.view(), y.view(), how);
      return y.data;
    }));
}

TEST_CASE("a token's product in bfloat16 does not depend on where tiles and blocks end") {
  constexpr auto how = host::matmul_precision::bfloat16;
  const auto x = activations(320, 1700), w = activations(64, 1700, 4);
  owned<float> all(320, 64);
  host::matmul_nt(x.view(), w.view(), all.view(), how);
  for (const auto& [m, n] : {std::array<index_t, 2>{301, 64}, {320, 63}, {17, 5}}) {
    CAPTURE(m, n);
    owned<float> part(m, n);
    host::matmul_nt(x.view().rows_at(0, m), w.view().rows_at(0, n), part.view(), how);
    for (index_t i = 0; i < m; ++i)
      for (index_t j = 0; j < n; ++j) REQUIRE(part.view()(i, j) == all.view()(i, j));
  }
}

TEST_CASE("a token's product does not depend on which other tiles are computed") {
  const auto x = activations(512, 100), w = activations(300, 100, 4);
  for (const auto how : precisions) {
    owned<float> all(512, 300), half(256, 300);
    host::matmul_nt(x.view(), w.view(), all.view(), how);
    host::matmul_nt(x.view().rows_at(256, 256), w.view(), half.view(), how);
    REQUIRE(std::vector<float>(all.data.begin() + 256 * 300, all.data.end()) == half.data);
  }
}

}  // namespace matmul_tests

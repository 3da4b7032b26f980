// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/gemm.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "nibble/gemm.hpp"
#include "nibble/reference/gemm.hpp"
#include "nibble/reference/pack.hpp"

namespace gemm_tests {

using namespace nibble;

namespace {

/// A packed linear and inputs for it.
template <class Scale>
struct problem {
  index_t m, n, k, group, groups;
  layout::compressed_tensors l;
  std::vector<float> x;
  std::vector<uint8_t> codes, zeros;
  std::vector<uint32_t> words;
  std::vector<Scale> scales;
  bool symmetric;

  problem(int bits, index_t m_, index_t n_, index_t k_, index_t group_, bool symmetric_, unsigned seed = 1)
      : m(m_), n(n_), k(k_), group(group_), groups(layout::groups(k_, group_)), l{bits}, symmetric(symmetric_) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::uniform_int_distribution<int> code(0, (1 << bits) - 1);
    x.resize(static_cast<size_t>(m * k));
    for (float& value : x) value = normal(engine);
    codes.resize(static_cast<size_t>(n * k));
    for (uint8_t& value : codes) value = static_cast<uint8_t>(code(engine));
    for (index_t i = 0; i < n * groups; ++i) {
      scales.push_back(Scale(0.001f + std::fabs(normal(engine))));
      zeros.push_back(static_cast<uint8_t>(code(engine)));
    }
    const layout::extents shape = l.packed(n, k);
    words.resize(static_cast<size_t>(shape.rows * shape.cols));
    reference::pack(l, matrix<const uint8_t>(codes.data(), n, k),
                    matrix<uint32_t>(words.data(), shape.rows, shape.cols));
  }
  matrix<const float> inputs() const { return {x.data(), m, k}; }
  matrix<const uint32_t> word_matrix() const { return {words.data(), n, static_cast<index_t>(words.size()) / n}; }
  matrix<const Scale> scale_matrix() const { return {scales.data(), n, groups}; }
  matrix<const uint8_t> zero_matrix() const {
    return symmetric ? matrix<const uint8_t>() : matrix<const uint8_t>(zeros.data(), n, groups);
  }

  template <class F>
  std::vector<float> result(F&& gemm) const {
    std::vector<float> y(static_cast<size_t>(m * n), -1.0f);
    gemm(inputs(), l, word_matrix(), scale_matrix(), zero_matrix(), group, matrix<float>(y.data(), m, n));
    return y;
  }
  std::vector<float> by_reference() const {
    return result([](auto... a) { reference::gemm(a...); });
  }
  std::vector<float> by_mathematics() const {
    std::vector<float> y;
    for (index_t t = 0; t < m; ++t)
      for (index_t i = 0; i < n; ++i)
        y.push_back(gemm(inputs().row(t), k, l, word_matrix(), scale_matrix(), zero_matrix(), group, i));
    return y;
  }
  template <class Kernel>
  std::vector<float> by_kernel() const {
    return result([](auto... a) { host::detail::gemm_packed<Kernel>(a...); });
  }
  /// Σ x·w in double, and how far sums of rounded inputs may be from it.
  std::pair<double, double> exact(index_t t, index_t i) const {
    const index_t run = gemm_run(l.bits, group);
    double sum = 0, rounding = 0, magnitude = 0;
    for (index_t first = 0; first < k; first += run) {
      const index_t end = std::min(k, first + run), g = group < 0 ? 0 : first / group;
      const int zero = symmetric ? 1 << (l.bits - 1) : zeros[static_cast<size_t>(i * groups + g)];
      const auto scale = static_cast<double>(static_cast<float>(scales[static_cast<size_t>(i * groups + g)]));
      double largest = 0, unit = 0x1p-126;
      for (index_t j = first; j < end; ++j) largest = std::max(largest, std::fabs(input(t, j)));
      while (largest > 32767 * unit) unit *= 2;
      for (index_t j = first; j < end; ++j) {
        const double w = (codes[static_cast<size_t>(i * k + j)] - zero) * scale;
        sum += input(t, j) * w;
        rounding += unit / 2 * std::fabs(w);
        magnitude += (std::fabs(input(t, j)) + unit / 2) * std::fabs(w);
      }
    }
    // A run's sum is rounded twice, a lane adds ⌈k/16u⌉ of them, the tree has four levels.
    const double roundings = std::ceil(static_cast<double>(k) / static_cast<double>(16 * run)) + 6;
    return {sum, rounding + roundings * 0x1.001p-24 * magnitude};
  }
  double input(index_t t, index_t j) const { return static_cast<double>(x[static_cast<size_t>(t * k + j)]); }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// What the machine runs, and the plain loops, which it may not be running.
template <class Scale>
void check_equal(const problem<Scale>& p) {
  CAPTURE(p.l.bits, p.m, p.n, p.k, p.group, p.symmetric);
  const auto expected = p.by_reference();
  CHECK(same_bits(p.by_mathematics(), expected));
  CHECK(same_bits(p.result([](auto... a) { host::gemm(a...); }), expected));
  CHECK(same_bits(p.template by_kernel<host::detail::plain_kernel>(), expected));
#if defined(__GNUC__) && defined(__x86_64__)
  if (host::detail::has_avx2()) CHECK(same_bits(p.template by_kernel<host::detail::avx2_kernel>(), expected));
  if (host::detail::has_vnni()) CHECK(same_bits(p.template by_kernel<host::detail::vnni_kernel>(), expected));
#endif
}

/// All tokens together, and every one alone, which has kernels of its own.
template <class Scale>
void check_equal_alone(const problem<Scale>& p) {
  check_equal(p);
  problem<Scale> one = p;
  one.m = 1;
  for (index_t t = 0; t < p.m; ++t) {
    one.x.assign(p.x.begin() + t * p.k, p.x.begin() + (t + 1) * p.k);
    check_equal(one);
  }
}

template <class Kernel, class T>
std::vector<float> dense_by(const std::vector<float>& x, const std::vector<T>& w, index_t m, index_t n, index_t k,
                            index_t stride) {
  std::vector<float> y(static_cast<size_t>(m * n), -1.0f);
  host::detail::gemm_dense<Kernel>(matrix<const float>(x.data(), m, k), matrix<const T>(w.data(), n, k, stride),
                                   matrix<float>(y.data(), m, n));
  return y;
}

/// Dense weights whose rows are `stride` apart.
template <class T>
void check_dense(index_t m, index_t n, index_t k) {
  CAPTURE(m, n, k, sizeof(T));
  const index_t stride = k + 3;
  std::mt19937 engine(static_cast<unsigned>(m + 31 * n + 977 * k));
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(static_cast<size_t>(m * k)), expected(static_cast<size_t>(m * n));
  std::vector<T> w(static_cast<size_t>(n * stride), T(1e4f));
  for (float& value : x) value = normal(engine);
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < k; ++j) w[static_cast<size_t>(i * stride + j)] = T(normal(engine));
  const matrix<const T> weights(w.data(), n, k, stride);
  reference::gemm(matrix<const float>(x.data(), m, k), weights, matrix<float>(expected.data(), m, n));
  for (index_t i = 0; i < n; ++i) CHECK(gemm(x.data(), weights, i) == expected[static_cast<size_t>(i)]);
  CHECK(same_bits(dense_by<host::detail::plain_kernel>(x, w, m, n, k, stride), expected));
#if defined(__GNUC__) && defined(__x86_64__)
  if (host::detail::has_avx2()) CHECK(same_bits(dense_by<host::detail::avx2_kernel>(x, w, m, n, k, stride), expected));
  if (host::detail::has_avx512())
    CHECK(same_bits(dense_by<host::detail::avx512_kernel>(x, w, m, n, k, stride), expected));
#endif
}

}  // namespace

TEST_CASE("gemm over dense weights equals the reference bit for bit: dtypes, strides, remainders of every extent") {
  for (const index_t m : {1, 2, 3, 4, 5, 8})
    for (const index_t n : {1, 3, 4, 6, 300})
      for (const index_t k : {1, 15, 16, 17, 100, 256}) {
        check_dense<float>(m, n, k);
        check_dense<bf16>(m, n, k);
        check_dense<fp16>(m, n, k);
      }
}

TEST_CASE("a product is the same bits for any number of threads, and a token's alone as among others") {
  const problem<bf16> p(4, 8, 600, 512, 128, false, 3);
  const auto product = [](auto... a) { host::gemm(a...); };
  const int before = static_cast<int>(host::pool().size());
  host::set_threads(1);
  const auto expected = p.result(product);
  for (const int threads : {2, 3, 7}) {
    host::set_threads(threads);
    CHECK(same_bits(p.result(product), expected));
  }
  host::set_threads(before);
  problem<bf16> one = p;
  one.m = 1;
  for (index_t t = 0; t < p.m; ++t) {
    one.x.assign(p.x.begin() + t * p.k, p.x.begin() + (t + 1) * p.k);
    CHECK(same_bits(one.result(product), {expected.begin() + t * p.n, expected.begin() + (t + 1) * p.n}));
  }
}

TEST_CASE("a NaN or an infinity in a token makes its own outputs not finite, and no other token's") {
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY})
    for (const int bits : {2, 3, 4, 8}) {
      problem<float> p(bits, 3, 5, 256, 64, false);
      p.x[static_cast<size_t>(p.k + 77)] = bad;
      check_equal_alone(p);
      const auto y = p.result([](auto... a) { host::gemm(a...); });
      for (index_t i = 0; i < p.n; ++i) {
        CHECK(std::isfinite(y[static_cast<size_t>(i)]));
        CHECK_FALSE(std::isfinite(y[static_cast<size_t>(p.n + i)]));
        CHECK(std::isfinite(y[static_cast<size_t>(2 * p.n + i)]));
      }
    }
}

TEST_CASE("gemm over packed codes equals the reference bit for bit: widths, groups, remainders of every extent") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const index_t group : {-1, 7, 12, 16, 24, 32, 64, 128, 256, 512, 1000}) {
      for (const index_t k : {1, 31, 128, 384, 520, 1100}) {
        if (group > 0 && k % group != 0 && group < k && k != 520 && k != 1100) continue;
        check_equal(problem<float>(bits, 3, 5, k, group, (k + bits) % 2 == 0));
      }
      check_equal(problem<bf16>(bits, 1, 9, 768, group, false));
      check_equal(problem<fp16>(bits, 9, 6, 256, group, true));
    }
}

TEST_CASE(
    "a run's unit is the smallest power of two that holds its largest input in 16 bits, not finite for NaN or inf") {
  std::mt19937 engine(7);
  std::vector<float> all = {0.0f,         1.0f,
                            32767.0f,     std::nextafter(32767.0f, 1e9f),
                            32768.0f,     65534.0f,
                            0x1.fffcp+9f, 0x1p-149f,
                            0x1p-126f,    0x1.fffffep+127f,
                            -3.0f};
  for (int i = 0; i < 20000; ++i) all.push_back(bit_cast<float>(static_cast<uint32_t>(engine())));
  for (const float x : all) {
    const float unit = run_unit(magnitude_bits(x));
    if (!std::isfinite(x)) {
      CHECK(std::isnan(unit));
      CHECK(run_integer(x, unit) == 0);
      continue;
    }
    int exponent = 0;
    const double most = std::fabs(static_cast<double>(x));
    CHECK(std::frexp(unit, &exponent) == 0.5f);
    CHECK(most <= 32767.0 * static_cast<double>(unit));
    CHECK((unit == 0x1p-126f || most > 32767.0 * static_cast<double>(unit) / 2));
    CHECK(run_integer(x, unit) ==
          static_cast<int32_t>(std::nearbyint(static_cast<double>(x) / static_cast<double>(unit))));
  }
}

TEST_CASE("inputs of every magnitude, ties, zeros and the widest sums are the same bits on every path") {
  std::mt19937 engine(11);
  for (const int bits : {2, 3, 4, 8}) {
    problem<float> p(bits, 5, 6, 640, 64, false, 9);
    for (index_t j = 0; j < p.k; ++j) {
      p.x[static_cast<size_t>(j)] = std::ldexp(p.x[static_cast<size_t>(j)], static_cast<int>(engine() % 260) - 149);
      p.x[static_cast<size_t>(p.k + j)] = j / 40 % 2 == 0 ? 0.0f : -0.0f;
      p.x[static_cast<size_t>(2 * p.k + j)] = static_cast<float>(engine() % 65535) / 2 - 16383.5f;  // ties to even
      p.x[static_cast<size_t>(3 * p.k + j)] = 32767.0f, p.x[static_cast<size_t>(4 * p.k + j)] = -32767.0f;
    }
    check_equal_alone(p);
    for (const uint8_t zero : {uint8_t(0), uint8_t(255)}) {
      p.zeros.assign(p.zeros.size(), zero);
      p.words.assign(p.words.size(), zero == 0 ? ~0u : 0u);
      check_equal_alone(p);
    }
  }
}

TEST_CASE("a packed product is within the bound of rounded inputs and float sums of the exact one") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const index_t group : {-1, 40, 64, 20, 7}) {
      const problem<float> p(bits, 2, 7, 1000, group, false, 5);
      const auto y = p.result([](auto... a) { host::gemm(a...); });
      double worst = 0;
      for (index_t t = 0; t < p.m; ++t)
        for (index_t i = 0; i < p.n; ++i) {
          const auto [sum, bound] = p.exact(t, i);
          worst = std::max(worst, std::fabs(static_cast<double>(y[static_cast<size_t>(t * p.n + i)]) - sum) / bound);
        }
      CHECK(worst <= 1);
      CHECK(worst > 1e-3);
    }
}

}  // namespace gemm_tests

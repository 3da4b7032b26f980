// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/distortion.cuh"

#include <limits>

#include "nibble/reference/distortion.hpp"
#include "support/blas.hpp"

namespace distortion_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
const float not_a_number = std::numeric_limits<float>::quiet_NaN();

template <class T>
owned<T> normal(index_t rows, index_t cols, unsigned seed, float deviation) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw(0.0f, deviation);
  owned<T> x(rows, cols);
  for (T& value : x.data) value = T(draw(engine));
  return x;
}

template <class T, class U>
distortion_sums on_device(const owned<T>& x, const owned<U>& y, index_t padding = 0, index_t offset = 0,
                          index_t apart = 8) {
  const device_matrix<T> of_x(x, x.cols + padding, offset);
  const device_matrix<U> of_y(y, y.cols + padding + apart, offset);
  const device_array<distortion_sums> sums(1);
  with_workspace([&](void* workspace, index_t& bytes) {
    return kernels::distortion(of_x.const_view(), of_y.const_view(), sums.data(), workspace, bytes, nullptr);
  });
  return sums.download()[0];
}

/// A sum of terms up to `magnitude` in all, each rounded thrice at most, added in any order: half of this, and so is the reference's.
bool near(double got, double expected, double magnitude, index_t count) {
  return std::fabs(got - expected) <= 2 * static_cast<double>(count + 2) * 0x1p-53 * magnitude;
}

template <class T, class U>
void sums_agree(index_t rows, index_t cols, index_t padding = 0, index_t offset = 0, index_t apart = 8) {
  CAPTURE(rows, cols, padding, offset, apart);
  const auto x = normal<T>(rows, cols, 1, 1.0f);
  const auto noise = normal<float>(rows, cols, 2, 0.1f);
  owned<U> y(rows, cols);
  for (size_t i = 0; i < y.data.size(); ++i) y.data[i] = U(static_cast<float>(x.data[i]) + noise.data[i]);
  const auto got = on_device(x, y, padding, offset, apart);
  double xx = 0, yy = 0, xy = 0, products = 0;
  for (size_t i = 0; i < y.data.size(); ++i) {
    const double a = static_cast<double>(static_cast<float>(x.data[i]));
    const double b = static_cast<double>(static_cast<float>(y.data[i]));
    xx += a * a;
    yy += b * b;
    xy += a * b;
    products += std::fabs(a * b);
  }
  const index_t count = rows * cols;
  REQUIRE(got.count == count);
  REQUIRE(near(got.xx, xx, xx, count));
  REQUIRE(near(got.yy, yy, yy, count));
  REQUIRE(near(got.xy, xy, products, count));
  const double mse = reference::mse(x.view(), std::as_const(y).view());
  REQUIRE(near(got.mse(), mse, mse, count));
  REQUIRE(got.max_error() == reference::max_error(x.view(), std::as_const(y).view()));
  const double share = static_cast<double>(count + 8) * 0x1p-50;
  REQUIRE(got.sqnr() == Approx(reference::sqnr(x.view(), std::as_const(y).view())).epsilon(share).margin(share));
  REQUIRE(got.cosine() == Approx(reference::cosine(x.view(), std::as_const(y).view())).epsilon(share).margin(share));
}

template <class T, class U>
void sums_agree_everywhere() {
  for (index_t cols = 1; cols <= 18; ++cols) sums_agree<T, U>(3, cols, (8 - cols % 8) % 8);
  for (const index_t rows : {1, 15, 16, 17, 129}) sums_agree<T, U>(rows, 8);
  for (const index_t cols : {1024, 2047, 2056, 4100}) sums_agree<T, U>(17, cols);
  for (const index_t offset : {0, 1, 4, 8})
    for (const index_t padding : {0, 1, 8})
      for (const index_t apart : {7, 8}) sums_agree<T, U>(10, 32, padding, offset, apart);
}

template <class T, class U>
std::vector<double> divergences(const owned<T>& p, const owned<U>& q, index_t padding = 0) {
  const device_matrix<T> of_p(p, p.cols + padding, padding);
  const device_matrix<U> of_q(q, q.cols + 2 * padding);
  const device_array<double> divergence(p.rows);
  REQUIRE(kernels::kl_divergence(of_p.const_view(), of_q.const_view(), divergence.data(), nullptr) == status::ok);
  return divergence.download();
}

template <class T>
owned<float> as_float(const owned<T>& x) {
  owned<float> out(x.rows, x.cols);
  for (size_t i = 0; i < x.data.size(); ++i) out.data[i] = static_cast<float>(x.data[i]);
  return out;
}

/// The bound of kernels::kl_divergence and the reference's, which also rounds where it subtracts log Σ exp(logit) as one number.
double bound_of(const float* p, const float* q, index_t count) {
  const double p_norm = log_sum_exp(p, count), q_norm = log_sum_exp(q, count);
  double sum = 1;
  for (index_t i = 0; i < count; ++i) {
    const double log_p = static_cast<double>(p[i]) - p_norm, share = std::exp(log_p);
    if (share > 0) sum += share * (std::fabs(log_p) + std::fabs(static_cast<double>(q[i]) - q_norm));
  }
  return (static_cast<double>(4 * count + 4800) + std::fabs(p_norm) + std::fabs(q_norm)) * 0x1p-53 * sum;
}

template <class T, class U>
void divergences_agree(index_t rows, index_t cols, float deviation) {
  CAPTURE(rows, cols, deviation);
  const auto p = normal<T>(rows, cols, 3, deviation);
  const auto q = normal<U>(rows, cols, 4, deviation);
  const auto got = divergences(p, q, cols % 3);
  const auto p_float = as_float(p), q_float = as_float(q);
  std::vector<double> expected(static_cast<size_t>(rows));
  reference::kl_divergence(p_float.view(), q_float.view(), expected.data());
  for (index_t row = 0; row < rows; ++row) {
    const double bound = bound_of(p_float.view().row(row), q_float.view().row(row), cols);
    REQUIRE(std::fabs(got[static_cast<size_t>(row)] - expected[static_cast<size_t>(row)]) <= bound);
    REQUIRE((cols < 31 || bound < 1e-6 * expected[static_cast<size_t>(row)]));  // the bound means something
  }
}

bool same_bytes(const distortion_sums& a, const distortion_sums& b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

}  // namespace

TEST_CASE("the kernel's sums of distortion are the reference's within their bound for every pair of dtypes") {
  sums_agree_everywhere<float, float>();
  sums_agree_everywhere<float, bf16>();
  sums_agree_everywhere<fp16, fp16>();
  sums_agree<bf16, float>(9, 70);
  sums_agree<fp16, bf16>(9, 70);
}

TEST_CASE("the kernel's measures of what is equal, zero, empty, NaN or infinite are the reference's") {
  const auto x = normal<float>(20, 33, 5, 1.0f);
  REQUIRE(on_device(x, x).sqnr() == std::numeric_limits<double>::infinity());
  REQUIRE(on_device(x, x).mse() == 0.0);
  const owned<float> zeros(20, 33, 0.0f);
  REQUIRE(on_device(zeros, zeros).cosine() == 1.0);
  REQUIRE(on_device(x, zeros).cosine() == 0.0);
  REQUIRE(on_device(owned<float>(0, 5), owned<float>(0, 5)).mse() == 0.0);
  REQUIRE(on_device(owned<float>(5, 0), owned<float>(5, 0)).max_error() == 0.0);
  for (const size_t at : {size_t(0), size_t(31), size_t(400), x.data.size() - 1}) {
    auto y = x;
    y.data[at] = not_a_number;
    const auto sums = on_device(x, y);
    for (const double measure : {sums.mse(), sums.sqnr(), sums.cosine(), sums.max_error()})
      REQUIRE(std::isnan(measure));
    y.data[at] = inf;
    REQUIRE(on_device(x, y).max_error() == std::numeric_limits<double>::infinity());
    REQUIRE(on_device(x, y).sqnr() == reference::sqnr(x.view(), std::as_const(y).view()));
  }
}

TEST_CASE("the kernel's divergences are the reference's within their bound") {
  for (const index_t cols : {1, 2, 31, 511, 512, 513, 1500})
    for (const float deviation : {0.5f, 4.0f, 60.0f}) {
      divergences_agree<float, float>(3, cols, deviation);
      divergences_agree<bf16, float>(2, cols, deviation);
    }
  divergences_agree<fp16, fp16>(2, 40, 3.0f);
  divergences_agree<float, bf16>(2, 40, 3.0f);
}

TEST_CASE("a number added to all logits of a row changes no byte of its divergence") {
  auto p = normal<float>(2, 600, 10, 4.0f), q = normal<float>(2, 600, 11, 4.0f);
  for (owned<float>* x : {&p, &q})
    for (float& value : x->data) value = std::nearbyint(value * 8);  // sums below are exact
  const auto expected = divergences(p, q);
  for (float& value : p.data) value += 0x1p20f;
  for (float& value : q.data) value -= 0x1p22f;
  REQUIRE(divergences(p, q) == expected);
}

TEST_CASE("rows of logits without a softmax, and probabilities of 0, diverge in the kernel as in the reference") {
  const float odd[][2][3] = {{{1, 2, 3}, {1, 2, 3}},
                             {{1, not_a_number, 3}, {1, 2, 3}},
                             {{1, 2, 3}, {not_a_number, 2, 3}},
                             {{1, inf, 3}, {1, 2, 3}},
                             {{1, 2, 3}, {1, 2, inf}},
                             {{-inf, -inf, -inf}, {1, 2, 3}},
                             {{1, 2, 3}, {-inf, -inf, -inf}},
                             {{-inf, 2, 3}, {1, 2, 3}},
                             {{1, 2, 3}, {-inf, 2, 3}},
                             {{-inf, 2, 3}, {-inf, 2, 3}},
                             {{3e38f, -3e38f, 0}, {3e38f, -3e38f, 0}}};
  for (const auto& [p_row, q_row] : odd)
    for (const index_t at : {0, 600}) {  // among other logits too
      owned<float> p(1, at + 3, -1.0f), q(1, at + 3, -1.5f);
      for (index_t i = 0; i < 3; ++i) {
        p.view()(0, at + i) = p_row[i];
        q.view()(0, at + i) = q_row[i];
      }
      if (at > 0 && (p_row[0] == p_row[1] || q_row[0] == q_row[1])) continue;
      double expected = 0;
      reference::kl_divergence(std::as_const(p).view(), std::as_const(q).view(), &expected);
      const double got = divergences(p, q)[0];
      CAPTURE(at, p_row[0], p_row[1], q_row[0], q_row[2], got, expected);
      REQUIRE(std::isnan(got) == std::isnan(expected));
      REQUIRE(std::isinf(got) == std::isinf(expected));
      if (std::isfinite(expected)) REQUIRE(got == Approx(expected).epsilon(1e-12).margin(1e-12));
    }
  REQUIRE(divergences(owned<float>(2, 0), owned<float>(2, 0)) == std::vector<double>(2, 0.0));
}

TEST_CASE("the kernels of distortion give the same bytes under every schedule and architecture") {
  const auto x = normal<bf16>(200, 72, 6, 1.0f);
  const auto y = normal<float>(200, 72, 7, 1.0f);
  const auto sums = on_device(x, y);
  const auto logits = normal<float>(2, 700, 8, 5.0f), others = normal<float>(2, 700, 9, 5.0f);
  const auto divergence = divergences(logits, others);
  const auto run = [&] {
    REQUIRE(same_bytes(on_device(x, y), sums));
    REQUIRE(divergences(logits, others) == divergence);
  };
  under_schedules(5, run);
  on_architectures(run);
}

TEST_CASE("the kernels of distortion refuse what they cannot do, and say why") {
  const device_matrix<float> x(owned<float>(4, 8, 1.0f)), y(owned<float>(4, 8, 1.5f));
  const device_array<distortion_sums> sums(1);
  const device_array<double> divergence(4);
  const auto both = [&](matrix<const float> a, matrix<const float> b) {
    index_t bytes = 0;
    const status got = kernels::distortion(a, b, sums.data(), nullptr, bytes, nullptr);
    REQUIRE(kernels::kl_divergence(a, b, divergence.data(), nullptr) == got);
    return got;
  };
  const matrix<const float> all = x, other = y;
  const auto askew = reinterpret_cast<const float*>(reinterpret_cast<const char*>(all.data) + 2);
  CHECK(both(all, other) == status::ok);
  CHECK(both(all.rows_at(0, 3), other) == status::bad_shape);
  CHECK(both(all, other.cols_at(0, 7)) == status::bad_shape);
  CHECK(both({all.data, 4, 8, 7}, other) == status::bad_shape);
  CHECK(both(all, {nullptr, 4, 8}) == status::bad_shape);
  CHECK(both({askew, 4, 8}, other) == status::misaligned);
  CHECK(both(all, {askew, 4, 8}) == status::misaligned);
  CHECK(both({all.data, index_t{1} << 50, 1}, {other.data, index_t{1} << 50, 1}) == status::too_large);
  index_t bytes = 0;
  CHECK(kernels::distortion(all, other, nullptr, nullptr, bytes, nullptr) == status::bad_shape);
  CHECK(kernels::kl_divergence(all, other, nullptr, nullptr) == status::bad_shape);
  const auto off = [](auto* there) { return reinterpret_cast<decltype(there)>(reinterpret_cast<char*>(there) + 4); };
  CHECK(kernels::distortion(all, other, off(sums.data()), nullptr, bytes, nullptr) == status::misaligned);
  CHECK(kernels::kl_divergence(all, other, off(divergence.data()), nullptr) == status::misaligned);
  CHECK(kernels::kl_divergence(all.rows_at(0, 0), other.rows_at(0, 0), nullptr, nullptr) == status::ok);
  refuses_bad_workspaces([&](void* workspace, index_t& size) {
    return kernels::distortion(all, other, sums.data(), workspace, size, nullptr);
  });
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device old(sm);
    CHECK(both(all, other) == status::unsupported_device);
  }
#endif
}

}  // namespace distortion_tests

// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/observe.cuh"

#include <limits>

#include "nibble/reference/observe.hpp"
#include "support/activations.hpp"
#include "support/blas.hpp"

namespace observe_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

/// Correlated activations of every size, as stored in T.
template <class T>
owned<T> stored(index_t tokens, index_t channels) {
  const auto x = activations(tokens, channels);
  owned<T> out(tokens, channels);
  for (size_t i = 0; i < x.data.size(); ++i) out.data[i] = T(x.data[i]);
  return out;
}

/// NaN, ±inf, −0, subnormals and the largest numbers among them.
template <class T>
owned<T> nasty(index_t tokens, index_t channels) {
  auto x = stored<T>(tokens, channels);
  const float odd[] = {-std::numeric_limits<float>::quiet_NaN(), inf, -inf, 3e38f, -3e38f, -0.0f, 1e-45f, -60000.0f};
  for (size_t i = 0; i < x.data.size(); i += 11) x.data[i] = T(odd[(i / 11) % 8]);
  return x;
}

template <class T>
bool finite(T x) {
  return std::isfinite(static_cast<float>(x));
}

struct gathered_sums {
  std::vector<double> sum;
  std::vector<float> most;
  uint64_t bad = 0;
};

/// All statistics by one call a chunk, each added to what stands there before.
template <class T>
gathered_sums gather(const device_matrix<T>& x, index_t chunk, const device_matrix<T>* clean = nullptr) {
  const matrix<const T> all = x;
  const device_array<double> sum(std::vector<double>(static_cast<size_t>(all.cols), 0.75));
  const device_array<float> most(std::vector<float>(static_cast<size_t>(all.cols), 0.25f));
  const device_array<uint64_t> bad(std::vector<uint64_t>{5});
  for (index_t row = 0; row < all.rows; row += chunk) {
    const index_t rows = min(chunk, all.rows - row);
    const kernels::statistics to{sum.data(), most.data(), bad.data()};
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::observe(all.rows_at(row, rows), to, clean ? clean->view().rows_at(row, rows) : matrix<T>(),
                              workspace, bytes, nullptr);
    });
  }
  return {sum.download(), most.download(), bad.download()[0]};
}

/// Sums of m terms of one sign, in any order, are off by m·2⁻⁵³ of themselves at most, and so are the reference's.
void near_sums(const std::vector<double>& got, const std::vector<double>& expected, index_t tokens) {
  REQUIRE(got.size() == expected.size());
  for (size_t j = 0; j < got.size(); ++j)
    REQUIRE(std::fabs(got[j] - expected[j]) <= 2 * static_cast<double>(tokens + 1) * 0x1p-53 * expected[j]);
}

template <class T>
void statistics_agree(index_t tokens, index_t channels, index_t padding = 0, index_t offset = 0,
                      index_t chunk = 1 << 20) {
  CAPTURE(tokens, channels, padding, offset, chunk);
  const auto x = nasty<T>(tokens, channels);
  std::vector<double> sum(static_cast<size_t>(channels), 0.75);
  std::vector<float> most(static_cast<size_t>(channels), 0.25f);
  reference::absolute_sum(x.view(), sum.data());
  reference::absolute_maximum(x.view(), most.data());
  uint64_t bad = 5;
  for (const T value : x.data) bad += finite(value) ? 0 : 1;

  const device_matrix<T> there(x, channels + padding, offset);
  const device_matrix<T> clean(tokens, channels, channels + padding, offset);
  const auto got = gather(there, chunk, &clean);
  near_sums(got.sum, sum, tokens);
  REQUIRE(got.most == most);
  REQUIRE(got.bad == bad);
  const auto cleaned = clean.download();
  for (size_t i = 0; i < x.data.size(); ++i) {
    const T expected = finite(x.data[i]) ? x.data[i] : T(0.0f);
    REQUIRE(std::memcmp(&cleaned.data[i], &expected, sizeof(T)) == 0);
  }
}

template <class T>
void statistics_agree_everywhere() {
  for (index_t channels = 1; channels <= 18; ++channels) statistics_agree<T>(3, channels, (8 - channels % 8) % 8);
  for (const index_t tokens : {1, 7, 8, 9, 33, 255, 256, 257, 513}) statistics_agree<T>(tokens, 24);
  for (const index_t channels : {127, 128, 256, 257, 520}) statistics_agree<T>(9, channels);
  for (const index_t offset : {0, 1, 4, 8})
    for (const index_t padding : {0, 1, 8}) statistics_agree<T>(10, 32, padding, offset);
}

template <class T>
owned<float> kernel_gram(const owned<T>& x, index_t chunk, index_t padding = 0, index_t offset = 0) {
  const blas_handle blas;
  const device_matrix<T> there(x, x.cols + padding, offset);
  const device_matrix<float> g(owned<float>(x.cols, x.cols, 0.0f), x.cols + padding, offset);
  for (index_t row = 0; row < x.rows; row += chunk)
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::gram(there.const_view().rows_at(row, min(chunk, x.rows - row)), g.view(), workspace, bytes, blas);
    });
  REQUIRE(kernels::mirror(g.view(), 1.0f, 0.0f, nullptr, nullptr) == status::ok);
  return g.download();
}

/// The bound of kernels::gram, in products of c = min(m, 2048) tokens; `calls` add each its own.
template <class T>
void near_gram(const owned<float>& g, const owned<T>& x, index_t calls) {
  owned<double> exact(x.cols, x.cols, 0.0);
  reference::gram(x.view(), exact.view());
  const index_t product = min(x.rows, index_t(2048));
  const double terms = static_cast<double>(product + 2 * max(ceil_div(x.rows, product), calls) + 1);
  const double unit = (sizeof(T) == 2 ? 2 : 1) * roundoff;
  for (index_t i = 0; i < g.rows; ++i)
    for (index_t j = 0; j < g.cols; ++j) {
      const double size = std::sqrt(exact.view()(i, i) * exact.view()(j, j));
      INFO("element " << i << ", " << j);
      REQUIRE(std::fabs(static_cast<double>(g.view()(i, j)) - exact.view()(i, j)) <= terms * unit * size);
      REQUIRE(g.view()(i, j) == g.view()(j, i));
    }
}

}  // namespace

TEST_CASE("the kernel's sums, maxima, counts and cleaned activations are the reference's in every shape") {
  statistics_agree_everywhere<float>();
  statistics_agree_everywhere<fp16>();
  statistics_agree_everywhere<bf16>();
}

TEST_CASE("statistics by themselves are those of one pass") {
  const auto x = nasty<bf16>(300, 40);
  const device_matrix<bf16> there(x);
  const auto together = gather(there, 300);
  const device_array<double> sum(std::vector<double>(40, 0.75));
  const device_array<float> most(std::vector<float>(40, 0.25f));
  const device_array<uint64_t> bad(std::vector<uint64_t>{5});
  with_workspace([&](void* workspace, index_t& bytes) {
    return kernels::absolute_sum(there.const_view(), sum.data(), workspace, bytes, nullptr);
  });
  REQUIRE(kernels::absolute_maximum(there.const_view(), most.data(), nullptr) == status::ok);
  REQUIRE(kernels::count_non_finite(there.const_view(), bad.data(), nullptr) == status::ok);
  REQUIRE(sum.download() == together.sum);
  REQUIRE(most.download() == together.most);
  REQUIRE(bad.download()[0] == together.bad);
}

TEST_CASE("the kernel's statistics in chunks of whole tiles are those of one chunk, and near them in any") {
  const auto x = nasty<fp16>(1100, 24);
  const device_matrix<fp16> there(x);
  const auto whole = gather(there, 1100);
  for (const index_t chunk : {256, 512, 1024}) REQUIRE(gather(there, chunk).sum == whole.sum);
  for (const index_t chunk : {100, 255, 600}) {
    const auto got = gather(there, chunk);
    near_sums(got.sum, whole.sum, 1100);
    REQUIRE(got.most == whole.most);
    REQUIRE(got.bad == whole.bad);
  }
}

TEST_CASE("sums of |x| that no float could hold are exact in the kernel too") {
  const device_matrix<float> x(owned<float>(300, 5, 3e38f));
  REQUIRE(gather(x, 300).sum == std::vector<double>(5, 300.0 * static_cast<double>(3e38f)));
}

TEST_CASE("the kernel's statistics and Gram matrix are the same bytes under every schedule and architecture") {
  const auto x = nasty<float>(530, 70);
  const device_matrix<float> there(x);
  const auto first = gather(there, 530);
  const auto gram = kernel_gram(stored<float>(100, 70), 100);
  under_schedules(4, [&] {
    const auto again = gather(there, 530);
    REQUIRE(again.sum == first.sum);
    REQUIRE(again.most == first.most);
    REQUIRE(again.bad == first.bad);
    REQUIRE(kernel_gram(stored<float>(100, 70), 100).data == gram.data);
  });
  on_architectures([&] { REQUIRE(gather(there, 530).sum == first.sum); });
}

TEST_CASE("the kernel's Gram matrix is within its bound of the reference's, and symmetric") {
  for (const index_t channels : {1, 7, 31, 32, 33, 65})
    for (const index_t tokens : {1, 20, 300}) {
      const auto f = stored<float>(tokens, channels);
      const auto h = stored<fp16>(tokens, channels);
      const auto b = stored<bf16>(tokens, channels);
      near_gram(kernel_gram(f, tokens), f, 1);
      near_gram(kernel_gram(h, tokens, 3), h, 1);
      near_gram(kernel_gram(b, tokens, 8, 1), b, 1);
      near_gram(kernel_gram(b, 64), b, ceil_div(tokens, 64));
    }
  const auto long_run = stored<bf16>(2100, 24);  // two products
  near_gram(kernel_gram(long_run, 2100), long_run, 2);
  const auto wide = stored<bf16>(3, 1100);  // two panels
  near_gram(kernel_gram(wide, 3), wide, 1);
}

TEST_CASE("NaN and inf add to the kernel's Gram matrix as if they were 0") {
  auto x = stored<bf16>(50, 30);
  for (size_t i = 3; i < x.data.size(); i += 37) x.data[i] = bf16(i % 2 == 0 ? inf : std::nanf(""));
  auto clean = x;
  for (bf16& value : clean.data) value = finite(value) ? value : bf16(0.0f);
  REQUIRE(kernel_gram(x, 50).data == kernel_gram(clean, 50).data);
  const device_matrix<bf16> there(clean);
  const device_matrix<float> g(owned<float>(30, 30, 0.0f));
  REQUIRE(kernels::gram_of_finite(there.const_view(), g.view(), blas_handle()) == status::ok);
  REQUIRE(kernels::mirror(g.view(), 1.0f, 0.0f, nullptr, nullptr) == status::ok);
  REQUIRE(g.download().data == kernel_gram(clean, 50).data);
}

TEST_CASE("a mirrored Gram matrix is the host's second moment bit for bit") {
  for (const index_t channels : {1, 5, 31, 32, 33, 64, 100})
    for (const float shrinkage : {0.0f, 0.3f, 1.0f}) {
      CAPTURE(channels, shrinkage);
      const auto x = activations(130, channels);
      const auto moment = gathered(x, 130, shrinkage);
      owned<float> upper(channels, channels, 0.0f);
      host::gram(x.view(), upper.view());
      for (index_t i = 0; i < channels; ++i)
        for (index_t j = 0; j < i; ++j) upper.view()(i, j) = inf;  // what is below the diagonal is not read
      const device_matrix<float> g(upper, channels + 3);
      const device_array<float> diagonal(channels);
      REQUIRE(kernels::mirror(g.view(), static_cast<float>(1.0 / 130), shrinkage, diagonal.data(), nullptr) ==
              status::ok);
      const auto got = g.download();
      for (index_t i = 0; i < channels; ++i)
        for (index_t j = 0; j < channels; ++j) REQUIRE(got.view()(i, j) == moment.gram_matrix()(i, j));
      REQUIRE(diagonal.download() == moment.diagonal());
    }
}

TEST_CASE("observe, gram and mirror refuse what they cannot do, and say why") {
  const device_matrix<float> x(owned<float>(4, 8, 1.0f)), g(owned<float>(8, 8, 0.0f));
  const device_array<double> sum(std::vector<double>(8, 0.0));
  const device_array<float> most(std::vector<float>(8, 0.0f));
  const device_array<uint64_t> bad(std::vector<uint64_t>{0});
  const blas_handle blas;
  index_t bytes = 0;
  const auto gathers = [&](matrix<const float> of, matrix<float> clean = {}) {
    index_t ask = 0;
    const status got = kernels::observe(of, {sum.data(), most.data(), bad.data()}, clean, nullptr, ask, nullptr);
    if (clean.data == nullptr) {
      REQUIRE(kernels::absolute_sum(of, sum.data(), nullptr, ask, nullptr) == got);
      REQUIRE(kernels::absolute_maximum(of, most.data(), nullptr) == got);
      REQUIRE(kernels::count_non_finite(of, bad.data(), nullptr) == got);
    }
    return got;
  };
  const matrix<const float> all = x;
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(x.view().data) + 2);
  CHECK(gathers(all) == status::ok);
  CHECK(gathers({all.data, -1, 8}) == status::bad_shape);
  CHECK(gathers({all.data, 4, 8, 7}) == status::bad_shape);
  CHECK(gathers({nullptr, 4, 8}) == status::bad_shape);
  CHECK(gathers({askew, 4, 7}) == status::misaligned);
  CHECK(gathers(all, g.view()) == status::bad_shape);
  CHECK(gathers(all, {g.view().data, 4, 8, 7}) == status::bad_shape);
  CHECK(gathers(all, {askew, 4, 8}) == status::misaligned);
  CHECK(kernels::absolute_sum(all, nullptr, nullptr, bytes, nullptr) == status::bad_shape);
  CHECK(kernels::absolute_maximum(all, nullptr, nullptr) == status::bad_shape);
  CHECK(kernels::count_non_finite(all, nullptr, nullptr) == status::bad_shape);
  const auto off = [](auto* there) { return reinterpret_cast<decltype(there)>(reinterpret_cast<char*>(there) + 2); };
  CHECK(kernels::absolute_sum(all, off(sum.data()), nullptr, bytes, nullptr) == status::misaligned);
  CHECK(kernels::absolute_maximum(all, off(most.data()), nullptr) == status::misaligned);
  CHECK(kernels::count_non_finite(all, off(bad.data()), nullptr) == status::misaligned);
  CHECK(kernels::count_non_finite(matrix<const float>(all.data, index_t{1} << 60, 1), bad.data(), nullptr) ==
        status::too_large);
  CHECK(kernels::absolute_maximum(matrix<const float>(nullptr, 0, 8), most.data(), nullptr) == status::ok);
  refuses_bad_workspaces(
      [&](void* workspace, index_t& size) { return kernels::absolute_sum(all, sum.data(), workspace, size, nullptr); });
  refuses_bad_workspaces(
      [&](void* workspace, index_t& size) { return kernels::gram(all, g.view(), workspace, size, blas); });

  const auto grams = [&](matrix<const float> of, matrix<float> to) {
    const status got = kernels::gram(of, to, nullptr, bytes, blas);
    if (got != status::ok) REQUIRE(kernels::gram_of_finite(of, to, blas) == got);
    return got;
  };
  CHECK(grams(all, g) == status::ok);
  CHECK(grams(all.cols_at(0, 7), g) == status::bad_shape);
  CHECK(grams(all, {g.view().data, 8, 7, 8}) == status::bad_shape);
  CHECK(grams({nullptr, 4, 8}, g) == status::bad_shape);
  CHECK(grams({askew, 4, 8}, g) == status::misaligned);
  CHECK(grams(all, {askew, 8, 8}) == status::misaligned);
  CHECK(kernels::gram_of_finite(all, g.view(), nullptr) == status::launch_failed);
  CHECK(kernels::gram_of_finite(matrix<const float>(all.data, 2, 8, index_t{1} << 31), g.view(), blas) ==
        status::too_large);

  CHECK(kernels::mirror(g.view().rows_at(0, 7), 1.0f, 0.5f, nullptr, nullptr) == status::bad_shape);
  CHECK(kernels::mirror(g.view(), 1.0f, 1.5f, nullptr, nullptr) == status::bad_shape);
  CHECK(kernels::mirror(g.view(), 1.0f, std::nanf(""), nullptr, nullptr) == status::bad_shape);
  CHECK(kernels::mirror({askew, 8, 8}, 1.0f, 0.5f, nullptr, nullptr) == status::misaligned);
  CHECK(kernels::mirror(g.view(), 1.0f, 0.5f, askew, nullptr) == status::misaligned);
  CHECK(kernels::mirror({g.view().data, 1500000, 1500000}, 1.0f, 0.5f, nullptr, nullptr) == status::too_large);
  CHECK(kernels::mirror({nullptr, 0, 0}, 1.0f, 0.5f, nullptr, nullptr) == status::ok);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(gathers(all) == status::unsupported_device);
    CHECK(grams(all, g) == status::unsupported_device);
    CHECK(kernels::mirror(g.view(), 1.0f, 0.5f, nullptr, nullptr) == status::unsupported_device);
  }
#endif
}

TEST_CASE("products by BLAS read either factor as it is or transposed, and add to what is there") {
  const blas_handle blas;
  const owned<float> a = activations(5, 3), b = activations(3, 4, 9);
  owned<float> turned_a(3, 5), turned_b(4, 3), expected(5, 4, 2.0f);
  for (index_t i = 0; i < 5; ++i)
    for (index_t j = 0; j < 3; ++j) turned_a.view()(j, i) = a.view()(i, j);
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 4; ++j) turned_b.view()(j, i) = b.view()(i, j);
  using kernels::reading;
  for (const float beta : {0.0f, 1.0f})
    for (const bool turn_a : {false, true})
      for (const bool turn_b : {false, true}) {
        const device_matrix<float> left(turn_a ? turned_a : a, 7), right(turn_b ? turned_b : b, 6);
        const device_matrix<float> c(beta == 0.0f ? owned<float>(5, 4, inf) : expected, 5);
        cublasSetPointerMode(blas, CUBLAS_POINTER_MODE_DEVICE);
        REQUIRE(kernels::matmul(blas, left.const_view(), turn_a ? reading::transposed : reading::plain,
                                right.const_view(), turn_b ? reading::transposed : reading::plain, beta,
                                c.view()) == status::ok);
        cublasPointerMode_t mode;
        cublasGetPointerMode(blas, &mode);
        REQUIRE(mode == CUBLAS_POINTER_MODE_DEVICE);
        const auto got = c.download();
        for (index_t i = 0; i < 5; ++i)
          for (index_t j = 0; j < 4; ++j) {
            double exact = beta == 0.0f ? 0.0 : 2.0, size = exact;
            for (index_t l = 0; l < 3; ++l) {
              const double term = static_cast<double>(a.view()(i, l)) * static_cast<double>(b.view()(l, j));
              exact += term;
              size += std::fabs(term);
            }
            REQUIRE(std::fabs(static_cast<double>(got.view()(i, j)) - exact) <= 5 * roundoff * size);
          }
      }
  const device_matrix<float> c(5, 4), left(a), right(b);
  const auto shapes = [&](matrix<const float> l, matrix<const float> r, matrix<float> to) {
    return kernels::matmul(blas, l, reading::plain, r, reading::plain, 0.0f, to);
  };
  CHECK(shapes(left, right, c.view().rows_at(0, 4)) == status::bad_shape);
  CHECK(shapes(left, right, c.view().cols_at(0, 3)) == status::bad_shape);
  CHECK(shapes(left.const_view().cols_at(0, 2), right, c) == status::bad_shape);
  CHECK(shapes({nullptr, 5, 3}, right, c) == status::bad_shape);
  CHECK(shapes(left, {reinterpret_cast<const float*>(reinterpret_cast<const char*>(right.view().data) + 1), 3, 4}, c) ==
        status::misaligned);
}

}  // namespace observe_tests

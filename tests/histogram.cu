// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/histogram.cuh"

#include <limits>
#include <random>

#include "nibble/host/histogram.hpp"
#include "nibble/reference/histogram.hpp"
#include "support/blas.hpp"

namespace histogram_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity(), nothing = std::numeric_limits<float>::quiet_NaN();

/// Heavy tails, louder from token to token, so that a range has to double while they come; some NaN, ±inf, ±0 and subnormals.
template <class T>
owned<T> growing(index_t tokens, index_t channels, bool odd = true) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  owned<T> x(tokens, channels);
  const float strange[] = {nothing, infinite, -infinite, -0.0f, 0.0f, 1e-42f};
  for (size_t i = 0; i < x.data.size(); ++i) {
    const float z = normal(random), loudness = 1.0f + static_cast<float>(i) / static_cast<float>(channels) / 4.0f;
    x.data[i] = T(odd && i % 13 == 7 ? strange[i / 13 % 6] : z * z * z * loudness);
  }
  return x;
}

template <class T>
histogram_counts counted(const device_matrix<T>& x, index_t chunk) {
  const matrix<const T> all = x;
  const device_array<histogram_counts> h(std::vector<histogram_counts>{histogram_counts{}});
  for (index_t row = 0; row < all.rows; row += chunk)
    REQUIRE(kernels::add_to_histogram(all.rows_at(row, min(chunk, all.rows - row)), h.data(), nullptr) == status::ok);
  return h.download()[0];
}

template <class T>
void histogram_agrees(index_t tokens, index_t channels, index_t chunk = 1 << 20, index_t padding = 0,
                      index_t offset = 0) {
  CAPTURE(tokens, channels, chunk, padding, offset);
  const auto x = growing<T>(tokens, channels);
  const reference::histogram want = reference::count_magnitudes(x.view());
  const host::magnitude_histogram got(counted(device_matrix<T>(x, channels + padding, offset), chunk));
  uint64_t bad = 0;
  float most = 0.0f;
  for (const T value : x.data) {
    const auto size = std::fabs(static_cast<float>(value));
    bad += std::isfinite(size) ? 0 : 1;
    most = std::isfinite(size) ? std::max(most, size) : most;
  }
  REQUIRE(static_cast<double>(got.width()) == want.width);
  REQUIRE(got.counts() == want.counts);
  REQUIRE(got.non_finite() == bad);
  REQUIRE(static_cast<float>(got.filled()) * got.width() > most);
}

bool equal(value_range a, value_range b) {
  return a.seen == b.seen && std::memcmp(&a.low, &b.low, 4) == 0 && std::memcmp(&a.high, &b.high, 4) == 0;
}
bool equal(value_range a, reference::ends b) {
  return equal(a, b.low <= b.high ? value_range{b.low, b.high, true} : value_range{});
}

struct found_ranges {
  value_range whole;
  std::vector<value_range> channels;
};

template <class T>
found_ranges ranges(const device_matrix<T>& x, index_t chunk) {
  const matrix<const T> all = x;
  const device_array<value_range> whole(std::vector<value_range>(1));
  const device_array<value_range> channels(std::vector<value_range>(static_cast<size_t>(all.cols)));
  for (index_t row = 0; row < all.rows; row += chunk) {
    const matrix<const T> part = all.rows_at(row, min(chunk, all.rows - row));
    with_workspace([&](void* to, index_t& bytes) { return kernels::range_of(part, whole.data(), to, bytes, nullptr); });
    with_workspace(
        [&](void* to, index_t& bytes) { return kernels::channel_ranges(part, channels.data(), to, bytes, nullptr); });
  }
  return {whole.download()[0], channels.download()};
}

template <class T>
void ranges_agree(index_t tokens, index_t channels, index_t chunk = 1 << 20, index_t padding = 0, index_t offset = 0) {
  CAPTURE(tokens, channels, chunk, padding, offset);
  const auto x = growing<T>(tokens, channels);
  const found_ranges got = ranges(device_matrix<T>(x, channels + padding, offset), chunk);
  const auto want = reference::channel_ranges(x.view());
  for (size_t j = 0; j < want.size(); ++j) REQUIRE(equal(got.channels[j], want[j]));
  REQUIRE(equal(got.whole, reference::range_of(x.view())));
}

/// Histograms of nothing, of zeros, of one value, of all bins evenly, of a heavy tail, of two bins far apart, and of the largest float.
std::vector<histogram_counts> various() {
  std::vector<host::magnitude_histogram> all(7);
  const auto add = [&](size_t at, const std::vector<float>& x) {
    all[at].add(matrix<const float>(x.data(), static_cast<index_t>(x.size()), 1));
  };
  add(1, std::vector<float>(9, 0.0f));
  add(2, std::vector<float>(7, 3.7f));
  std::vector<float> even;
  for (int i = 0; i < 2048; ++i) even.push_back(static_cast<float>(i) + 0.5f);
  add(3, even);
  add(4, growing<float>(100, 100).data);
  even.assign(1000, 0.01f);
  even.push_back(60.0f);
  add(5, even);
  add(6, {std::numeric_limits<float>::max(), 1.0f});
  std::vector<histogram_counts> out;
  for (const host::magnitude_histogram& h : all) {
    histogram_counts as{};
    std::copy(h.counts().begin(), h.counts().end(), as.counts);
    as.above_least = static_cast<int32_t>(std::ilogb(h.width())) + 11 + 100;
    out.push_back(as);
  }
  return out;
}

template <class F>
std::vector<float> searched(index_t count, F call) {
  const device_array<float> to(count);
  with_workspace([&](void* workspace, index_t& bytes) { return call(to.data(), workspace, bytes); });
  return to.download();
}

/// What was found is an end of a bin and costs no more than the host's, to 2⁻⁴⁰ of it; on the executor it is the host's.
template <class Cost>
void as_good(float got, float host, const host::magnitude_histogram& h, Cost cost) {
  CAPTURE(got, host, h.width());
  REQUIRE(got == h.end(static_cast<index_t>(std::round(got / h.width()))));
  REQUIRE(got <= h.end(h.filled()));
#if defined(NIBBLE_SIMT)
  REQUIRE(got == host);  // one compiler, one logarithm
  static_cast<void>(cost);
#else
  REQUIRE(cost(got) <= cost(host) * (1 + 0x1p-40));
#endif
}

}  // namespace

TEST_CASE("the kernel's histogram has the reference's counts in every shape, chunk and type") {
  for (index_t channels = 1; channels <= 18; ++channels) histogram_agrees<bf16>(3, channels);
  for (const index_t tokens : {1, 7, 8, 9, 31, 33, 255, 256, 257, 520}) histogram_agrees<float>(tokens, 12);
  for (const index_t channels : {127, 128, 129, 256, 257}) histogram_agrees<fp16>(9, channels);
  for (const index_t chunk : {1, 5, 100, 256}) histogram_agrees<float>(300, 20, chunk);
  for (const index_t offset : {0, 1, 4})
    for (const index_t padding : {0, 1, 4}) histogram_agrees<float>(10, 32, 7, padding, offset);
  for (const index_t channels : {1, 5, 11, 15})
    histogram_agrees<bf16>(3, channels, 2, 16 - channels);  // a wide access in part
}

TEST_CASE("a histogram of a kernel that doubles its range by any power of two loses no count") {
  for (const int doublings : {0, 1, 5, 10, 11, 12, 60, 227}) {
    CAPTURE(doublings);
    owned<float> quiet(4, 512);
    const int least = -100;
    for (size_t i = 0; i < quiet.data.size(); ++i)
      quiet.data[i] = std::ldexp((static_cast<float>(i) + 0.5f) / 2048, least);
    owned<float> both(5, 512, 0.0f);
    std::copy(quiet.data.begin(), quiet.data.end(), both.data.begin());
    for (size_t i = quiet.data.size(); i < both.data.size(); ++i) both.data[i] = std::ldexp(-0.75f, least + doublings);
    const reference::histogram want = reference::count_magnitudes(matrix<const float>(both.view()));
    const host::magnitude_histogram got(counted(device_matrix<float>(both), 4));
    REQUIRE(static_cast<double>(got.width()) == want.width);
    REQUIRE(got.counts() == want.counts);
  }
}

TEST_CASE("the kernel's ranges are the reference's in every shape, chunk and type") {
  for (index_t channels = 1; channels <= 18; ++channels) ranges_agree<bf16>(3, channels);
  for (const index_t tokens : {1, 7, 8, 9, 31, 33, 255, 256, 257, 520}) ranges_agree<float>(tokens, 12);
  for (const index_t channels : {127, 128, 129, 256, 257}) ranges_agree<fp16>(9, channels);
  for (const index_t chunk : {1, 5, 256}) ranges_agree<float>(300, 20, chunk);
  for (const index_t offset : {0, 1, 4})
    for (const index_t padding : {0, 1, 4}) ranges_agree<float>(10, 32, 7, padding, offset);
  // One sign each, and nothing finite at all, by single accesses and by wide ones in part.
  for (const float value : {2.5f, -2.5f, nothing, infinite, -infinite, -0.0f})
    for (const index_t stride : {5, 8}) {
      const owned<float> x(20, 5, value);
      const found_ranges got = ranges(device_matrix<float>(x, stride), 20);
      const auto want = reference::channel_ranges(matrix<const float>(x.data.data(), 20, 5));
      REQUIRE(equal(got.whole, want[0]));
      for (const value_range& r : got.channels) REQUIRE(equal(r, want[0]));
    }
}

TEST_CASE("ranges and counts of kernels are the same bytes under every schedule and architecture") {
  const device_matrix<float> x(growing<float>(530, 70));
  const histogram_counts first = counted(x, 300);
  const found_ranges range = ranges(x, 300);
  const auto again = [&] {
    const histogram_counts next = counted(x, 300);
    REQUIRE(std::memcmp(&next, &first, sizeof(first)) == 0);
    const found_ranges other = ranges(x, 300);
    REQUIRE(equal(other.whole, range.whole));
    for (size_t j = 0; j < range.channels.size(); ++j) REQUIRE(equal(other.channels[j], range.channels[j]));
  };
  under_schedules(4, again);
  on_architectures(again);
}

TEST_CASE("the kernels' thresholds are the host's") {
  const std::vector<histogram_counts> all = various();
  const device_array<histogram_counts> h(all);
  const auto count = static_cast<index_t>(all.size());
  for (const double share : {0.0, 0.25, 0.5, 0.9, 0.999, 1.0}) {
    CAPTURE(share);
    const device_array<float> to(count);
    REQUIRE(kernels::percentile_thresholds(h.data(), count, share, to.data(), nullptr) == status::ok);
    const auto got = to.download();
    for (size_t i = 0; i < all.size(); ++i)
      REQUIRE(got[i] == host::percentile_threshold(host::magnitude_histogram(all[i]), share));
  }
  const auto squares = [&](auto levels) {
    const auto got = searched(count, [&](float* to, void* workspace, index_t& bytes) {
      return kernels::l2_thresholds(h.data(), count, levels, to, workspace, bytes, nullptr);
    });
    for (size_t i = 0; i < all.size(); ++i) {
      const host::magnitude_histogram one(all[i]);
      as_good(got[i], host::l2_threshold(one, levels), one, [&](float threshold) {
        return host::expected_squared_error(one, static_cast<double>(threshold), levels);
      });
    }
  };
  squares(127);
  squares(7);
  squares(float_format::e4m3);
  for (const int32_t levels : {1, 128, 1000, 2048}) {
    CAPTURE(levels);
    const auto got = searched(count, [&](float* to, void* workspace, index_t& bytes) {
      return kernels::kl_thresholds(h.data(), count, levels, to, workspace, bytes, nullptr);
    });
    for (size_t i = 0; i < all.size(); ++i) {
      const host::magnitude_histogram one(all[i]);
      const reference::histogram same{static_cast<double>(one.width()), one.counts()};
      as_good(got[i], host::kl_threshold(one, levels), one, [&](float threshold) {
        return reference::kl_of(same, static_cast<std::size_t>(std::round(threshold / one.width())), levels);
      });
    }
  }
}

TEST_CASE("of equal costs the kernel takes the threshold of fewest bins, and all of the range where none is finite") {
  using policy = tuned<tuning::histogram, 80>;
  const device_array<histogram_counts> h(std::vector<histogram_counts>{various()[3]});
  const float width = host::magnitude_histogram(h.download()[0]).width();
  const auto least_of = [&](const std::vector<std::pair<size_t, double>>& some, double others) {
    owned<double> costs(1, histogram_bins, others);
    for (const auto& [bin, cost] : some) costs.data[bin] = cost;
    const device_matrix<double> there(costs);
    const device_array<float> to(1);
    REQUIRE(launch(kernels::detail::least_cost_kernel<policy>, 1, policy::value.joining, 0, nullptr,
                   static_cast<const histogram_counts*>(h.data()), there.const_view(), to.data()) == status::ok);
    return to.download()[0];
  };
  CHECK(least_of({}, 1.0) == width);
  CHECK(least_of({{700, 0.5}, {300, 0.5}, {1023, 0.5}, {259, 0.5}}, 1.0) == 260 * width);
  CHECK(least_of({{700, -0.5}, {300, 0.5}}, std::numeric_limits<double>::infinity()) == 701 * width);
  CHECK(least_of({}, std::numeric_limits<double>::infinity()) == 2048 * width);
}

TEST_CASE("ranges, histograms and thresholds refuse what they cannot do, and say why") {
  const device_matrix<float> x(owned<float>(4, 8, 1.0f));
  const device_array<histogram_counts> h(std::vector<histogram_counts>(2));
  const device_array<value_range> r(std::vector<value_range>(8));
  const device_array<float> to(2);
  const matrix<const float> all = x;
  const auto askew = reinterpret_cast<const float*>(reinterpret_cast<const char*>(all.data) + 2);
  const auto observes = [&](matrix<const float> of) {
    index_t bytes = 0;
    const status got = kernels::range_of(of, r.data(), nullptr, bytes, nullptr);
    REQUIRE(kernels::channel_ranges(of, r.data(), nullptr, bytes, nullptr) == got);
    REQUIRE(kernels::add_to_histogram(of, h.data(), nullptr) == got);
    return got;
  };
  CHECK(observes(all) == status::ok);
  CHECK(observes({nullptr, 0, 8}) == status::ok);
  CHECK(observes({nullptr, 4, 0}) == status::ok);
  CHECK(observes({all.data, -1, 8}) == status::bad_shape);
  CHECK(observes({all.data, 4, 8, 7}) == status::bad_shape);
  CHECK(observes({nullptr, 4, 8}) == status::bad_shape);
  CHECK(observes({askew, 4, 7}) == status::misaligned);
  CHECK(observes({all.data, index_t{1} << 60, 1}) == status::too_large);
  index_t bytes = 0;
  CHECK(kernels::range_of(all, nullptr, nullptr, bytes, nullptr) == status::bad_shape);
  CHECK(kernels::channel_ranges(all, nullptr, nullptr, bytes, nullptr) == status::bad_shape);
  CHECK(kernels::add_to_histogram(all, nullptr, nullptr) == status::bad_shape);
  const auto off = [](auto* p) { return reinterpret_cast<decltype(p)>(reinterpret_cast<char*>(p) + 2); };
  CHECK(kernels::range_of(all, off(r.data()), nullptr, bytes, nullptr) == status::misaligned);
  CHECK(kernels::add_to_histogram(all, off(h.data()), nullptr) == status::misaligned);
  refuses_bad_workspaces(
      [&](void* workspace, index_t& size) { return kernels::range_of(all, r.data(), workspace, size, nullptr); });
  refuses_bad_workspaces(
      [&](void* workspace, index_t& size) { return kernels::channel_ranges(all, r.data(), workspace, size, nullptr); });

  const auto searches = [&](const histogram_counts* of, index_t count, float* out) {
    const status got = kernels::l2_thresholds(of, count, 127, out, nullptr, bytes, nullptr);
    REQUIRE(kernels::kl_thresholds(of, count, 128, out, nullptr, bytes, nullptr) == got);
    return got;
  };
  CHECK(searches(h.data(), 2, to.data()) == status::ok);
  CHECK(searches(nullptr, 0, nullptr) == status::ok);
  CHECK(searches(h.data(), -1, to.data()) == status::bad_shape);
  CHECK(searches(nullptr, 2, to.data()) == status::bad_shape);
  CHECK(searches(h.data(), 2, nullptr) == status::bad_shape);
  CHECK(searches(off(h.data()), 2, to.data()) == status::misaligned);
  CHECK(searches(h.data(), 2, off(to.data())) == status::misaligned);
  CHECK(searches(h.data(), index_t{1} << 40, to.data()) == status::too_large);
  CHECK(kernels::l2_thresholds(h.data(), 2, 0, to.data(), nullptr, bytes, nullptr) == status::bad_shape);
  CHECK(kernels::kl_thresholds(h.data(), 2, 0, to.data(), nullptr, bytes, nullptr) == status::bad_shape);
  CHECK(kernels::kl_thresholds(h.data(), 2, 2049, to.data(), nullptr, bytes, nullptr) == status::bad_shape);
  for (const double share : {-0.1, 1.1, std::nan("")})
    CHECK(kernels::percentile_thresholds(h.data(), 2, share, to.data(), nullptr) == status::bad_shape);
  refuses_bad_workspaces([&](void* workspace, index_t& size) {
    return kernels::l2_thresholds(h.data(), 2, float_format::e4m3, to.data(), workspace, size, nullptr);
  });
  refuses_bad_workspaces([&](void* workspace, index_t& size) {
    return kernels::kl_thresholds(h.data(), 2, 128, to.data(), workspace, size, nullptr);
  });
#if defined(NIBBLE_SIMT)
  REQUIRE(launches_of([&] { return kernels::add_to_histogram(all, h.data(), nullptr); }) == 3);
  const auto twice = [&](auto call) {
    REQUIRE(call(nullptr, bytes) == status::ok);
    const device_array<unsigned char> workspace(bytes);
    REQUIRE(launches_of([&] { return call(workspace.data(), bytes); }) == 2);
  };
  twice([&](void* workspace, index_t& size) { return kernels::range_of(all, r.data(), workspace, size, nullptr); });
  twice(
      [&](void* workspace, index_t& size) { return kernels::channel_ranges(all, r.data(), workspace, size, nullptr); });
  twice([&](void* workspace, index_t& size) {
    return kernels::kl_thresholds(h.data(), 2, 128, to.data(), workspace, size, nullptr);
  });
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(observes(all) == status::unsupported_device);
    CHECK(searches(h.data(), 2, to.data()) == status::unsupported_device);
    CHECK(kernels::percentile_thresholds(h.data(), 2, 0.5, to.data(), nullptr) == status::unsupported_device);
  }
#endif
}

}  // namespace histogram_tests

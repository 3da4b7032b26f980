// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/histogram.hpp"

#include <catch2/catch.hpp>
#include <random>

#include "nibble/reference/histogram.hpp"
#include "support/golden.hpp"

namespace histogram_tests {

using namespace nibble;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity(), nothing = std::numeric_limits<float>::quiet_NaN();

template <class T = float>
std::vector<T> heavy_tailed(index_t count, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values;
  for (index_t i = 0; i < count; ++i) {
    const float x = normal(random);
    values.push_back(T(i % 500 == 7 ? 30 * x : x * x * x));
  }
  return values;
}

host::magnitude_histogram counted(const std::vector<float>& x) {
  host::magnitude_histogram h;
  h.add(matrix<const float>(x.data(), static_cast<index_t>(x.size()), 1));
  return h;
}

reference::histogram as_reference(const host::magnitude_histogram& h) {
  return {static_cast<double>(h.width()), h.counts()};
}

}  // namespace

TEST_CASE("a histogram counts what the reference counts, in chunks of any size and order, of every type") {
  const auto check = [](const auto& values) {
    using T = std::decay_t<decltype(values[0])>;
    const auto rows = static_cast<index_t>(values.size()) / 7;
    const matrix<const T> x(values.data(), rows, 7);
    const reference::histogram want = reference::count_magnitudes(x);
    for (const index_t step : {rows, index_t(1), index_t(64)}) {
      host::magnitude_histogram up, down;
      for (index_t row = 0; row < rows; row += step) up.add(x.rows_at(row, min(step, rows - row)));
      for (index_t end = rows; end > 0; end -= min(step, end)) {
        host::magnitude_histogram chunk;
        chunk.add(x.rows_at(end - min(step, end), min(step, end)));
        down.add(chunk);
      }
      CHECK(static_cast<double>(up.width()) == want.width);
      CHECK(up.counts() == want.counts);
      CHECK(down.counts() == want.counts);
      CHECK(down.width() == up.width());
    }
  };
  auto floats = heavy_tailed(7 * 300);
  floats[3] = 0, floats[5] = -0.0f, floats[8] = 1e-30f, floats[9] = 4.0f, floats[10] = -256.0f, floats[11] = 1e-42f;
  check(floats);
  check(heavy_tailed<fp16>(7 * 40));
  check(heavy_tailed<bf16>(7 * 40));
  check(std::vector<float>(7, 0.0f));
  check(std::vector<float>(7, std::numeric_limits<float>::max()));
  check(std::vector<float>(7, 1.0f));
}

TEST_CASE("NaN and infinity are told and not counted, and a histogram of nothing has thresholds of 0") {
  const host::magnitude_histogram h = counted({nothing, infinite, -infinite, 2.0f, -3.0f});
  CHECK(h.non_finite() == 3);
  CHECK(h.width() == 4.0f / 2048);
  CHECK(h.counts()[1024] == 1);
  CHECK(h.counts()[1536] == 1);
  for (const host::magnitude_histogram& empty : {counted({}), counted({nothing})}) {
    CHECK(host::percentile_threshold(empty, 0.99) == 0.0f);
    CHECK(host::l2_threshold(empty) == 0.0f);
    CHECK(host::kl_threshold(empty) == 0.0f);
  }
}

TEST_CASE("the exponent is the least whose power of two is above, and bins hold what their ends say") {
  for (const float amax : {1e-30f, 0.75f, 1.0f, 1.5f, 2.0f, std::nextafter(2.0f, 0.0f), 3e38f}) {
    const int32_t e = histogram_exponent(amax);
    CAPTURE(amax, e);
    CHECK(static_cast<double>(amax) < std::ldexp(1.0, e));
    CHECK(static_cast<double>(amax) >= std::ldexp(1.0, e - 1));
    CHECK(histogram_bin(amax, e) >= histogram_bins / 2);
    CHECK(histogram_bin(-amax, e) < histogram_bins);
    for (const int32_t bin : {0, 1, 1000, histogram_bins - 1}) {
      const float low = static_cast<float>(bin) * histogram_width(e);
      CHECK(histogram_bin(low, e) == bin);
      CHECK((bin == 0 || histogram_bin(std::nextafter(low, 0.0f), e) == bin - 1));
    }
  }
}

TEST_CASE("ranges of tensors and channels, and their moving averages, are torch's observers'") {
  const auto torch = ::golden("observe/torch.json");
  value_range whole;
  std::vector<value_range> channels(5);
  std::vector<value_range> averages(torch["moving"].size());
  for (size_t at = 0; at < torch["batches"].size(); ++at) {
    std::vector<float> x;
    for (const auto& row : torch["batches"][at])
      for (const auto& value : row) x.push_back(value.get<float>());
    const matrix<const float> batch(x.data(), 6, 5);
    whole = joined(whole, host::range_of(batch));
    host::channel_ranges(batch, channels.data());
    for (size_t i = 0; i < averages.size(); ++i) {
      const auto& moving = torch["moving"][i];
      averages[i] = moved(averages[i], host::range_of(batch), moving["constant"].get<float>());
      CHECK(averages[i].low == Approx(moving["ranges"][at][0].get<double>()).epsilon(1e-6));
      CHECK(averages[i].high == Approx(moving["ranges"][at][1].get<double>()).epsilon(1e-6));
    }
  }
  CHECK(whole.low == torch["minmax"][0].get<float>());
  CHECK(whole.high == torch["minmax"][1].get<float>());
  for (size_t j = 0; j < channels.size(); ++j) {
    CHECK(channels[j].low == torch["channels"][0][j].get<float>());
    CHECK(channels[j].high == torch["channels"][1][j].get<float>());
  }
  const float odd[] = {nothing, 2.0f, -infinite, -1.0f};
  const value_range seen = host::range_of(matrix<const float>(odd, 2, 2));
  CHECK((seen.low == -1.0f && seen.high == 2.0f && seen.seen));
  CHECK_FALSE(host::range_of(matrix<const float>(odd, 1, 1)).seen);
  CHECK(moved(seen, value_range{}, 0.5f).low == -1.0f);
}

TEST_CASE("ranges and counts are the reference's for every remainder and type, and no sign of 0 depends on an order") {
  const auto check = [](auto values, index_t cols) {
    using T = std::decay_t<decltype(values[0])>;
    const float odd[] = {nothing, infinite, -infinite, -0.0f, 0.0f, 1e-45f};
    for (size_t i = 5; i < values.size(); i += 17) values[i] = T(odd[i % 6]);
    const matrix<const T> x(values.data(), static_cast<index_t>(values.size()) / cols, cols);
    const std::vector<reference::ends> want = reference::channel_ranges(x);
    std::vector<value_range> got(want.size());
    host::channel_ranges(x, got.data());
    const auto same = [](value_range ours, reference::ends theirs) {
      CHECK(ours.seen == (theirs.low <= theirs.high));
      if (ours.seen) CHECK((ours.low == theirs.low && ours.high == theirs.high));
    };
    for (size_t j = 0; j < want.size(); ++j) same(got[j], want[j]);
    same(host::range_of(x), reference::range_of(x));
    host::magnitude_histogram h;
    h.add(x);
    CHECK(h.counts() == reference::count_magnitudes(x).counts);
    uint64_t bad = 0;
    for (const T value : values) bad += std::isfinite(static_cast<float>(value)) ? 0 : 1;
    CHECK(h.non_finite() == bad);
  };
  for (const index_t cols : {1, 2, 127, 128, 129, 300}) {
    check(heavy_tailed(33 * cols), cols);
    check(heavy_tailed<fp16>(9 * cols), cols);
    check(heavy_tailed<bf16>(1 * cols), cols);
  }
  // Tiles of one sign of 0 each, joined in whatever order they end: without a rule low would be either.
  std::vector<float> zeros(size_t(1) << 18);
  for (size_t i = 0; i < zeros.size(); ++i) zeros[i] = i >> 15 & 1 ? 0.0f : -0.0f;
  const value_range both = host::range_of(matrix<const float>(zeros.data(), 1 << 18, 1));
  CHECK((!std::signbit(both.low) && !std::signbit(both.high) && both.seen));
}

TEST_CASE("ranges over batches are llm-compressor's static and moving ones") {
  const auto file = ::golden("observe/llmcompressor.json");
  value_range whole;
  std::vector<value_range> averages(file["moving"].size());
  double largest = 0;
  for (size_t at = 0; at < file["batches"].size(); ++at) {
    std::vector<float> x;
    for (const auto& row : file["batches"][at])
      for (const auto& value : row) x.push_back(value.get<float>());
    const value_range batch = host::range_of(matrix<const float>(x.data(), 6, 5));
    whole = joined(whole, batch);
    CHECK(whole.low == file["static"][at][0].get<float>());
    CHECK(whole.high == file["static"][at][1].get<float>());
    largest =
        std::max({largest, std::fabs(static_cast<double>(batch.low)), std::fabs(static_cast<double>(batch.high))});
    for (size_t i = 0; i < averages.size(); ++i) {
      const auto& moving = file["moving"][i];
      averages[i] = moved(averages[i], batch, moving["constant"].get<float>());
      // Theirs may fuse the product into the sum, or go from the other end: three roundings a batch, of 2·largest at most.
      const double bound = static_cast<double>(at) * 3 * 2 * largest * 0x1p-24;
      CHECK(std::fabs(static_cast<double>(averages[i].low) - moving["ranges"][at][0].get<double>()) <= bound);
      CHECK(std::fabs(static_cast<double>(averages[i].high) - moving["ranges"][at][1].get<double>()) <= bound);
    }
  }
}

TEST_CASE("a percentile leaves its share below, and the bin before does not") {
  const auto x = heavy_tailed(20000);
  const host::magnitude_histogram h = counted(x);
  for (const double share : {0.0, 0.5, 0.9, 0.999, 0.9999, 1.0}) {
    CAPTURE(share);
    const auto threshold = static_cast<double>(host::percentile_threshold(h, share));
    CHECK(threshold == reference::percentile_threshold(as_reference(h), share));
    index_t below = 0, before = 0;
    for (const float value : x) {
      const double size = std::fabs(static_cast<double>(value));
      below += size < threshold ? 1 : 0;
      before += size < threshold - static_cast<double>(h.width()) ? 1 : 0;
    }
    CHECK(static_cast<double>(below) >= share * 20000);
    CHECK((share == 0.0 || static_cast<double>(before) < share * 20000));
  }
}

TEST_CASE(
    "the expected squared error is the one of activations spread evenly, and the threshold of least error is found") {
  const auto x = heavy_tailed(4000);
  const host::magnitude_histogram h = counted(x);
  const reference::histogram same = as_reference(h);
  double least = std::numeric_limits<double>::infinity();
  const auto width = static_cast<double>(h.width());
  for (index_t kept = 1; kept <= h.filled(); kept += 13) {
    const double expected = host::expected_squared_error(h, static_cast<double>(kept) * width, 127);
    least = std::min(least, expected);
    if (kept % 5 != 1) continue;
    // Cut into 256 pieces, a bin's mean of squares is off by less than the pieces' own variance times its weight.
    CHECK(expected ==
          Approx(reference::squared_error(same, static_cast<double>(kept) * width, 127, 256)).epsilon(2e-3));
  }
  const auto found = static_cast<double>(host::l2_threshold(h));
  CHECK(host::expected_squared_error(h, found, 127) <= least);
  CHECK(found < static_cast<double>(h.filled()) * width);
  // What is expected is what happens: rounded one by one, no threshold of the grid does better than by a hundredth.
  const auto true_error = [&](double threshold) {
    double sum = 0;
    for (const float value : x) {
      const double size = std::fabs(static_cast<double>(value)), step = threshold / 127;
      const double off = size - std::min(std::nearbyint(size / step), 127.0) * step;
      sum += off * off;
    }
    return sum;
  };
  for (index_t kept = 1; kept <= h.filled(); kept += 13)
    CHECK(true_error(found) <= 1.01 * true_error(static_cast<double>(kept) * width));
}

TEST_CASE(
    "a cost over a float format's numbers is the integral of the squared error, and its threshold the least of all") {
  for (const float_format format : {float_format::e4m3, float_format::e5m2, float_format::e2m1}) {
    std::vector<double> levels;
    for (int code = 0; code < (format == float_format::e2m1 ? 8 : 127); ++code)
      if (const float value = float_value(static_cast<uint8_t>(code), format); is_finite(value))
        levels.push_back(static_cast<double>(value));
    // From level to level: gaps of g cost g³/12, half a gap g³/24, and what saturates the cube of the excess over 3.
    double sum = 0;
    for (size_t i = 0; i + 1 < levels.size(); ++i) {
      const double gap = levels[i + 1] - levels[i], scale = 0.37;
      const double cube = scale * scale * scale;
      CHECK(rounding_cost(levels[i] * scale, scale, format) == Approx(sum * cube).epsilon(1e-9));
      CHECK(rounding_cost((levels[i] + gap / 2) * scale, scale, format) ==
            Approx((sum + gap * gap * gap / 24) * cube).epsilon(1e-9));
      CHECK(rounding_cost((levels[i] + gap * 0.75) * scale, scale, format) ==
            Approx((sum + gap * gap * gap * (1.0 / 12 - 1.0 / 192)) * cube).epsilon(1e-9));
      sum += gap * gap * gap / 12;
    }
    CHECK(rounding_cost(2 * levels.back(), 1.0, format) == Approx(sum + std::pow(levels.back(), 3) / 3).epsilon(1e-9));

    const host::magnitude_histogram h = counted(heavy_tailed(4000));
    const auto width = static_cast<double>(h.width());
    const auto found = static_cast<double>(host::l2_threshold(h, format));
    for (index_t kept = 1; kept <= h.filled(); kept += 37) {
      const double threshold = static_cast<double>(kept) * width;
      const double expected = host::expected_squared_error(h, threshold, format);
      // Pieces of w / 256 have a variance of their own, against gaps that may be less than w near 0.
      CHECK(expected == Approx(reference::squared_error(as_reference(h), threshold, levels, 256)).epsilon(5e-3));
      CHECK(host::expected_squared_error(h, found, format) <= expected);
    }
  }
}

TEST_CASE("thresholds of the largest floats are floats") {
  constexpr float most = std::numeric_limits<float>::max();
  const host::magnitude_histogram h = counted({most, -most, 1.0f});
  CHECK(h.filled() == histogram_bins);
  CHECK(host::percentile_threshold(h, 1.0) == most);
  CHECK(host::kl_threshold(h) == most);
  CHECK(std::isfinite(host::l2_threshold(h)));
  CHECK(std::isfinite(host::l2_threshold(h, float_format::e4m3)));
}

TEST_CASE("any cost finds its threshold, the first of equals") {
  const host::magnitude_histogram h = counted(heavy_tailed(4000));
  const auto width = static_cast<double>(h.width());
  CHECK(static_cast<double>(host::least_cost_threshold(h, [&](double t) { return std::fabs(t - 3 * width); })) ==
        3 * width);
  CHECK(host::least_cost_threshold(h, [](double) { return 1.0; }) == h.width());
  CHECK(host::least_cost_threshold(h, [](double t) { return -t; }) == static_cast<float>(h.filled()) * h.width());
  CHECK(host::least_cost_threshold(counted({}), [](double t) { return t; }) == 0.0f);
}

TEST_CASE("the threshold of least divergence is the reference's, below the loudest activations") {
  const auto check = [](const std::vector<float>& x, bool saturates) {
    const host::magnitude_histogram h = counted(x);
    const reference::histogram same = as_reference(h);
    for (const int levels : {16, 128}) {
      double least = std::numeric_limits<double>::infinity();
      for (index_t kept = levels; kept <= h.filled(); ++kept)
        least = std::min(least, reference::kl_of(same, static_cast<std::size_t>(kept), levels));
      const float threshold = host::kl_threshold(h, levels);
      const auto kept = static_cast<std::size_t>(threshold / h.width() + 0.5f);
      CHECK(reference::kl_of(same, kept, levels) == Approx(least).margin(1e-12));
      CHECK((static_cast<index_t>(kept) < h.filled()) == saturates);
    }
  };
  check(heavy_tailed(30000, 3), true);
  std::vector<float> even;
  for (int i = 0; i < 2048; ++i) even.push_back(static_cast<float>(i) + 0.5f);
  check(even, false);
  // Fewer bins than levels: nothing is to be gained.
  const host::magnitude_histogram constant = counted(std::vector<float>(50, 0.0f));
  CHECK(host::kl_threshold(constant) == constant.width());
  const host::magnitude_histogram one = counted({1.0f, 1.0f});
  CHECK(host::kl_threshold(one) == 1025 * one.width());
  CHECK(host::l2_threshold(one) <= 1025 * one.width());
}

TEST_CASE("observing gives the same with one thread as with many") {
  const auto x = heavy_tailed(200000);
  const matrix<const float> all(x.data(), 4000, 50);
  const auto look = [&] {
    host::magnitude_histogram h;
    h.add(all);
    return std::tuple(h.counts(), host::l2_threshold(h), host::kl_threshold(h), host::range_of(all).low);
  };
  const int before = host::pool().size();
  host::set_threads(1);
  const auto alone = look();
  host::set_threads(5);
  const auto together = look();
  host::set_threads(before);
  CHECK(alone == together);
}

}  // namespace histogram_tests

// SPDX-License-Identifier: Apache-2.0
#include "nibble/smooth.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <thread>
#include <utility>

#include "nibble/awq.hpp"
#include "nibble/host/smooth.hpp"
#include "nibble/quantize.hpp"
#include "nibble/reference/fit.hpp"
#include "nibble/reference/fp8.hpp"
#include "nibble/reference/observe.hpp"
#include "nibble/reference/quantize.hpp"
#include "nibble/reference/smooth.hpp"
#include "support/activations.hpp"
#include "support/golden.hpp"

namespace smooth_tests {

using namespace nibble;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float most = std::numeric_limits<float>::max();
constexpr float floor_of_scales = 1e-5f;
using w8 = scheme<8, true>;

/// How far smooth_scale may be from the same in double, relative to it: 1 − α is off by 2^-25 at most, which a power of
/// w passes on as |ln w|·2^-25; two powers are off by 2 units of roundoff each, a quotient and the floors by 1 each.
double scale_bound(float weight) {
  return std::fabs(std::log(std::max(static_cast<double>(weight), 1e-5))) * 0x1p-25 + 6 * roundoff;
}

owned<float> normal(index_t rows, index_t cols, unsigned seed, float deviation) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw(0.0f, deviation);
  owned<float> out(rows, cols);
  for (float& value : out.data) value = draw(engine);
  return out;
}

owned<float> matrix_of(const nlohmann::json& rows) {
  owned<float> out(static_cast<index_t>(rows.size()), static_cast<index_t>(rows[0].size()));
  size_t i = 0;
  for (const auto& row : rows)
    for (const auto& value : row) out.data[i++] = value.get<float>();
  return out;
}

std::vector<float> column_maxima(const std::vector<owned<float>>& all) {
  std::vector<float> maxima(static_cast<size_t>(all.front().cols), 0.0f);
  for (const auto& one : all) reference::absolute_maximum(one.view(), maxima.data());
  return maxima;
}

/// s (k) of linears that read x, by the mathematics.
std::vector<float> scales_of(const owned<float>& x, const std::vector<owned<float>>& linears, float alpha) {
  std::vector<float> s = column_maxima({x});
  const std::vector<float> weight = column_maxima(linears);
  for (size_t j = 0; j < s.size(); ++j) s[j] = smooth_scale(s[j], weight[j], alpha);
  return s;
}

/// x with every column times factor (k).
owned<float> columns_times(owned<float> x, const std::vector<double>& factor) {
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t col = 0; col < x.cols; ++col)
      x.view()(row, col) =
          static_cast<float>(static_cast<double>(x.view()(row, col)) * factor[static_cast<size_t>(col)]);
  return x;
}

/// What is folded: x/s and w·s.
std::pair<owned<float>, owned<float>> smoothed(const owned<float>& x, const owned<float>& w,
                                               const std::vector<float>& s) {
  std::vector<double> up(s.begin(), s.end()), down = up;
  for (double& value : down) value = 1 / value;
  return {columns_times(x, down), columns_times(w, up)};
}

/// x·Wᵀ in double.
owned<double> product(const owned<float>& x, const owned<float>& w) {
  owned<double> y(x.rows, w.rows, 0.0);
  for (index_t t = 0; t < x.rows; ++t)
    for (index_t i = 0; i < w.rows; ++i)
      for (index_t j = 0; j < x.cols; ++j)
        y.view()(t, i) += static_cast<double>(x.view()(t, j)) * static_cast<double>(w.view()(i, j));
  return y;
}

/// A linear in int8 by the reference: codes of both sides, their scales, their product.
struct int8_linear {
  owned<float> scales, y;
  owned<params> p;
  owned<uint8_t> q, codes;

  /// @param largest  of all tokens, for one scale; below 0 for one of each token.
  int8_linear(const owned<float>& x, const owned<float>& w, float largest = -1.0f)
      : scales(largest < 0 ? x.rows : 1, 1), y(x.rows, w.rows), p(w.rows, 1), q(x.rows, x.cols), codes(w.rows, w.cols) {
    reference::fit(w.view(), p.view(), per_channel, w8{}, minmax{});
    reference::quantize(w.view(), std::as_const(p).view(), codes.view(), per_channel, w8{});
    if (largest < 0) {
      reference::quantize_tokens(x.view(), scales.view(), q.view());
    } else {
      scales.data[0] = activation_scale(largest);
      reference::quantize_activations(x.view(), std::as_const(scales).view(), q.view());
    }
    reference::int8_matmul(std::as_const(q).view(), std::as_const(scales).view(), std::as_const(codes).view(),
                           std::as_const(p).view(), y.view());
  }
  float scale_of(index_t token) const { return scales.data[scales.rows == 1 ? 0 : static_cast<size_t>(token)]; }
};

/// Every y within the error that rounding to int8 may make. An input is within e_x = scale_t·(1/2 + 2^-17): x/scale, at
/// most 127·(1 + 2^-23), is rounded once (127·2^-24 < 2^-17) and then to an integer that no clamp moves. A weight is
/// within e_w = scale_i·(1/2 + 2^-16): the largest, 127.5 steps of amax/127.5, is clamped to 127, half a step from it.
///     |y − x·wᵀ| <= Σ (|x|·e_w + |w|·e_x + e_x·e_w),  and 2 roundings of y to float, from double and of that.
void within_int8(const int8_linear& made, const owned<float>& x, const owned<float>& w) {
  const auto exact = product(x, w);
  for (index_t t = 0; t < x.rows; ++t)
    for (index_t i = 0; i < w.rows; ++i) {
      const double e_x = static_cast<double>(made.scale_of(t)) * (0.5 + 0x1p-17);
      const double e_w = static_cast<double>(made.p.view()(i, 0).scale) * (0.5 + 0x1p-16);
      const double y = static_cast<double>(made.y.view()(t, i));
      double bound = 2 * roundoff * std::fabs(y);
      for (index_t j = 0; j < x.cols; ++j)
        bound += std::fabs(static_cast<double>(x.view()(t, j))) * e_w +
                 std::fabs(static_cast<double>(w.view()(i, j))) * e_x + e_x * e_w;
      INFO("token " << t << ", output " << i);
      REQUIRE(std::fabs(y - exact.view()(t, i)) <= bound);
    }
}

double squared_error(const owned<float>& y, const owned<double>& exact) {
  double sum = 0;
  for (size_t i = 0; i < y.data.size(); ++i) sum += std::pow(static_cast<double>(y.data[i]) - exact.data[i], 2);
  return sum;
}

/// Activations some of whose channels are a hundred times as loud as the others, as those of language models are.
owned<float> loud_activations(index_t tokens, index_t channels) {
  auto x = activations(tokens, channels);
  for (index_t row = 0; row < tokens; ++row)
    for (index_t col = 3; col < channels; col += 29) x.view()(row, col) *= 100.0f;
  return x;
}

}  // namespace

TEST_CASE("a smoothing scale is the published one: 0 looks at weights alone, 1 at activations alone, between is both") {
  for (const float activation : {0.0f, 1e-30f, 1e-5f, 0.03f, 1.0f, 77.0f, 6e4f, 1e30f, most})
    for (const float weight : {0.0f, 1e-45f, 1e-6f, 1e-5f, 0.02f, 1.0f, 3.0f, 1e30f, most}) {
      REQUIRE(smooth_scale(activation, weight, 1.0f) == std::max(activation, floor_of_scales));
      REQUIRE(smooth_scale(activation, weight, 0.0f) ==
              std::max(1.0f / std::max(weight, floor_of_scales), floor_of_scales));
      for (const float alpha : {0.0f, 0.1f, 0.3f, 0.5f, 0.8f, 0.85f, 1.0f}) {
        const owned<float> w(1, 1, weight);
        const double exact =
            reference::smooth_scales<float>({activation}, {w.view()}, static_cast<double>(alpha)).front();
        INFO(activation << ", " << weight << ", alpha " << alpha);
        REQUIRE(std::fabs(static_cast<double>(smooth_scale(activation, weight, alpha)) - exact) <=
                exact * scale_bound(weight));
      }
    }
}

TEST_CASE("a smoothing scale is finite and at least its floor whatever comes in, and what is not finite counts as 0") {
  const float odd[] = {0.0f, -0.0f, -3.0f, 1e-45f, -1e-40f, 1.0f, most, -most, inf, -inf, not_a_number, -not_a_number};
  for (const float activation : odd)
    for (const float weight : odd)
      for (const float alpha : {0.0f, 0x1p-149f, 0.5f, 1.0f - 0x1p-24f, 1.0f, -40.0f, 40.0f, inf, -inf, not_a_number}) {
        const float s = smooth_scale(activation, weight, alpha);
        INFO(activation << ", " << weight << ", alpha " << alpha);
        REQUIRE(std::isfinite(s));
        REQUIRE(s >= floor_of_scales);
        if (!std::isfinite(activation)) REQUIRE(s == smooth_scale(0.0f, weight, alpha));
        if (!std::isfinite(weight)) REQUIRE(s == smooth_scale(activation, 0.0f, alpha));
        if (!(alpha >= 0.0f && alpha <= 1.0f) || activation < 0.0f) continue;
        const owned<float> w(1, 1, weight);
        const double exact =
            reference::smooth_scales<float>({activation}, {w.view()}, static_cast<double>(alpha)).front();
        REQUIRE(std::isfinite(exact));
        REQUIRE(std::fabs(static_cast<double>(s) - exact) <=
                exact * scale_bound(std::isfinite(weight) ? std::fabs(weight) : 0.0f));
      }
}

TEST_CASE("linears that read one input share the scales of their largest weights") {
  auto x = activations(40, 70);
  std::vector<owned<float>> linears{normal(9, 70, 5, 0.02f), normal(3, 70, 6, 0.3f), normal(1, 70, 7, 0.1f)};
  x.view()(0, 2) = inf;
  linears[1].view()(2, 4) = not_a_number;
  linears[2].view()(0, 4) = -inf;
  owned<float> stacked(13, 70);
  index_t row = 0;
  std::vector<matrix<const float>> views;
  for (const auto& w : linears) {
    std::copy(w.data.begin(), w.data.end(), stacked.view().row(row));
    row += w.rows;
    views.push_back(w.view());
  }
  const auto maxima = column_maxima({x}), largest = column_maxima({stacked});
  for (const float alpha : {0.0f, 0.5f, 0.8f, 1.0f}) {
    const auto exact = reference::smooth_scales(maxima, views, static_cast<double>(alpha));
    REQUIRE(scales_of(x, linears, alpha) == scales_of(x, {stacked}, alpha));
    const auto s = scales_of(x, linears, alpha);
    for (size_t j = 0; j < s.size(); ++j)
      REQUIRE(std::fabs(static_cast<double>(s[j]) - exact[j]) <= exact[j] * scale_bound(largest[j]));
  }
  REQUIRE(scales_of(x, linears, 0.0f) != scales_of(x, {linears[0]}, 0.0f));
  REQUIRE(scales_of(x, linears, 0.5f)[11] == floor_of_scales);  // a dead channel
}

TEST_CASE("scales and folded weights are llm-compressor's up to the factor of its ranges") {
  const auto file = golden("smooth/llmcompressor.json");
  const auto x = matrix_of(file["activations"]);
  const auto norm = file["norm"].get<std::vector<float>>();
  std::vector<owned<float>> linears;
  for (const auto& rows : file["linears"]) linears.push_back(matrix_of(rows));
  const auto largest = column_maxima(linears);
  REQUIRE(column_maxima({x})[5] == 0.0f);
  REQUIRE(largest[9] == 0.0f);
  REQUIRE(file["runs"].size() == 4);
  for (const auto& run : file["runs"]) {
    const auto alpha = run["alpha"].get<float>();
    const auto theirs = run["scales"].get<std::vector<float>>(), folded_norm = run["norm"].get<std::vector<float>>();
    const auto s = scales_of(x, linears, alpha);
    // Its activations are largest − least, here 2·amaxX, its weights 2·amaxW: (2·amaxX)^α / (2·amaxW)^(1−α).
    const double factor = std::pow(2.0, 2 * static_cast<double>(alpha) - 1);
    for (size_t j = 0; j < s.size(); ++j) {
      INFO("alpha " << alpha << ", channel " << j);
      if (j == 9) {  // where weights are 0 theirs is the range itself, ours has the paper's floor under amaxW
        REQUIRE(theirs[j] == 2 * column_maxima({x})[j]);
        continue;
      }
      // Both sides' roundings, and the range's own.
      const double ours = static_cast<double>(s[j]);
      const double wanted = j == 5 && alpha > 0 ? ours : factor * ours;  // a dead channel has the floor
      const double applied = std::max(static_cast<double>(theirs[j]), 1e-5);
      REQUIRE(std::fabs(applied - wanted) <= wanted * (2 * scale_bound(largest[j]) + 2 * roundoff));
      REQUIRE(static_cast<double>(folded_norm[j]) ==
              Approx(static_cast<double>(norm[j]) / applied).epsilon(4 * roundoff));
      for (size_t i = 0; i < linears.size(); ++i) {
        const auto folded = matrix_of(run["linears"][i]);
        for (index_t row = 0; row < folded.rows; ++row) {
          const auto col = static_cast<index_t>(j);
          REQUIRE(static_cast<double>(folded.view()(row, col)) ==
                  Approx(static_cast<double>(linears[i].view()(row, col)) * applied).epsilon(4 * roundoff));
        }
      }
    }
  }
}

TEST_CASE("a smoothed linear's product is the original's") {
  const auto x = loud_activations(33, 130);
  const auto w = normal(17, 130, 4, 0.05f);
  const auto exact = product(x, w);
  for (const float alpha : {0.0f, 0.5f, 0.8f, 1.0f}) {
    const auto s = scales_of(x, {w}, alpha);
    for (index_t t = 0; t < x.rows; ++t)
      for (index_t i = 0; i < w.rows; ++i) {
        double y = 0, size = 0;
        for (index_t j = 0; j < x.cols; ++j) {
          const auto scale = static_cast<double>(s[static_cast<size_t>(j)]);
          y += static_cast<double>(x.view()(t, j)) / scale * (static_cast<double>(w.view()(i, j)) * scale);
          size += std::fabs(static_cast<double>(x.view()(t, j)) * static_cast<double>(w.view()(i, j)));
        }
        // Products in double: 3 roundings more of each than the original's, and both sums' own.
        REQUIRE(std::fabs(y - exact.view()(t, i)) <= (2 * 130 + 3) * 0x1p-53 * size);
      }
    const auto both = smoothed(x, w, s);
    for (size_t j = 0; j < s.size(); ++j) {
      if (alpha != 0.5f || s[j] == floor_of_scales) continue;
      // At one half both sides have the same largest number: √(amaxX·amaxW).
      const auto a = column_maxima({both.first})[j], b = column_maxima({both.second})[j];
      REQUIRE(static_cast<double>(a) == Approx(static_cast<double>(b)).epsilon(1e-5));
    }
  }
}

TEST_CASE(
    "a norm's weight folded in its own dtype leaves the product what it was, where the scale of that dtype is taken") {
  const auto normed = loud_activations(9, 130);
  const auto w = normal(5, 130, 4, 0.05f), drawn = normal(1, 130, 8, 0.2f);
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    std::vector<double> gain(130);
    for (size_t j = 0; j < 130; ++j) gain[j] = static_cast<double>(round_to(type, 1.0f + drawn.data[j]));
    const auto s = scales_of(columns_times(normed, gain), {w}, 0.5f);
    double wrong = 0;
    for (index_t t = 0; t < normed.rows; ++t)
      for (index_t i = 0; i < w.rows; ++i) {
        double exact = 0, y = 0, size = 0, careless = 0;
        for (index_t j = 0; j < normed.cols; ++j) {
          const auto at = static_cast<size_t>(j);
          const auto g = static_cast<float>(gain[at]);
          const auto folded = static_cast<double>(awq_folded(g, s[at], type));
          const auto stored = static_cast<double>(round_to(type, g / static_cast<float>(folded)));
          const double term = static_cast<double>(normed.view()(t, j)) * static_cast<double>(w.view()(i, j));
          exact += term * gain[at];
          y += term * stored * folded;
          careless += term * static_cast<double>(round_to(type, g / s[at])) * static_cast<double>(s[at]);
          size += std::fabs(term * gain[at]);
        }
        // The scale taken, g / stored, is a float: one rounding of each term.
        REQUIRE(std::fabs(y - exact) <= 1.01 * roundoff * size);
        wrong = std::max(wrong, std::fabs(careless - exact) / size);
      }
    if (type == dtype::bf16) REQUIRE(wrong > 100 * roundoff);
  }
}

TEST_CASE("an activation's scale is normal and finite whatever the largest activation") {
  STATIC_REQUIRE(activation_scale(127.0f) == 1.0f);
  for (const float amax : {0.0f, 1e-45f, 1e-37f, 1.0f, most}) {
    REQUIRE(std::isnormal(activation_scale(amax)));
    REQUIRE(activation_scale(amax) >= amax / 127.0f);
  }
  REQUIRE(activation_scale(5.0f) == 5.0f / 127.0f);
  for (const float odd : {0.0f, inf, -inf, not_a_number}) REQUIRE(activation_scale(odd) == 0x1p-126f);
}

TEST_CASE("activation codes are 1 to 255, rounded to even, NaN reads back as 0 and infinities saturate") {
  STATIC_REQUIRE(activation_code(0.0f, 1.0f) == 128);
  STATIC_REQUIRE(activation_code(0.5f, 1.0f) == 128);
  STATIC_REQUIRE(activation_code(1.5f, 1.0f) == 130);
  STATIC_REQUIRE(activation_code(-2.5f, 1.0f) == 126);
  STATIC_REQUIRE(activation_code(-128.0f, 1.0f) == 1);
  STATIC_REQUIRE(activation_code(128.0f, 1.0f) == 255);
  for (const float scale : {0x1p-126f, 0.3f, 1.0f, most / 127.0f}) {
    REQUIRE(activation_code(not_a_number, scale) == 128);
    REQUIRE(activation_code(inf, scale) == 255);
    REQUIRE(activation_code(-inf, scale) == 1);
    REQUIRE(activation_code(127.0f * scale, scale) == 255);
    REQUIRE(activation_code(-127.0f * scale, scale) == 1);
  }
}

TEST_CASE("the reference's activation codes and scales are the mathematics', a token at a time and for all tokens") {
  for (const index_t k : {index_t(1), index_t(63), index_t(64), index_t(257)}) {
    const auto x = nasty_weights<float>(40, k);
    owned<float> scales(40, 1);
    owned<uint8_t> q(40, k);
    reference::quantize_tokens(x.view(), scales.view(), q.view());
    for (index_t t = 0; t < 40; ++t) {
      float amax = 0;
      for (index_t j = 0; j < k; ++j) amax = max(amax, nibble::abs(observed(x.view()(t, j))));
      REQUIRE(scales.view()(t, 0) == activation_scale(amax));
      for (index_t j = 0; j < k; ++j) REQUIRE(q.view()(t, j) == activation_code(x.view()(t, j), scales.view()(t, 0)));
    }
    for (const float scale : {0x1p-126f, 1e-3f, 0.25f}) {
      reference::quantize_activations(x.view(), matrix<const float>(&scale, 1, 1), q.view());
      for (size_t i = 0; i < q.data.size(); ++i) REQUIRE(q.data[i] == activation_code(x.data[i], scale));
    }
  }
}

TEST_CASE("one scale gives what a scale a token gives where all tokens are as loud") {
  auto x = normal(20, 65, 3, 1.0f);
  for (index_t t = 0; t < x.rows; ++t) x.view()(t, t % 65) = t % 2 == 0 ? 9.0f : -9.0f;
  const auto w = normal(6, 65, 4, 0.05f);
  REQUIRE(int8_linear(x, w).y.data == int8_linear(x, w, 9.0f).y.data);
  REQUIRE(int8_linear(x, w).y.data != int8_linear(x, w, 8.0f).y.data);
}

TEST_CASE("integer sums are exact up to 2^17 inputs at both ends of the codes") {
  const owned<uint8_t> low(1, int8_inputs, 1), high(1, int8_inputs, 255), least(1, int8_inputs, 0);
  owned<uint8_t> mixed(1, int8_inputs);
  int64_t mixed_sum = 0;
  for (index_t j = 0; j < int8_inputs; ++j) {
    mixed.view()(0, j) = static_cast<uint8_t>(1 + j * 37 % 255);
    mixed_sum += (int64_t(mixed.view()(0, j)) - 128) * -128;
  }
  const float one = 1.0f;
  const params unit{1.0f, 128};
  const int64_t largest = int64_t(127) * 128 * int8_inputs;
  REQUIRE(largest <= std::numeric_limits<int32_t>::max());
  const std::pair<const owned<uint8_t>*, int64_t> cases[] = {{&low, largest}, {&high, -largest}, {&mixed, mixed_sum}};
  for (const auto& [x, sum] : cases) {
    float y = 0;
    reference::int8_matmul(x->view(), {&one, 1, 1}, least.view(), {&unit, 1, 1}, {&y, 1, 1});
    REQUIRE(static_cast<double>(y) == static_cast<double>(static_cast<float>(sum)));
    REQUIRE(int8_output(static_cast<int32_t>(sum), 1.0f, 1.0f) == y);
  }
}

TEST_CASE(
    "a product of codes is the exact sum of what they read back as, and the mathematics' within three roundings") {
  const auto x = normal(7, 193, 3, 2.0f), w = normal(5, 193, 4, 0.05f);
  for (const float largest : {-1.0f, 3.0f}) {
    const int8_linear made(x, w, largest);
    for (index_t t = 0; t < x.rows; ++t)
      for (index_t i = 0; i < w.rows; ++i) {
        int32_t sum = 0;
        double exact = 0;
        const float scale = made.scale_of(t), step = made.p.view()(i, 0).scale;
        for (index_t j = 0; j < x.cols; ++j) {
          const int32_t a = made.q.view()(t, j) - 128, b = made.codes.view()(i, j) - 128;
          sum += a * b;
          exact += static_cast<double>(a) * static_cast<double>(scale) *
                   (static_cast<double>(b) * static_cast<double>(step));
        }
        const auto y = static_cast<double>(made.y.view()(t, i));
        REQUIRE(y == Approx(exact).epsilon(1.01 * roundoff).margin(1e-12));
        REQUIRE(std::fabs(static_cast<double>(int8_output(sum, scale, step)) - y) <= 4.01 * roundoff * std::fabs(y));
      }
  }
}

TEST_CASE(
    "int8 products are within the error that a token's, a tensor's and an output's scale allow, smoothed or not") {
  const auto x = loud_activations(33, 130);
  const auto w = normal(17, 130, 4, 0.05f);
  std::vector<float> s(130, 1.0f);
  for (const float alpha : {-1.0f, 0.0f, 0.5f, 0.8f, 1.0f}) {
    if (alpha >= 0) s = scales_of(x, {w}, alpha);
    const auto [quiet, folded] = smoothed(x, w, s);
    within_int8(int8_linear(quiet, folded), quiet, folded);
    const auto maxima = column_maxima({quiet});
    within_int8(int8_linear(quiet, folded, *std::max_element(maxima.begin(), maxima.end())), quiet, folded);
  }
}

TEST_CASE("smoothing takes most of the error away where channels are loud, dynamic and static") {
  const auto x = loud_activations(64, 290);
  const auto w = normal(32, 290, 4, 0.05f);
  const auto exact = product(x, w);
  const auto largest = [](const owned<float>& of) {
    const auto maxima = column_maxima({of});
    return *std::max_element(maxima.begin(), maxima.end());
  };
  const auto [quiet, folded] = smoothed(x, w, scales_of(x, {w}, 0.5f));
  const double dynamic = squared_error(int8_linear(x, w).y, exact);
  const double fixed = squared_error(int8_linear(x, w, largest(x)).y, exact);
  const double smooth = squared_error(int8_linear(quiet, folded).y, exact);
  const double smooth_fixed = squared_error(int8_linear(quiet, folded, largest(quiet)).y, exact);
  INFO("dynamic " << dynamic << " to " << smooth << ", static " << fixed << " to " << smooth_fixed);
  REQUIRE(dynamic < fixed);
  REQUIRE(smooth < dynamic / 2);
  REQUIRE(smooth_fixed < fixed / 2);
}

TEST_CASE("tokens and weights that hold NaN or infinity make finite products, and dead ones make 0") {
  auto x = normal(6, 64, 3, 1.0f), w = normal(4, 64, 4, 0.05f);
  for (index_t j = 0; j < 64; ++j) {
    x.view()(1, j) = 0.0f;
    x.view()(2, j) = j % 2 == 0 ? inf : not_a_number;
    w.view()(3, j) = 0.0f;
  }
  x.view()(4, 7) = -inf;
  w.view()(1, 9) = not_a_number;
  const int8_linear made(x, w);
  for (index_t t = 0; t < 6; ++t)
    for (index_t i = 0; i < 4; ++i) {
      REQUIRE(std::isfinite(made.y.view()(t, i)));
      if (t == 1 || i == 3) REQUIRE(made.y.view()(t, i) == 0.0f);
    }
  REQUIRE(made.scale_of(4) < 0.1f);
}

namespace {

/// Floats of a golden file, 8 hexadecimal digits each.
owned<float> floats_of(const std::string& text, index_t rows, index_t cols) {
  owned<float> out(rows, cols);
  REQUIRE(text.size() == 8 * out.data.size());
  for (size_t i = 0; i < out.data.size(); ++i)
    out.data[i] = bit_cast<float>(static_cast<uint32_t>(std::stoul(text.substr(8 * i, 8), nullptr, 16)));
  return out;
}

constexpr activation_rule rules[] = {{}, vllm_activations, vllm_cpu_activations, {-128, activation_ratio::quotient}};

template <class T>
void host_codes_agree(index_t rows, index_t cols) {
  CAPTURE(rows, cols, int(dtype_of<T>::value));
  const auto x = nasty_weights<T>(rows, cols);
  owned<float> scales(rows, 1), got_scales(rows, 1);
  owned<uint8_t> q(rows, cols), got(rows, cols);
  reference::quantize_tokens(x.view(), scales.view(), q.view());
  host::quantize_tokens(x.view(), got_scales.view(), got.view());
  REQUIRE(got.data == q.data);
  REQUIRE(got_scales.data == scales.data);
  host::quantize_activations(x.view(), std::as_const(scales).view(), got.view());
  REQUIRE(got.data == q.data);
  for (const float one : {0x1p-126f, 0.01f, 3.0f}) {
    reference::quantize_activations(x.view(), matrix<const float>(&one, 1, 1), q.view());
    host::quantize_activations(x.view(), matrix<const float>(&one, 1, 1), got.view());
    REQUIRE(got.data == q.data);
  }
  for (const activation_rule rule : rules) {
    host::quantize_tokens(x.view(), got_scales.view(), got.view(), rule);
    REQUIRE(got_scales.data == scales.data);
    for (index_t t = 0; t < rows; ++t) {
      float amax = 0;
      for (index_t j = 0; j < cols; ++j) amax = max(amax, nibble::abs(observed(static_cast<float>(x.view()(t, j)))));
      const float factor = activation_factor(scales.view()(t, 0), amax, rule);
      for (index_t j = 0; j < cols; ++j)
        REQUIRE(got.view()(t, j) == activation_code(static_cast<float>(x.view()(t, j)), factor, rule));
    }
  }
}

/// Codes of activations from `least` on and of weights, all of them.
struct codes {
  owned<uint8_t> x, w;
  owned<float> scales;
  owned<params> p;

  codes(index_t m, index_t n, index_t k, unsigned seed, int least = 1)
      : x(m, k), w(n, k), scales(m, 1), p(n, 1, params{1.0f, 128}) {
    std::mt19937 engine(seed);
    for (uint8_t& code : x.data)
      code = static_cast<uint8_t>(least + static_cast<int>(engine() % (256u - static_cast<unsigned>(least))));
    for (uint8_t& code : w.data) code = static_cast<uint8_t>(engine() % 256);
    for (float& scale : scales.data) scale = std::ldexp(1.0f + static_cast<float>(engine() % 99) / 100, -5);
    for (params& of : p.data) of.scale = std::ldexp(1.0f + static_cast<float>(engine() % 99) / 100, -9);
  }
};

/// y of the exact sums in 64 bits, by the mathematics.
owned<float> exact_output(const codes& c, matrix<const float> scales) {
  owned<float> y(c.x.rows, c.w.rows);
  for (index_t t = 0; t < c.x.rows; ++t)
    for (index_t i = 0; i < c.w.rows; ++i) {
      int64_t sum = 0;
      for (index_t j = 0; j < c.x.cols; ++j)
        sum += (int64_t(c.x.view()(t, j)) - 128) * (int64_t(c.w.view()(i, j)) - c.p.view()(i, 0).zero);
      REQUIRE(sum == static_cast<int32_t>(sum));
      y.view()(t, i) =
          int8_output(static_cast<int32_t>(sum), scales(scales.rows == 1 ? 0 : t, 0), c.p.view()(i, 0).scale);
    }
  return y;
}

/// f(name, product) for every path that this machine runs.
template <class F>
void for_int8_paths(F f) {
  f("chosen", [](auto... a) { host::int8_matmul(a...); });
  f("plain", [](auto... a) { host::detail::int8_matmul<host::detail::plain_int8>(a...); });
#if defined(__GNUC__) && defined(__x86_64__)
  if (__builtin_cpu_supports("avx2"))
    f("avx2", [](auto... a) { host::detail::int8_matmul<host::detail::avx2_int8>(a...); });
  if (host::detail::vnni_int8::here())
    f("vnni", [](auto... a) { host::detail::int8_matmul<host::detail::vnni_int8>(a...); });
#endif
}

void products_agree(const codes& c, matrix<const float> scales) {
  const auto expected = exact_output(c, scales);
  for_int8_paths([&](const char* path, auto product) {
    CAPTURE(path, c.x.rows, c.w.rows, c.x.cols);
    owned<float> y(c.x.rows, c.w.rows, not_a_number);
    product(c.x.view(), scales, c.w.view(), c.p.view(), y.view());
    REQUIRE(y.data == expected.data);
  });
}

}  // namespace

TEST_CASE("a rule's code is the plain one's where it divides by the scale, its least code is the one it says") {
  for (const float x : {0.0f, 0.5f, -1.5f, 126.5f, -127.4f, -127.5f, -200.0f, inf, -inf, not_a_number})
    REQUIRE(activation_code(x, 1.0f, activation_rule{}) == activation_code(x, 1.0f));
  for (const activation_rule rule : rules) {
    REQUIRE(activation_code(-127.4f, 1.0f, rule) == 1);
    REQUIRE(activation_code(-128.0f, 1.0f, rule) == rule.least + 128);
    REQUIRE(activation_code(-inf, 1.0f, rule) == rule.least + 128);
    REQUIRE(activation_code(inf, 1.0f, rule) == 255);
    REQUIRE(activation_code(not_a_number, 1.0f, rule) == 128);
    for (const float amax : {0.0f, 1e-45f, 1e-38f, 1.0f, most, inf})
      REQUIRE(std::isfinite(activation_factor(activation_scale(amax), amax, rule)));
  }
  const float amax = 5.0f, scale = activation_scale(amax);
  REQUIRE(activation_factor(scale, amax, {}) == scale);
  REQUIRE(activation_factor(scale, amax, vllm_cpu_activations) == 1.0f / scale);
  REQUIRE(activation_factor(scale, amax, vllm_activations) == 127.0f / 5.0f);
  REQUIRE(under_static_scale(vllm_activations).ratio == activation_ratio::quotient);
  REQUIRE(under_static_scale(vllm_cpu_activations).ratio == activation_ratio::reciprocal);
}

TEST_CASE("host codes and scales of activations are the reference's, for every dtype, rule and remainder") {
  for (const index_t cols : {1, 2, 7, 8, 15, 16, 31, 63, 64, 65, 511, 512, 513, 1030}) {
    host_codes_agree<float>(9, cols);
    host_codes_agree<fp16>(9, cols);
    host_codes_agree<bf16>(9, cols);
  }
  host_codes_agree<float>(2, 0);
  host_codes_agree<bf16>(0, 9);
  host_codes_agree<bf16>(700, 200);
}

TEST_CASE("host integer products are exact on every path, for every remainder, with one scale and with a token's") {
  for (index_t k = 0; k <= 66; ++k) products_agree(codes(3, 5, k, 1), codes(3, 1, 1, 2).scales.view());
  for (const index_t k : {127, 128, 129, 300, 1000}) {
    for (index_t m = 1; m <= 9; ++m) {
      const codes c(m, 13 - m, k, static_cast<unsigned>(m));
      products_agree(c, c.scales.view());
    }
    const codes c(5, 6, k, 7);
    products_agree(c, c.scales.view().rows_at(0, 1));
  }
  const codes tall(300, 70, 70, 3), none(0, 4, 8, 1), narrow(4, 0, 8, 1);
  products_agree(tall, tall.scales.view());
  products_agree(none, none.scales.view());
  products_agree(narrow, narrow.scales.view());
}

TEST_CASE("host integer products of views with strides read and write nothing beside them") {
  const codes c(7, 9, 70, 5);
  owned<uint8_t> x(7, 101, 255), w(9, 83, 255);
  for (index_t t = 0; t < 7; ++t) std::copy_n(c.x.view().row(t), 70, x.view().row(t) + 3);
  for (index_t i = 0; i < 9; ++i) std::copy_n(c.w.view().row(i), 70, w.view().row(i) + 5);
  const auto expected = exact_output(c, c.scales.view());
  for_int8_paths([&](const char* path, auto product) {
    CAPTURE(path);
    owned<float> y(7, 12, -1.0f);
    product(std::as_const(x).view().cols_at(3, 70), c.scales.view(), std::as_const(w).view().cols_at(5, 70), c.p.view(),
            y.view().cols_at(1, 9));
    for (index_t t = 0; t < 7; ++t)
      for (index_t i = 0; i < 12; ++i) REQUIRE(y.view()(t, i) == (i < 1 || i > 9 ? -1.0f : expected.view()(t, i - 1)));
  });
}

TEST_CASE("host sums wrap round on their way and are exact at their end: both ends of all codes up to 2^17 inputs") {
  for (const int least : {1, 255})
    for (const int weight : {0, 255})
      for (const index_t k : {int8_inputs, int8_inputs - 1}) {
        codes c(5, 5, k, 1);
        std::fill(c.x.data.begin(), c.x.data.end(), static_cast<uint8_t>(least));
        std::fill(c.w.data.begin(), c.w.data.end(), static_cast<uint8_t>(weight));
        products_agree(c, c.scales.view());
      }
  codes c(5, 5, int8_inputs - 1, 1);  // −128 · −128, an input less
  std::fill(c.x.data.begin(), c.x.data.end(), uint8_t(0));
  std::fill(c.w.data.begin(), c.w.data.end(), uint8_t(0));
  products_agree(c, c.scales.view());
}

TEST_CASE("host integer products take zero points that are not 128, and do not depend on how many threads there are") {
  codes c(261, 50, 90, 4);
  for (size_t i = 0; i < c.p.data.size(); ++i) c.p.data[i].zero = static_cast<int32_t>(i * 5);
  for (const int threads : {1, 3}) {
    host::set_threads(threads);
    products_agree(c, c.scales.view());
  }
  host::set_threads(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
}

TEST_CASE("host products are the reference's within the roundings of scaling back") {
  const codes c(9, 21, 333, 8);
  owned<float> y(9, 21), expected(9, 21);
  reference::int8_matmul(c.x.view(), c.scales.view(), c.w.view(), c.p.view(), expected.view());
  host::int8_matmul(c.x.view(), c.scales.view(), c.w.view(), c.p.view(), y.view());
  for (size_t i = 0; i < y.data.size(); ++i) {
    const auto exact = static_cast<double>(expected.data[i]);
    REQUIRE(std::fabs(static_cast<double>(y.data[i]) - exact) <= 4.01 * roundoff * std::fabs(exact));
  }
}

TEST_CASE("rounded inputs are what their codes stand for, under a token's scale and under one") {
  const auto x = nasty_weights<float>(9, 1030);
  for (const activation_rule rule : rules) {
    owned<float> scales(9, 1);
    owned<uint8_t> q(9, 1030);
    auto got = x;
    host::quantize_tokens(x.view(), scales.view(), q.view(), rule);
    host::round_inputs(got.view(), rule);
    for (index_t t = 0; t < 9; ++t)
      for (index_t j = 0; j < 1030; ++j)
        REQUIRE(got.view()(t, j) == static_cast<float>(q.view()(t, j) - 128) * scales.view()(t, 0));
    const float scale = 0.003f;
    got = x;
    host::quantize_activations(x.view(), matrix<const float>(&scale, 1, 1), q.view(), rule);
    host::round_inputs(got.view(), scale, rule);
    for (size_t i = 0; i < got.data.size(); ++i) REQUIRE(got.data[i] == static_cast<float>(q.data[i] - 128) * scale);
  }
}

TEST_CASE("rounded inputs are the numbers that compressed-tensors reads back, dynamic and static, int8 and fp8") {
  const auto file = golden("smooth/compressed_tensors.json");
  REQUIRE(file["runs"].size() == 12);
  for (const auto& run : file["runs"]) {
    const auto type = run["dtype"] == "bf16" ? dtype::bf16 : dtype::f32;
    const auto strategy = run["strategy"].get<std::string>();
    INFO(run["type"] << ", " << strategy << ", " << run["dtype"]);
    auto x = floats_of(file["inputs"][run["dtype"].get<std::string>()], 6, 96);
    const auto expected = floats_of(run["read_back"], 6, 96);
    const group_shape g = strategy == "token" ? per_channel : strategy == "tensor" ? per_tensor : per_group(32);
    const any_scheme int8{8, true, convention::compressed_tensors, type, type};
    const any_float_scheme fp8{float_format::e4m3, type, type};
    if (!run["scale"].is_null()) {
      const float scale = floats_of(run["scale"], 1, 1).data[0];
      if (run["type"] == "int")
        host::round_inputs(x.view(), scale, int8);
      else
        host::round_inputs(x.view(), scale, fp8);
    } else if (run["type"] == "int") {
      host::round_inputs(x.view(), g, int8);
    } else {
      host::round_inputs(x.view(), g, fp8);
    }
    REQUIRE(x.data == expected.data);
  }
}

TEST_CASE("codes and scales of activations are vLLM's on a CPU, dynamic and static") {
  const auto file = golden("smooth/vllm.json");
  REQUIRE(file["runs"].size() == 6);
  for (const auto& run : file["runs"]) {
    const auto x = floats_of(run["inputs"], 6, 96);
    const auto text = run["codes"].get<std::string>();
    owned<uint8_t> q(6, 96);
    owned<float> scales(6, 1);
    if (run["static"].get<bool>()) {
      const auto one = floats_of(run["scales"], 1, 1);
      host::quantize_activations(x.view(), one.view(), q.view(), vllm_cpu_activations);
    } else {
      const auto theirs = floats_of(run["scales"], 6, 1);
      host::quantize_tokens(x.view(), scales.view(), q.view(), vllm_cpu_activations);
      for (size_t t = 0; t < 6; ++t)
        REQUIRE(scales.data[t] == std::max(theirs.data[t], 0x1p-126f));  // they keep 0 for a token of zeros
    }
    for (size_t i = 0; i < q.data.size(); ++i)
      REQUIRE((q.data[i] ^ 128u) == std::stoul(text.substr(2 * i, 2), nullptr, 16));
  }
}

TEST_CASE("inputs of several pieces and few channels are rounded as all at once, a tensor's scale is of all of it") {
  auto drawn = weights<float>(700, 200);
  drawn.view()(0, 0) = not_a_number;
  drawn.view()(699, 3) = 77.0f;  // in the last piece
  const auto& x = drawn;
  const any_float_scheme fp8;
  for (const group_shape g : {per_channel, per_tensor, per_group(128), per_group(7)}) {
    owned<float> scales(g.down(700), g.across(200)), expected(700, 200);
    owned<uint8_t> q(700, 200);
    reference::fit(x.view(), scales.view(), g, fp8, minmax{});
    reference::quantize(x.view(), std::as_const(scales).view(), q.view(), g, fp8);
    reference::dequantize(std::as_const(q).view(), std::as_const(scales).view(), expected.view(), g, fp8);
    auto got = x;
    host::round_inputs(got.view(), g, fp8);
    for (size_t i = 0; i < got.data.size(); ++i)
      REQUIRE(((is_nan(got.data[i]) && is_nan(expected.data[i])) || got.data[i] == expected.data[i]));
  }
  owned<float> none(0, 4);
  host::round_inputs(none.view(), per_tensor, fp8);
  host::round_inputs(none.view(), 1.0f, fp8);
  host::round_inputs(none.view(), activation_rule{});
}

}  // namespace smooth_tests

// SPDX-License-Identifier: Apache-2.0
#include "nibble/fit.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <utility>

#include "nibble/host/fit.hpp"
#include "nibble/quantize.hpp"
#include "nibble/reference/distortion.hpp"
#include "nibble/reference/fit.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/golden.hpp"
#include "support/weights.hpp"

namespace fit_tests {

using namespace nibble;

namespace {

constexpr convention conventions[] = {convention::compressed_tensors, convention::autoawq, convention::gptq,
                                      convention::torchao};
constexpr dtype dtypes[] = {dtype::f32, dtype::f16, dtype::bf16};
constexpr float inf = std::numeric_limits<float>::infinity();
const float nan_ = std::numeric_limits<float>::quiet_NaN();

any_scheme scheme_of(int bits, bool symmetric, convention rule = convention::compressed_tensors,
                     dtype type = dtype::f32) {
  return {bits, symmetric, rule, type, type};
}

void require_sound(params p, any_scheme s) {
  REQUIRE(std::isfinite(p.scale));
  REQUIRE(p.scale > 0.0f);
  REQUIRE(p.scale == round_to(s.scale_dtype, p.scale));
  REQUIRE(p.zero >= 0);
  REQUIRE(p.zero <= max_code(s));
  if (s.symmetric) REQUIRE(p.zero == mid_code(s));
}

void require_equal(const owned<params>& a, const owned<params>& b) {
  REQUIRE(a.data.size() == b.data.size());
  for (std::size_t i = 0; i < a.data.size(); ++i) {
    INFO("group " << i << ": scale " << a.data[i].scale << " and " << b.data[i].scale << ", zero " << a.data[i].zero
                  << " and " << b.data[i].zero);
    REQUIRE(bit_cast<uint32_t>(a.data[i].scale) == bit_cast<uint32_t>(b.data[i].scale));
    REQUIRE(a.data[i].zero == b.data[i].zero);
  }
}

template <class T, class Method>
owned<params> fitted(const owned<T>& w, group_shape g, any_scheme s, Method m, const float* importance = nullptr) {
  owned<params> p(g.down(w.rows), g.across(w.cols), params{});
  host::fit(w.view(), p.view(), g, s, m, importance);
  return p;
}

template <class T, class Method>
void columns_agree(const owned<T>& w, group_shape g, any_scheme s, Method m, const float* importance = nullptr) {
  const auto host = fitted(w, g, s, m, importance);
  owned<params> expected(g.down(w.rows), g.across(w.cols), params{});
  reference::fit(w.view(), expected.view(), g, s, m, importance);
  INFO("bits " << s.bits << " symmetric " << s.symmetric << " rule " << int(s.rule) << " compute "
               << int(s.compute_dtype) << " group " << g.rows << " x " << g.cols);
  require_equal(host, expected);
  for (const params& p : host.data) require_sound(p, s);
}

/// Σ importance · (x' − x)² of one group, in double and in order; finite weights only.
template <class T>
double exact_error(const owned<T>& w, params p, any_scheme s, const float* importance) {
  double total = 0.0;
  for (std::size_t i = 0; i < w.data.size(); ++i) {
    const auto x = static_cast<float>(w.data[i]);
    if (!std::isfinite(x)) continue;
    const double d = static_cast<double>(dequantize(quantize(x, p, s), p, s)) - static_cast<double>(x);
    const double weight = importance == nullptr ? 1.0 : static_cast<double>(importance[i % w.cols]);
    total += weight * d * d;
  }
  return total;
}

std::vector<float> some_importance(index_t cols) {
  std::mt19937 engine(9);
  std::vector<float> importance(static_cast<std::size_t>(cols));
  for (auto& x : importance) x = std::exp(std::normal_distribution<float>()(engine));
  return importance;
}

}  // namespace

TEST_CASE("any range, however odd, gives a positive finite scale and a zero point that is a code") {
  const float ends[] = {0.0f, -0.0f, 1.0f,  -1.0f,  1e-45f, -1e-45f, 1e-38f, -1e-30f, 3.4e38f, -3.4e38f, inf,
                        -inf, nan_,  65504, -65504, 1e-5f,  -7e-4f,  0.3f,   -123.0f, 1e30f,   -1e10f};
  for (const auto rule : conventions)
    for (const auto compute : dtypes)
      for (const auto stored : dtypes)
        for (const bool symmetric : {false, true})
          for (int bits = 1; bits <= 8; ++bits)
            for (const float low : ends)
              for (const float high : ends)
                if (!(low > high))
                  require_sound(fit(low, high, any_scheme{bits, symmetric, rule, stored, compute}),
                                any_scheme{bits, symmetric, rule, stored, compute});
}

TEST_CASE("the range's ends read back within a step, where the convention has zero in the range") {
  // Scale and zero point are each rounded: half a step for the zero, half for the code.
  std::mt19937 engine(5);
  std::normal_distribution<float> normal;
  for (const auto rule : conventions)
    for (const int bits : {2, 3, 4, 5, 6, 8})
      for (const bool symmetric : {false, true})
        for (int i = 0; i < 500; ++i) {
          const any_scheme s = scheme_of(bits, symmetric, rule);
          const float a = normal(engine), b = normal(engine);
          const float low = std::min({a, b, 0.0f}), high = std::max({a, b, 0.0f});
          const params p = fit(low, high, s);
          for (const float x : {low, high}) {
            const float slack = 1.0f + 1e-4f;
            REQUIRE(std::fabs(dequantize(quantize(x, p, s), p, s) - x) <= p.scale * slack);
          }
        }
}

TEST_CASE("a group without negatives is not cut in half by the symmetric GPTQ convention") {
  const any_scheme s = scheme_of(4, true, convention::gptq);
  owned<float> w(1, 16);
  for (int i = 0; i < 16; ++i) w.data[i] = 0.1f * static_cast<float>(i);
  const params p = fitted(w, per_channel, s, minmax{}).data[0];
  REQUIRE(p.scale == Approx(3.0 / 15));
  REQUIRE(dequantize(quantize(1.5f, p, s), p, s) == Approx(1.4));
  const params theirs{1.5f / 15, 8};
  REQUIRE(dequantize(quantize(1.5f, theirs, s), theirs, s) == Approx(0.7));
}

TEST_CASE("host and reference fit every matrix alike, whatever the shape, the dtype and the method") {
  const group_shape shapes[] = {per_group(32), per_channel, per_group(24), per_tensor, {3, 7}, per_group(1), {4, -1}};
  const auto importance = some_importance(200);
  int turn = 0;
  for (const auto rule : conventions)
    for (const auto compute : dtypes)
      for (const bool symmetric : {false, true})
        for (const int bits : {2, 3, 4, 8}) {
          const any_scheme s = scheme_of(bits, symmetric, rule, compute);
          const group_shape g = shapes[turn++ % 7];
          const auto seed = static_cast<unsigned>(turn);
          const index_t rows = 10 + turn % 3, cols = 65 + turn % 70;
          const auto w = nasty_weights<float>(rows, cols, seed);
          const auto half = weights<fp16>(rows, cols, seed);
          const auto brain = weights<bf16>(rows, cols, seed);
          columns_agree(w, g, s, minmax{});
          columns_agree(half, g, s, minmax{});
          columns_agree(w, g, s, percentile{99.0f});
          columns_agree(brain, g, s, percentile{});
          columns_agree(w, g, s, ends_search{}, importance.data());
          columns_agree(half, g, s, ends_search{}, importance.data());
          columns_agree(brain, g, s, ends_search{3, 0.4f, 2});
          columns_agree(w, g, s, llm_compressor_grid);
          columns_agree(brain, g, s, autoawq_grid, importance.data());
        }
  columns_agree(weights<float>(6, 70), per_group(32), scheme_of(4, false, convention::gptq), gptq_grid);
}

TEST_CASE("a group too large for one thread is fitted like any other") {
  const auto w = weights<bf16>(700, 500);
  const auto importance = some_importance(500);
  const any_scheme s = scheme_of(4, false);
  columns_agree(w, per_tensor, s, minmax{});
  columns_agree(w, per_tensor, s, ends_search{2, 0.5f, 1}, importance.data());
  columns_agree(w, per_tensor, s, mse_search{10, 0.3, 2.0f, 0});
}

TEST_CASE("the number of threads changes no bit of a fit") {
  const auto w = nasty_weights<float>(300, 520);
  const auto large = weights<float>(600, 520);
  const auto importance = some_importance(520);
  const any_scheme s = scheme_of(3, false);
  std::vector<owned<params>> results;
  const int threads = host::pool().size();
  for (const int count : {1, 2, 5}) {
    host::set_threads(count);
    results.push_back(fitted(w, per_group(128), s, ends_search{}, importance.data()));
    results.push_back(fitted(w, per_group(128), s, llm_compressor_grid));
    results.push_back(fitted(large, per_tensor, s, ends_search{}, importance.data()));
  }
  host::set_threads(threads);
  for (std::size_t i = 3; i < results.size(); ++i) require_equal(results[i], results[i % 3]);
}

TEST_CASE("searching the ends is never worse than the range itself, and often much better") {
  std::mt19937 engine(17);
  double before = 0.0, after = 0.0;
  int better = 0, groups = 0;
  for (const auto rule : conventions)
    for (const auto stored : dtypes)
      for (const bool symmetric : {false, true})
        for (const int bits : {2, 3, 4, 5, 6, 8})
          for (int i = 0; i < 27; ++i) {
            any_scheme s = scheme_of(bits, symmetric, rule);
            s.scale_dtype = stored;
            auto w = weights<float>(9, 1 + static_cast<index_t>(engine() % 150), static_cast<unsigned>(i));
            w.data.erase(w.data.begin(), w.data.begin() + w.cols * (i % 9));
            w.data.resize(static_cast<std::size_t>(w.cols));
            w.rows = 1;
            const auto importance = some_importance(w.cols);
            const auto start = fitted(w, per_channel, s, minmax{}).data[0];
            const auto found = fitted(w, per_channel, s, ends_search{}, importance.data()).data[0];
            const double at_start = exact_error(w, start, s, importance.data());
            const double at_end = exact_error(w, found, s, importance.data());
            INFO("bits " << bits << " symmetric " << symmetric << " rule " << int(rule) << " row kind " << i % 9);
            REQUIRE(at_end <= at_start);
            if (i % 9 != 0 || bits > 4) continue;
            before += at_start;
            after += at_end;
            better += at_end < at_start;
            ++groups;
          }
  REQUIRE(better > groups / 2);
  REQUIRE(after < 0.85 * before);
}

TEST_CASE("searching the ends comes within 5 % of trying every zero point with 200 scales") {
  for (const int bits : {2, 3, 4}) {
    for (const bool symmetric : {false, true}) {
      any_scheme s = scheme_of(bits, symmetric);
      s.scale_dtype = dtype::bf16;
      double searched = 0.0, best_of_all = 0.0;
      for (unsigned seed = 1; seed <= 20; ++seed) {
        const auto w = weights<float>(1, 128, seed);
        const auto importance = some_importance(128);
        const auto start = fitted(w, per_channel, s, minmax{}).data[0];
        const auto found = fitted(w, per_channel, s, ends_search{}, importance.data()).data[0];
        searched += exact_error(w, found, s, importance.data());
        double least = inf;
        for (int32_t zero = symmetric ? mid_code(s) : 0; zero <= (symmetric ? mid_code(s) : max_code(s)); ++zero)
          for (int i = 0; i < 200; ++i) {
            const params p{stored_scale(start.scale * (0.3f + 0.004f * static_cast<float>(i)), s), zero};
            least = std::min(least, exact_error(w, p, s, importance.data()));
          }
        best_of_all += least;
      }
      INFO("bits " << bits << " symmetric " << symmetric << ": " << searched / best_of_all);
      REQUIRE(searched <= 1.05 * best_of_all);
    }
  }
}

TEST_CASE("the single-group forms are the matrix forms of one group") {
  const auto w = weights<float>(1, 77);
  const auto importance = some_importance(77);
  for (const bool symmetric : {false, true}) {
    const any_scheme s = scheme_of(3, symmetric, convention::autoawq);
    const auto whole = fitted(w, per_channel, s, ends_search{}, importance.data()).data[0];
    const auto one = host::fit_group(w.data.data(), 77, importance.data(), s, ends_search{});
    REQUIRE(one.scale == whole.scale);
    REQUIRE(one.zero == whole.zero);
    // Float terms: each is off by a few 2^-24 of itself.
    REQUIRE(host::group_error(w.data.data(), 77, importance.data(), one, s) ==
            Approx(exact_error(w, one, s, importance.data())).epsilon(1e-5));
    REQUIRE(host::group_error(w.data.data(), 77, nullptr, one, s) ==
            Approx(exact_error(w, one, s, nullptr)).epsilon(1e-5));
  }
}

TEST_CASE("NaN and infinities change neither a range nor a search") {
  const float odd[] = {nan_, inf, -inf};
  for (const bool symmetric : {false, true}) {
    const any_scheme s = scheme_of(4, symmetric);
    auto w = weights<float>(1, 96);
    auto importance = some_importance(96);
    std::vector<int> places = {0, 17, 40, 95};
    for (const int place : places) importance[place] = 0.0f, w.data[place] = 0.0f;
    const auto clean_range = fitted(w, per_channel, s, minmax{});
    const auto clean = fitted(w, per_channel, s, ends_search{}, importance.data());
    for (const int place : places) w.data[place] = odd[place % 3], importance[place] = 1.0f;
    require_equal(fitted(w, per_channel, s, minmax{}), clean_range);
    require_equal(fitted(w, per_channel, s, ends_search{}, importance.data()), clean);
    for (const int place : {3, 50}) importance[place] = nan_;
    const auto found = fitted(w, per_channel, s, ends_search{}, importance.data());
    for (const int place : {3, 50}) importance[place] = 0.0f;
    require_equal(fitted(w, per_channel, s, ends_search{}, importance.data()), found);
  }
}

TEST_CASE("a channel of no importance does not hold the range open") {
  auto w = weights<float>(1, 64);
  w.data[10] = 1.0f;  // 50 standard deviations
  std::vector<float> importance(64, 1.0f);
  const any_scheme s = scheme_of(4, false);
  const float kept = fitted(w, per_channel, s, ends_search{8, 0.9f, 3}, importance.data()).data[0].scale;
  importance[10] = 0.0f;
  const float freed = fitted(w, per_channel, s, ends_search{8, 0.9f, 3}, importance.data()).data[0].scale;
  REQUIRE(freed < 0.5f * kept);
}

TEST_CASE("patience is the whole matrix's: a group goes on improving as long as another does") {
  const any_scheme s = scheme_of(3, false);
  const mse_search hasty{100, 0.6, 2.4f, 2};
  int kept_going = 0;
  for (unsigned seed = 1; seed <= 30; ++seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    owned<float> alone(1, 64), both(2, 64);
    for (int i = 0; i < 64; ++i) {
      alone.data[i] = both.data[i] = normal(engine);
      both.data[64 + i] = std::pow(normal(engine), 3.0f);  // heavy tails, so shrinking pays for long
    }
    columns_agree(alone, per_channel, s, hasty);
    columns_agree(both, per_channel, s, hasty);
    const params by_itself = fitted(alone, per_channel, s, hasty).data[0];
    const params in_company = fitted(both, per_channel, s, hasty).data[0];
    REQUIRE(in_company.scale <= by_itself.scale);  // never stopped earlier than alone
    kept_going += in_company.scale < by_itself.scale;
  }
  REQUIRE(kept_going > 0);
}

TEST_CASE("a percentile of 100 is the range, and one below it leaves outliers out") {
  const auto w = weights<float>(7, 200);
  const any_scheme s = scheme_of(8, false);
  require_equal(fitted(w, per_group(50), s, percentile{100.0f}), fitted(w, per_group(50), s, minmax{}));
  owned<float> ramp(1, 101);
  for (int i = 0; i <= 100; ++i) ramp.data[i] = static_cast<float>(i - 50);
  const params p = fitted(ramp, per_channel, s, percentile{90.0f}).data[0];
  REQUIRE(p.scale == Approx(80.0 / 255));
  const params q = fitted(ramp, per_channel, scheme_of(8, true), percentile{90.0f}).data[0];
  REQUIRE(q.scale == Approx(45.0 / 127.5));
}

TEST_CASE("a matrix without elements is left alone") {
  const any_scheme s;
  for (const auto g : {per_tensor, per_channel, per_group(8)}) {
    REQUIRE_NOTHROW(fitted(owned<float>(0, 8), g, s, ends_search{}));
    REQUIRE_NOTHROW(fitted(owned<float>(3, 0), g, s, minmax{}));
    REQUIRE_NOTHROW(fitted(owned<float>(0, 8), g, s, llm_compressor_grid));
  }
}

TEST_CASE("losses of a ramp at 8 bits equal compressed-tensors' to 1e-10") {
  owned<float> x(6, 4);
  for (int i = 0; i < 24; ++i) x.data[i] = static_cast<float>(i) / 24.0f;
  const struct {
    group_shape shape;
    double symmetric, asymmetric;
  } losses[] = {{per_tensor, 4.8103e-6, 1.1258e-6},
                {per_channel, 2.5675e-6, 2.3696e-7},
                {per_group(2), 3.1282e-6, 1.3794e-7},
                {{3, 2}, 2.8968e-6, 5.6068e-7}};
  for (const auto& of : losses)
    for (const bool symmetric : {true, false}) {
      const any_scheme s = scheme_of(8, symmetric);
      const auto p = fitted(x, of.shape, s, minmax{});
      owned<uint8_t> q(6, 4);
      owned<float> read_back(6, 4);
      reference::quantize(std::as_const(x).view(), p.view(), q.view(), of.shape, s);
      reference::dequantize(std::as_const(q).view(), p.view(), read_back.view(), of.shape, s);
      const double loss = reference::mse(std::as_const(x).view(), std::as_const(read_back).view());
      INFO("group " << of.shape.rows << " x " << of.shape.cols << " symmetric " << symmetric);
      REQUIRE(std::fabs(loss - (symmetric ? of.symmetric : of.asymmetric)) < 1e-10);
    }
}

namespace {

/// Scales and zero points of a golden file's cases. `method` names the cases; `differs(row weights)` those groups that
/// are ours by design.
template <class Method, class Differs>
void golden_params(const std::string& file, const std::string& method, convention rule, Method m, Differs differs) {
  const auto source = golden("fit/weights.json")["weights"];
  const auto cases = golden("fit/" + file)["cases"];
  int checked = 0;
  for (const auto& of : cases) {
    if (of["method"] != method) continue;
    const std::string name = of["dtype"];
    const dtype type = name == "f32" ? dtype::f32 : name == "f16" ? dtype::f16 : dtype::bf16;
    const any_scheme s = scheme_of(of["bits"], of["symmetric"], rule, type);
    const group_shape g = per_group(of["group"] == 0 ? index_t(64) : of["group"].get<index_t>());
    owned<float> w(8, 64);
    for (index_t i = 0; i < 512; ++i) w.data[i] = round_to(type, source[i / 64][i % 64].get<float>());
    const auto p = fitted(w, g, s, m);
    for (std::size_t i = 0; i < p.data.size(); ++i) {
      const auto row = static_cast<index_t>(i) / p.cols, first = static_cast<index_t>(i) % p.cols * g.cols;
      const auto* const begin = w.data.data() + row * 64 + first;
      if (differs(s, begin, begin + std::min(g.cols, 64 - first))) continue;
      INFO(file << " " << method << " bits " << s.bits << " symmetric " << s.symmetric << " " << name << " group "
                << g.cols << ", number " << i << ": scale " << p.data[i].scale << ", theirs " << of["scales"][i]);
      REQUIRE(p.data[i].scale == round_to(type, of["scales"][i].get<float>()));
      REQUIRE(p.data[i].zero == of["zeros"][i].get<int32_t>());
    }
    ++checked;
  }
  REQUIRE(checked >= 12);
}

bool never(any_scheme, const float*, const float*) {
  return false;
}

}  // namespace

TEST_CASE("scales and zero points equal those of compressed-tensors in fp32, bf16 and fp16") {
  golden_params("compressed_tensors.json", "memoryless_minmax", convention::compressed_tensors, minmax{}, never);
}

TEST_CASE("searched scales and zero points equal those of llm-compressor's MSE observer") {
  golden_params("compressed_tensors.json", "memoryless_mse", convention::compressed_tensors, llm_compressor_grid,
                never);
}

TEST_CASE("scales and zero points equal those of AutoAWQ in fp32 and fp16") {
  golden_params("autoawq.json", "minmax", convention::autoawq, minmax{}, never);
}

TEST_CASE("scales and zero points equal those of GPTQModel, but for symmetric groups without negatives") {
  const auto one_sided = [](any_scheme s, const float* begin, const float* end) {
    return s.symmetric && *std::min_element(begin, end) >= 0.0f && *std::max_element(begin, end) > 0.0f;
  };
  golden_params("gptqmodel.json", "minmax", convention::gptq, minmax{}, one_sided);
  golden_params("gptqmodel.json", "mse", convention::gptq, gptq_grid, one_sided);
}

TEST_CASE("scales and zero points equal those of torchao in fp32 and bf16") {
  golden_params("torchao.json", "minmax", convention::torchao, minmax{}, never);
}

}  // namespace fit_tests

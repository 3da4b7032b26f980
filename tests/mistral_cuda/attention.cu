// SPDX-License-Identifier: Apache-2.0
#include "mistral/cuda/attention.cuh"

#include <cmath>

#include "mistral_cuda/support.hpp"

namespace attention_tests {

using namespace nibble;
using namespace nibble::test;
using nibble::mistral::cuda::head_layout;
namespace cuda_forward = nibble::mistral::cuda;

namespace {

using method = decltype(&cuda_forward::attention);

/// Sequences of these lengths, and what they look like to a launcher.
struct sequences {
  std::vector<index_t> starts = {0};
  index_t longest = 0;

  sequences(std::initializer_list<index_t> lengths) {
    for (const index_t length : lengths) {
      starts.push_back(starts.back() + length);
      longest = max(longest, length);
    }
  }
  index_t count() const { return static_cast<index_t>(starts.size()) - 1; }
  index_t tokens() const { return starts.back(); }
};

owned<bf16> random_qkv(const sequences& s, head_layout heads) {
  return stored_as<bf16>(random_matrix(s.tokens(), heads.width(), "qkv", 1.5f));
}

owned<bf16> run(method attend, const owned<bf16>& qkv, const sequences& s, head_layout heads, index_t window,
                index_t padding = 0, index_t offset = 0) {
  const device_matrix<bf16> there(qkv, qkv.cols + padding, offset);
  const device_array<index_t> starts(s.starts);
  const device_matrix<bf16> out(s.tokens(), heads.q_width(), heads.q_width() + padding, offset);
  REQUIRE(attend(there, heads, starts.data(), s.count(), s.longest, window, out, nullptr) == status::ok);
  return out.download();
}

/// The formula in double, a query at a time. Scores are sums of d products, off by (d + 2) 2^-24 of their magnitudes' sum
/// when added in float; a numerator 2^score then by ln 2 times that, 2^-21 for the exponential, and bf16 where mma
/// rounds it. Numerators weigh values: errors are relative to Σ numerator |value| / Σ numerator, sums of n add n 2^-24, and
/// the output is rounded to bf16.
void attention_agrees(const owned<bf16>& got, const owned<bf16>& qkv, const sequences& s, head_layout heads,
                      index_t window, double numerator_rounding) {
  const index_t d = heads.head_dim;
  const auto value = [&](index_t token, index_t col) { return double{float(qkv.view()(token, col))}; };
  std::vector<double> p;
  for (index_t sequence = 0; sequence < s.count(); ++sequence)
    for (index_t head = 0; head < heads.heads; ++head)
      for (index_t token = s.starts[std::size_t(sequence)]; token < s.starts[std::size_t(sequence) + 1]; ++token) {
        index_t first = s.starts[std::size_t(sequence)];
        if (window > 0) first = max(first, token + 1 - window);
        const index_t kv = head / (heads.heads / heads.kv_heads), k_col = heads.q_width() + kv * d;
        double sum = 0, largest = 0;
        p.assign(std::size_t(token + 1 - first), 0);
        for (index_t key = first; key <= token; ++key) {
          double score = 0, magnitude = 0;
          for (index_t i = 0; i < d; ++i) {
            const double product = value(token, head * d + i) * value(key, k_col + i);
            score += product, magnitude += std::fabs(product);
          }
          p[std::size_t(key - first)] = std::exp(score / std::sqrt(double(d)));
          sum += p[std::size_t(key - first)];
          largest = std::max(largest, magnitude / std::sqrt(double(d)));
        }
        const double n = double(token + 1 - first);
        const double bound =
            bf16_rounding + numerator_rounding + 2 * (double(d) + 2) * 0x1p-24 * largest + 0x1p-20 + 2 * n * 0x1p-24;
        for (index_t i = 0; i < d; ++i) {
          double out = 0, magnitude = 0;
          for (index_t key = first; key <= token; ++key) {
            const double each = p[std::size_t(key - first)] / sum * value(key, k_col + heads.kv_width() + i);
            out += each, magnitude += std::fabs(each);
          }
          const double own = double{float(got.view()(token, head * d + i))};
          if (!(std::fabs(own - out) <= bound * magnitude + 1e-30))
            FAIL("sequence " << sequence << ", head " << head << ", token " << token << ", column " << i << ": " << own
                             << " for " << out);
        }
      }
}

void both_agree(const sequences& s, head_layout heads, index_t window) {
  CAPTURE(s.starts, heads.heads, heads.kv_heads, heads.head_dim, window);
  const auto qkv = random_qkv(s, heads);
  attention_agrees(run(cuda_forward::attention_plain, qkv, s, heads, window), qkv, s, heads, window, 0);
  if (heads.head_dim % 8 != 0) return;
  attention_agrees(run(cuda_forward::attention_mma, qkv, s, heads, window), qkv, s, heads, window, bf16_rounding);
}

}  // namespace

TEST_CASE("attention is the softmax of the scores times the values, for heads of every size") {
  for (const index_t head_dim : {2, 6, 8, 16, 32, 34, 64, 72, 80, 96, 128, 136, 192, 256})
    both_agree({3, 70, 1}, {2, 1, head_dim}, 0);
}

TEST_CASE("attention over sequences of every remainder of a tile") {
  both_agree({1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33}, {1, 1, 16}, 0);
  for (const index_t length : {63, 64, 65, 127, 128, 129, 200}) both_agree({length, 5}, {1, 1, 32}, 0);
}

TEST_CASE("queries in groups share keys and values") {
  for (const auto& [heads, kv_heads] : {std::pair<index_t, index_t>{1, 1}, {2, 2}, {4, 2}, {4, 1}, {6, 2}, {8, 8}})
    both_agree({20, 4}, {heads, kv_heads, 16}, 0);
}

TEST_CASE("a sliding window hides the keys before it") {
  for (const index_t window : {1, 2, 3, 16, 31, 33, 63, 64, 65, 100, 1000}) both_agree({150, 9}, {2, 1, 16}, window);
}

TEST_CASE("strides and offsets decide how attention goes, not what it gives") {
  const sequences s{30, 2};
  const head_layout heads{2, 1, 16};
  const auto qkv = random_qkv(s, heads);
  const auto by_mma = run(cuda_forward::attention_mma, qkv, s, heads, 0);
  const auto plainly = run(cuda_forward::attention_plain, qkv, s, heads, 0);
  CHECK(same_bytes(run(cuda_forward::attention, qkv, s, heads, 0), by_mma));
  CHECK(same_bytes(run(cuda_forward::attention, qkv, s, heads, 0, 8, 16), by_mma));
  for (const index_t odd : {1, 2, 4}) {
    CHECK(same_bytes(run(cuda_forward::attention, qkv, s, heads, 0, odd), plainly));
    CHECK(same_bytes(run(cuda_forward::attention, qkv, s, heads, 0, 0, odd), plainly));
  }
}

TEST_CASE("attention gives the same bytes under every schedule") {
  const sequences s{70, 12, 33};
  const head_layout heads{2, 1, 24};
  const auto qkv = random_qkv(s, heads);
  for (const method attend : {&cuda_forward::attention_plain, &cuda_forward::attention_mma}) {
    const auto first = run(attend, qkv, s, heads, 20);
    under_schedules(4, [&] { REQUIRE(same_bytes(run(attend, qkv, s, heads, 20), first)); });
  }
}

TEST_CASE("scores as large as bf16 makes them neither overflow nor vanish") {
  const sequences s{40};
  const head_layout heads{1, 1, 16};
  auto qkv = random_qkv(s, heads);
  // A score of 0 and one far below: all weight is on the keys that have the query's sign.
  for (index_t token = 0; token < 40; ++token)
    for (index_t i = 0; i < 16; ++i) {
      qkv.view()(token, i) = bf16(i == 0 ? 1e4f : 0.0f);
      qkv.view()(token, 16 + i) = bf16(i == 0 && token % 2 == 1 ? -1e4f : 0.0f);
    }
  for (const method attend : {&cuda_forward::attention_plain, &cuda_forward::attention_mma}) {
    const auto got = run(attend, qkv, s, heads, 0);
    for (index_t token = 0; token < 40; ++token)
      for (index_t i = 0; i < 16; ++i) {
        double sum = 0, magnitude = 0;
        for (index_t key = 0; key <= token; key += 2)
          sum += double{float(qkv.view()(key, 32 + i))}, magnitude += std::fabs(double{float(qkv.view()(key, 32 + i))});
        const double count = double(token / 2 + 1);
        REQUIRE(double{float(got.view()(token, i))} ==
                Approx(sum / count).margin(bf16_rounding * magnitude / count + 1e-6));
      }
  }
}

TEST_CASE("NaN and infinity in one sequence stay there, and reach every later token of it") {
  const sequences s{9, 80, 6};
  const head_layout heads{2, 1, 16};
  for (const index_t col : {0, 32, 48})  // a query, a key, a value
    for (const float bad : {not_a_number, std::numeric_limits<float>::infinity()})
      for (const method attend : {&cuda_forward::attention_plain, &cuda_forward::attention_mma}) {
        auto qkv = random_qkv(s, heads);
        const auto clean = run(attend, qkv, s, heads, 0);
        for (index_t i = 0; i < 16; ++i) qkv.view()(9 + 70, col + i) = bf16(bad);
        const auto got = run(attend, qkv, s, heads, 0);
        for (index_t token = 0; token < s.tokens(); ++token)
          for (index_t i = 0; i < 32; ++i) {
            const float own = float(got.view()(token, i)), before = float(clean.view()(token, i));
            if (token < 9 || token >= 89) REQUIRE(own == before);
            if (token == 79 && i < 16) REQUIRE_FALSE(std::isfinite(own));
            if (token > 79 && token < 89 && col == 48) REQUIRE_FALSE(std::isfinite(own));
          }
      }
}

TEST_CASE("attention refuses what it cannot do, and says why") {
  const head_layout heads{2, 1, 8};
  const device_matrix<bf16> qkv(4, 32), out(4, 16);
  const device_array<index_t> starts(std::vector<index_t>{0, 4});
  const matrix<const bf16> in = qkv.view();
  const matrix<bf16> to = out.view();
  struct arguments {
    matrix<const bf16> qkv;
    head_layout heads;
    const index_t* starts;
    index_t sequences, longest, window;
    matrix<bf16> out;
  };
  const arguments good{in, heads, starts.data(), 1, 4, 0, to};
  const auto told = [](method attend, const arguments& a) {
    return attend(a.qkv, a.heads, a.starts, a.sequences, a.longest, a.window, a.out, nullptr);
  };
  for (const method attend : {&cuda_forward::attention, &cuda_forward::attention_plain, &cuda_forward::attention_mma}) {
    const auto with = [&](auto change) {
      arguments a = good;
      change(a);
      return told(attend, a);
    };
    CHECK(told(attend, good) == status::ok);
    CHECK(with([](auto& a) { a.heads = {2, 0, 8}; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.heads = {0, 1, 8}; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.heads = {3, 2, 8}; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.heads = {2, 1, 7}; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.heads = {2, 1, 0}; }) == status::bad_shape);
    CHECK(with([](auto& a) {
            a.heads = {2, 1, 264};
            a.qkv = {a.qkv.data, 1, 4 * 264}, a.out = {a.out.data, 1, 2 * 264};
          }) == status::bad_shape);
    CHECK(with([](auto& a) { a.window = -1; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.qkv.cols = 24; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.out.cols = 8; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.out.rows = 3; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.qkv.stride = 31; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.out.stride = 15; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.qkv.data = nullptr; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.starts = nullptr; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.sequences = 0; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.longest = 0; }) == status::bad_shape);
    CHECK(with([](auto& a) { a.qkv.data = askew(a.qkv.data); }) == status::misaligned);
    CHECK(with([](auto& a) { a.out.data = askew(a.out.data); }) == status::misaligned);
    CHECK(with([](auto& a) { a.starts = askew(a.starts); }) == status::misaligned);
    CHECK(with([](auto& a) { a.sequences = index_t{1} << 40; }) == status::too_large);
    CHECK(with([](auto& a) { a.longest = index_t{1} << 50; }) == status::too_large);
    CHECK(with([](auto& a) { a.qkv.rows = a.out.rows = 0, a.starts = nullptr; }) == status::ok);
  }
  arguments six = good;
  six.heads = {4, 1, 6}, six.qkv.cols = 36, six.qkv.stride = 36, six.out.cols = 24, six.out.stride = 24;
  CHECK(told(&cuda_forward::attention_mma, six) == status::bad_shape);
  arguments odd = good;
  odd.qkv.data += 1;
  CHECK(told(&cuda_forward::attention_mma, odd) == status::misaligned);
  odd = good, odd.out.data += 1;
  CHECK(told(&cuda_forward::attention_mma, odd) == status::misaligned);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device old(sm);
    CHECK(told(&cuda_forward::attention_plain, good) == status::unsupported_device);
    CHECK(told(&cuda_forward::attention_mma, good) == status::unsupported_device);
  }
#endif
}

}  // namespace attention_tests

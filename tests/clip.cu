// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/clip.cuh"

#include <limits>

#include "nibble/reference/awq.hpp"
#include "support/activations.hpp"
#include "support/device.hpp"
#include "support/linears.hpp"

namespace clip_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

/// A clip search's input, and what the reference chooses: G is in float for both.
struct problem {
  owned<float> w, g;
  owned<double> exact;
  std::vector<float> s;
  index_t group;
  any_scheme scheme;
  owned<params> start, expected;

  problem(index_t rows, index_t cols, index_t group_, any_scheme scheme_, int steps = 6)
      : w(heavy_tailed(rows, cols)),
        g(cols, cols),
        exact(exact_gram(activations(cols + 40, cols), 0.25f)),
        s(scales(cols)),
        group(group_),
        scheme(scheme_),
        start(rows, per_group(group).across(cols), params{}),
        expected(start) {
    for (size_t i = 0; i < g.data.size(); ++i) {
      g.data[i] = static_cast<float>(exact.data[i]);
      exact.data[i] = static_cast<double>(g.data[i]);
    }
    reference::fit(std::as_const(w).view(), start.view(), per_group(group), scheme, minmax{}, nullptr);
    expected = start;
    reference::clip_under_gram(std::as_const(w).view(), s.data(), std::as_const(exact).view(), group, scheme,
                               expected.view(), steps);
  }
  owned<params> on_device(int steps = 6) const {
    const device_matrix<float> weights(w, w.cols + 3), gram(g, g.cols + 1);
    const device_array<float> by(s);
    const device_matrix<params> p(start, start.cols + 1);
    REQUIRE(kernels::clip_under_gram(weights.const_view(), by.data(), gram.const_view(), group, scheme, p.view(), steps,
                                     nullptr) == status::ok);
    return p.download();
  }
  /// Groups whose range is not the reference's; each must lose as little, but for the rounding of sums in float.
  int others(const owned<params>& got) const {
    const index_t width = per_group(group).width(w.cols);
    int count = 0;
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t i = 0; i < start.cols; ++i) {
        const params ours = got.view()(row, i), theirs = expected.view()(row, i);
        if (ours.scale == theirs.scale && ours.zero == theirs.zero) continue;
        ++count;
        const index_t first = i * width, size = min(width, w.cols - first);
        const auto block = exact.view().rows_at(first, size).cols_at(first, size);
        const auto loss = [&](params of) {
          return reference::detail::group_loss(w.view().row(row) + first, &s[static_cast<size_t>(first)], block, of,
                                               scheme);
        };
        CHECK(loss(ours) <= loss(start.view()(row, i)) * (1 + 1e-4));
        CHECK(loss(ours) <= loss(theirs) * 1.3);  // a tie that went the other way may lead to other neighbours
      }
    return count;
  }
};

}  // namespace

TEST_CASE("the kernel's ranges under the Gram matrix are the reference's but for a share of ties") {
  int groups = 0, others = 0;
  const auto add = [&](const problem& of) {
    CAPTURE(of.w.rows, of.w.cols, of.group, of.scheme.bits, of.scheme.symmetric);
    groups += static_cast<int>(of.start.data.size());
    others += of.others(of.on_device());
  };
  for (const int bits : {2, 3, 4, 8})
    for (const bool symmetric : {false, true}) {
      add(problem(5, 63, 32, scheme_of(bits, symmetric)));
      add(problem(70, 40, 16, scheme_of(bits, symmetric)));
      add(problem(3, 64, 64, scheme_of(bits, symmetric)));
    }
  add(problem(1, 1, -1, scheme_of(4, false)));
  add(problem(257, 8, 4, scheme_of(3, false)));
  add(problem(130, 50, 50, scheme_of(3, false)));
  add(problem(66, 128, 128, scheme_of(4, false)));
  add(problem(2, 129, -1, scheme_of(4, false)));  // blocks that do not fit shared memory
  add(problem(3, 300, 160, scheme_of(3, true)));
  for (const convention rule : {convention::autoawq, convention::gptq, convention::torchao}) {
    any_scheme scheme = scheme_of(4, false, rule);
    scheme.scale_dtype = dtype::f16;
    add(problem(8, 64, 32, scheme));
  }
  INFO(others << " of " << groups << " groups");
  REQUIRE(groups > 1500);
  REQUIRE(others * 1000 <= groups);
}

TEST_CASE("the kernel's grid of ranges has as many steps as asked for") {
  for (const int steps : {1, 3, 7}) {
    const problem of(20, 32, 32, scheme_of(3, false), steps);
    REQUIRE(of.others(of.on_device(steps)) == 0);
  }
}

TEST_CASE("ranges that lose nothing stay, and so do all under a Gram matrix that overflowed or was never filled") {
  const any_scheme scheme = scheme_of(4, false);
  const auto unchanged = [&](const owned<float>& w, const owned<params>& p, float of_gram) {
    const device_matrix<float> weights(w), gram(owned<float>(w.cols, w.cols, of_gram));
    const device_array<float> s(std::vector<float>(static_cast<size_t>(w.cols), 1.0f));
    const device_matrix<params> there(p);
    REQUIRE(kernels::clip_under_gram(weights.const_view(), s.data(), gram.const_view(), 32, scheme, there.view(), 6,
                                     nullptr) == status::ok);
    const auto got = there.download();
    for (size_t i = 0; i < p.data.size(); ++i)
      REQUIRE((got.data[i].scale == p.data[i].scale && got.data[i].zero == p.data[i].zero));
  };
  owned<float> exact(3, 64);
  for (size_t i = 0; i < exact.data.size(); ++i)
    exact.data[i] = 0.25f * static_cast<float>(static_cast<int>(i % 16) - 8);
  unchanged(exact, owned<params>(3, 2, params{0.25f, 8}), 1.0f);
  const problem heavy(5, 64, 32, scheme);
  unchanged(heavy.w, heavy.start, std::numeric_limits<float>::infinity());
  unchanged(heavy.w, heavy.start, 0.0f);
}

TEST_CASE("the kernel's ranges are the same bytes under every schedule and architecture") {
  for (const index_t group : {16, 150}) {
    const problem of(5, 150, group, scheme_of(3, true), 2);
    const auto first = of.on_device(2);
    const auto run = [&] {
      const auto again = of.on_device(2);
      REQUIRE(std::memcmp(again.data.data(), first.data.data(), first.data.size() * sizeof(params)) == 0);
    };
    under_schedules(3, run);
    on_architectures(run);
  }
}

TEST_CASE("the kernel of clip_under_gram refuses what it cannot do, and says why") {
  const device_matrix<float> w(owned<float>(4, 32, 1.0f)), g(owned<float>(32, 32, 0.0f));
  const device_matrix<params> p(owned<params>(4, 2, params{1.0f, 8}));
  const device_array<float> s(std::vector<float>(32, 1.0f));
  const auto clip = [&](matrix<const float> of, const float* by, matrix<const float> under, matrix<params> to,
                        index_t group = 16, int bits = 4, int steps = 6) {
    return kernels::clip_under_gram(of, by, under, group, scheme_of(bits, false), to, steps, nullptr);
  };
  const matrix<const float> all = w;
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(w.view().data) + 2);
  CHECK(clip(all, s.data(), g, p) == status::ok);
  CHECK(clip(all, s.data(), g, p, 16, 0) == status::bad_bits);
  CHECK(clip(all, s.data(), g, p, 16, 9) == status::bad_bits);
  CHECK(clip(all, s.data(), g, p, 0) == status::bad_group);
  CHECK(clip(all, s.data(), g, p, -2) == status::bad_group);
  CHECK(clip(all, s.data(), g, p, 8) == status::bad_shape);
  CHECK(clip(all, s.data(), g, p, 16, 4, 0) == status::bad_shape);
  CHECK(clip(all, nullptr, g, p) == status::bad_shape);
  CHECK(clip(all, s.data(), g.const_view().rows_at(0, 31), p) == status::bad_shape);
  CHECK(clip(all, s.data(), g.const_view().cols_at(0, 31), p) == status::bad_shape);
  CHECK(clip({all.data, 4, 32, 31}, s.data(), g, p) == status::bad_shape);
  CHECK(clip({nullptr, 4, 32}, s.data(), g, p) == status::bad_shape);
  CHECK(clip(all, s.data(), g, {nullptr, 4, 2}) == status::bad_shape);
  CHECK(clip({askew, 4, 32}, s.data(), g, p) == status::misaligned);
  CHECK(clip(all, s.data(), {askew, 32, 32}, p) == status::misaligned);
  CHECK(clip(all, askew, g, p) == status::misaligned);
  CHECK(clip(all, s.data(), g, {reinterpret_cast<params*>(askew), 4, 2}) == status::misaligned);
  CHECK(clip({all.data, index_t{1} << 50, 1}, s.data(), g.const_view().rows_at(0, 1).cols_at(0, 1),
             {p.view().data, index_t{1} << 50, 1}) == status::too_large);
  CHECK(clip({nullptr, 0, 32}, s.data(), g, {nullptr, 0, 2}) == status::ok);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(clip(all, s.data(), g, p) == status::unsupported_device);
  }
#endif
}

}  // namespace clip_tests

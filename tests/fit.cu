// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/fit.cuh"

#include <sys/mman.h>

#include "nibble/reference/fit.hpp"
#include "support/device.hpp"
#include "support/weights.hpp"

namespace fit_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr convention conventions[] = {convention::compressed_tensors, convention::autoawq, convention::gptq,
                                      convention::torchao};
constexpr dtype dtypes[] = {dtype::f32, dtype::f16, dtype::bf16};
constexpr group_shape shapes[] = {per_tensor, per_channel, per_group(32), per_group(19),  per_group(16), per_group(1),
                                  {3, 7},     {-1, 16},    {2, -1},       per_group(128), per_group(8),  {4, 32}};

void require_same(const owned<params>& got, const owned<params>& expected) {
  REQUIRE(got.data.size() == expected.data.size());
  for (std::size_t i = 0; i < got.data.size(); ++i) {
    CAPTURE(i, got.data[i].scale, got.data[i].zero, expected.data[i].scale, expected.data[i].zero);
    REQUIRE(bit_cast<uint32_t>(got.data[i].scale) == bit_cast<uint32_t>(expected.data[i].scale));
    REQUIRE(got.data[i].zero == expected.data[i].zero);
  }
}

/// Whether device::power has the bits of the reference's std::pow.
#if defined(NIBBLE_SIMT)
constexpr bool powers_are_the_references = true;
#else
constexpr bool powers_are_the_references = false;
#endif

std::vector<float> some_importance(index_t cols) {
  std::mt19937 engine(9);
  std::vector<float> importance(static_cast<std::size_t>(cols));
  for (auto& x : importance) x = std::exp(std::normal_distribution<float>()(engine));
  return importance;
}

template <class Scheme, class T, class Method>
status fit_there(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, Method m, const float* importance) {
  return kernels::fit(w, p, g, s, m, importance, nullptr);
}
template <class Scheme, class T>
status fit_there(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, mse_search m, const float* importance) {
  index_t bytes = 0;
  REQUIRE(kernels::fit(w, p, g, s, m, importance, nullptr, bytes, nullptr) == status::ok);
  const device_array<unsigned char> workspace(bytes);
  const status done = kernels::fit(w, p, g, s, m, importance, workspace.data(), bytes, nullptr);
  static_cast<void>(workspace.download());  // checks its guard bands
  return done;
}

template <class T, class Scheme, class Method>
void kernel_agrees(const owned<T>& w, group_shape g, Scheme s, Method m, const std::vector<float>& importance = {},
                   index_t padding = 0, index_t offset = 0) {
  CAPTURE(w.rows, w.cols, g.rows, g.cols, s.bits, s.symmetric, int(s.rule), int(s.scale_dtype), int(s.compute_dtype),
          sizeof(T), padding, offset);
  owned<params> expected(g.down(w.rows), g.across(w.cols));
  reference::fit(w.view(), expected.view(), g, s, m, importance.empty() ? nullptr : importance.data());
  const device_matrix<T> there(w, w.cols + padding, offset);
  const device_array<float> weight(importance);
  const device_matrix<params> p(expected.rows, expected.cols, expected.cols + padding % 3, offset % 2);
  const float* const weights_there = importance.empty() ? nullptr : weight.data();
  REQUIRE(fit_there(there.const_view(), p.view(), g, s, m, weights_there) == status::ok);
  require_same(p.download(), expected);
}

/// The dtype of the weights by `turn`.
template <class Scheme, class Method>
void kernel_agrees_in_turn(int turn, index_t rows, index_t cols, group_shape g, Scheme s, Method m,
                           const std::vector<float>& importance = {}) {
  if (turn % 3 == 0) kernel_agrees(nasty_weights<float>(rows, cols), g, s, m, importance);
  if (turn % 3 == 1) kernel_agrees(weights<fp16>(rows, cols), g, s, m, importance);
  if (turn % 3 == 2) kernel_agrees(nasty_weights<bf16>(rows, cols), g, s, m, importance);
}

template <class Scheme, class Method>
void kernel_agrees_in_all_dtypes(index_t rows, index_t cols, group_shape g, Scheme s, Method m,
                                 const std::vector<float>& importance = {}) {
  kernel_agrees(nasty_weights<float>(rows, cols), g, s, m, importance);
  kernel_agrees(weights<fp16>(rows, cols), g, s, m, importance);
  kernel_agrees(nasty_weights<bf16>(rows, cols), g, s, m, importance);
}

/// f(scheme, group shape, turn) for every convention, width and pair of dtypes, group shapes in turn.
template <class F>
void each_scheme(F f) {
  int turn = 0;
  for (const auto rule : conventions)
    for (const auto stored : dtypes)
      for (const auto compute : dtypes)
        for (const bool symmetric : {false, true}) {
          f(any_scheme{1 + turn % 8, symmetric, rule, stored, compute}, shapes[turn % 12], turn);
          ++turn;
        }
}

}  // namespace

TEST_CASE("kernel fit by the range is the reference's under every scheme and group shape") {
  each_scheme(
      [](any_scheme s, group_shape g, int turn) { kernel_agrees_in_all_dtypes(9, 61 + turn % 40, g, s, minmax{}); });
  for (const group_shape g : shapes) kernel_agrees_in_all_dtypes(9, 256, g, scheme<4>{}, minmax{});
}

TEST_CASE("kernel fit takes every remainder of rows, columns and groups") {
  for (index_t cols = 1; cols <= 40; ++cols)
    kernel_agrees(weights<bf16>(3, cols), per_group(16), scheme<4>{}, minmax{});
  for (index_t width = 1; width <= 40; ++width)
    kernel_agrees(weights<bf16>(3, 80), per_group(width), scheme<4>{}, minmax{});
  for (index_t rows = 1; rows <= 40; ++rows) kernel_agrees(weights<fp16>(rows, 1), per_channel, scheme<4>{}, minmax{});
  for (const index_t rows : {127, 128, 129, 1025})
    kernel_agrees(weights<fp16>(rows, 8), per_channel, scheme<4>{}, minmax{});
  for (const index_t cols : {128, 129, 256, 257, 1024, 1025, 2047, 2048, 2049, 4100})
    for (const group_shape g : {per_channel, per_tensor, per_group(128)})
      kernel_agrees(weights<float>(5, cols), g, scheme<4>{}, minmax{});
}

TEST_CASE("kernel fit takes any stride and offset, aligned for wide accesses or not") {
  for (const index_t offset : {0, 1, 2, 4, 8})
    for (const index_t padding : {0, 1, 4, 8})
      for (const group_shape g : {per_group(32), per_channel, per_tensor}) {
        kernel_agrees(weights<bf16>(6, 320), g, scheme<4>{}, minmax{}, {}, padding, offset);
        kernel_agrees(weights<float>(6, 320), g, scheme<4>{}, minmax{}, {}, padding, offset);
      }
}

TEST_CASE("kernel fit finds the least and the greatest weight wherever they lie") {
  for (const group_shape g : {per_group(64), per_channel, per_tensor, group_shape{2, 40}})
    for (index_t at = 0; at < 3 * 320; at += 7) {
      owned<bf16> w(3, 320, bf16(0.01f));
      w.data[static_cast<std::size_t>(at)] = bf16(-3.0f);
      w.data[static_cast<std::size_t>((at + 500) % 960)] = bf16(2.0f);
      kernel_agrees(w, g, scheme<4>{}, minmax{});
    }
}

TEST_CASE("kernel fit shares a large group out over blocks, under every schedule alike") {
  under_schedules(4, [] {
    kernel_agrees(nasty_weights<bf16>(300, 700), per_tensor, any_scheme{}, minmax{});
    kernel_agrees(nasty_weights<float>(3, 70001), per_channel, any_scheme{}, minmax{});
    kernel_agrees(nasty_weights<fp16>(5, 70001), group_shape{2, 66000}, any_scheme{}, minmax{}, {}, 3, 1);
    kernel_agrees(nasty_weights<float>(70, 2100), group_shape{35, 2000}, any_scheme{}, minmax{});
    owned<float> none(70, 1100, std::numeric_limits<float>::quiet_NaN());
    kernel_agrees(none, per_tensor, any_scheme{}, minmax{});
    kernel_agrees(nasty_weights<float>(9, 2100), per_channel, any_scheme{}, minmax{});
    kernel_agrees(nasty_weights<bf16>(9, 384), per_group(128), any_scheme{}, minmax{});
  });
}

TEST_CASE("kernel searches of the ends are the reference's under every scheme and group shape") {
  each_scheme([](any_scheme s, group_shape g, int turn) {
    const index_t cols = 33 + turn % 40;
    const auto importance = turn % 5 == 0 ? std::vector<float>{} : some_importance(cols);
    kernel_agrees_in_turn(turn / 2, 5, cols, g, s, turn % 4 < 2 ? ends_search{2, 0.5f, 4} : ends_search{3, 0.4f, 2},
                          importance);
  });
  for (const group_shape g : shapes)
    kernel_agrees(nasty_weights<bf16>(4, 128), g, scheme<4>{}, ends_search{}, some_importance(128));
}

TEST_CASE("kernel searches of a grid are the reference's under every scheme and group shape") {
  each_scheme([](any_scheme s, group_shape g, int turn) {
    const index_t cols = 33 + turn % 40;
    const auto importance = turn % 5 == 0 ? std::vector<float>{} : some_importance(cols);
    const mse_search grids[] = {{10, 0.8, 2.4f, 2}, autoawq_grid, {50, 0.7, 2.0f, 3}, llm_compressor_grid};
    const mse_search m = grids[turn % 4];
    if (m.norm == 2.0f || powers_are_the_references) kernel_agrees_in_turn(turn / 2, 5, cols, g, s, m, importance);
  });
}

TEST_CASE("kernel fit by percentiles is the reference's under every scheme and group shape") {
  each_scheme([](any_scheme s, group_shape g, int turn) {
    const float shares[] = {99.9f, 99.0f, 50.0f, 100.0f, 73.5f};
    kernel_agrees_in_turn(turn / 2, 5, 33 + turn % 40, g, s, percentile{shares[turn % 5]});
  });
  for (const group_shape g : shapes) kernel_agrees(nasty_weights<bf16>(4, 128), g, scheme<4>{}, percentile{95.0f});
}

TEST_CASE("kernel searches take every size of group") {
  for (index_t cols = 1; cols <= 40; ++cols)
    kernel_agrees(weights<float>(3, cols), per_group(17), scheme<3>{}, ends_search{2, 0.5f, 1}, some_importance(cols));
  for (const index_t cols : {255, 256, 257, 272, 1023, 1024, 1025, 2050}) {
    const auto w = weights<bf16>(2, cols, static_cast<unsigned>(cols));
    kernel_agrees(w, per_channel, scheme<3>{}, ends_search{}, some_importance(cols));
    kernel_agrees(w, per_channel, scheme<3, true>{}, mse_search{20, 0.9, 2.0f, 2}, some_importance(cols));
    kernel_agrees(w, per_tensor, scheme<3>{}, percentile{98.0f});
  }
  for (const index_t width : {1, 3, 15, 16, 17})
    kernel_agrees(weights<float>(400, 2 * width), {300, width}, scheme<4>{}, ends_search{1, 0.5f, 2},
                  some_importance(2 * width));
  kernel_agrees(weights<bf16>(150, 120), per_tensor, scheme<4>{}, ends_search{2, 0.5f, 1}, some_importance(120));
  kernel_agrees(weights<bf16>(150, 120), per_tensor, scheme<4>{}, percentile{99.9f});
}

TEST_CASE("kernel searches give the same bytes under every schedule") {
  under_schedules(4, [] {
    for (const group_shape g : {per_group(64), per_channel, per_tensor}) {
      const auto w = nasty_weights<bf16>(5, 300);
      kernel_agrees(w, g, any_scheme{}, ends_search{1, 0.3f, 1}, some_importance(300));
      kernel_agrees(w, g, any_scheme{}, mse_search{10, 0.8, 2.0f, 2});
      kernel_agrees(w, g, any_scheme{}, percentile{97.0f});
    }
  });
}

TEST_CASE("kernel searches of a grid stop where the whole matrix has lost patience") {
  // Most groups are best as they are; one improves late, and lends all others its patience.
  any_scheme s;
  s.bits = 2;
  for (const int patience : {1, 2, 3, 5, 8, 39, 40, 41, 0})
    for (const index_t late : {-1, 0, 3}) {
      CAPTURE(patience, late);
      auto w = weights<float>(6, 64, 5);
      for (index_t row = 0; row < 6; ++row)
        for (index_t col = 0; col < 64; ++col) {
          float& x = w.data[static_cast<std::size_t>(row * 64 + col)];
          if (row != late) x = static_cast<float>(col % 4) * 0.1f;
        }
      kernel_agrees(w, per_group(32), s, mse_search{50, 0.8, 2.0f, patience});
    }
  kernel_agrees(weights<float>(3, 64), per_group(32), s, mse_search{10, 0.05, 2.0f, 1});
}

/// All weights but two lie at 0.64 of the range, between two levels of 3 bits: a search's first steps make that worse, and from
/// 0.76 of the range on it is better than at the start.
owned<float> late_improvers(index_t cols) {
  owned<float> w(2, cols);
  for (index_t row = 0; row < 2; ++row)
    for (index_t col = 0; col < cols; ++col)
      w.view()(row, col) = (col % 2 == 0 ? 1.0f : -1.0f) * (col < 2 ? 1.0f : 0.64f);
  return w;
}

TEST_CASE("kernel searches of a grid leave what improves only after patience ended") {
  const auto w = late_improvers(32);
  any_scheme s;
  s.bits = 3;
  const auto found = [&](int patience) {
    owned<params> p(2, 1, params{});
    reference::fit(std::as_const(w).view(), p.view(), per_channel, s, mse_search{50, 0.8, 2.0f, patience});
    return p.data[0].scale;
  };
  REQUIRE(found(1) > 1.2f * found(0));  // else nothing here tells whether the search ended
  for (int patience = 0; patience <= 40; ++patience)
    kernel_agrees(w, per_channel, s, mse_search{50, 0.8, 2.0f, patience});
}

TEST_CASE("kernel searches try no candidate past the last, and those of a long grid at their own steps") {
  any_scheme s;
  s.bits = 3;
  for (const index_t cols : {32, 512}) {
    kernel_agrees(late_improvers(cols), per_channel, s, mse_search{50, 0.2, 2.0f, 0});
    kernel_agrees(late_improvers(cols), per_channel, s, ends_search{4, 0.2f, 0});
    for (const int patience : {0, 30, 47, 48, 100})
      kernel_agrees(late_improvers(cols), per_channel, s, mse_search{200, 0.8, 2.0f, patience});
  }
}

TEST_CASE("kernel searches of a grid of as many steps as words have bits") {
  for (const int patience : {1, 5, 31, 32, 0})
    for (const int steps : {31, 32, 33, 64})
      kernel_agrees(weights<float>(6, 96, 5), per_group(32), any_scheme{}, mse_search{2 * steps, 0.5, 2.0f, patience});
}

TEST_CASE("kernel searches leave out weights that are not finite and importances that are not positive numbers") {
  auto importance = some_importance(96);
  importance[3] = -1.0f;
  importance[10] = std::numeric_limits<float>::quiet_NaN();
  importance[20] = std::numeric_limits<float>::infinity();
  importance[30] = 0.0f;
  for (const group_shape g : {per_group(32), per_tensor, group_shape{-1, 48}}) {
    kernel_agrees_in_all_dtypes(10, 96, g, any_scheme{}, ends_search{}, importance);
    kernel_agrees_in_all_dtypes(10, 96, g, any_scheme{}, autoawq_grid, importance);
  }
  owned<float> none(3, 40, std::numeric_limits<float>::quiet_NaN());
  for (const group_shape g : {per_group(32), per_tensor}) {
    kernel_agrees(none, g, any_scheme{}, ends_search{});
    kernel_agrees(none, g, any_scheme{}, autoawq_grid);
    kernel_agrees(none, g, any_scheme{}, percentile{});
  }
}

#if defined(NIBBLE_SIMT)
TEST_CASE("kernel fit reaches rows that lie more than 2^32 elements apart") {
  // Memory that is only reserved: the rows' own pages are the only ones that are ever there.
  const index_t stride = (index_t{1} << 32) + 24, cols = 160;
  const std::size_t bytes = static_cast<std::size_t>(3 * stride + cols) * sizeof(bf16);
  void* const there =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(there != MAP_FAILED);
  const matrix<bf16> far(static_cast<bf16*>(there), 4, cols, stride);
  const auto w = weights<bf16>(4, cols, 3);
  for (index_t row = 0; row < 4; ++row)
    for (index_t col = 0; col < cols; ++col) far(row, col) = w.view()(row, col);
  for (const group_shape g : {per_group(32), per_channel, per_tensor, group_shape{2, 24}}) {
    const owned<params> none(g.down(4), g.across(cols));
    owned<params> expected = none;
    reference::fit(w.view(), expected.view(), g, any_scheme{}, minmax{});
    const device_matrix<params> p(none);
    REQUIRE(fit_there(matrix<const bf16>(far), p.view(), g, any_scheme{}, minmax{}, nullptr) == status::ok);
    require_same(p.download(), expected);
    reference::fit(w.view(), expected.view(), g, any_scheme{}, ends_search{1, 0.5f, 0});
    REQUIRE(fit_there(matrix<const bf16>(far), p.view(), g, any_scheme{}, ends_search{1, 0.5f, 0}, nullptr) ==
            status::ok);
    require_same(p.download(), expected);
    reference::fit(w.view(), expected.view(), g, any_scheme{}, percentile{90.0f});
    REQUIRE(fit_there(matrix<const bf16>(far), p.view(), g, any_scheme{}, percentile{90.0f}, nullptr) == status::ok);
    require_same(p.download(), expected);
  }
  ::munmap(there, bytes);
}
#endif

TEST_CASE("kernel fit refuses what it cannot do, and says why") {
  const device_matrix<float> w(4, 32);
  const device_matrix<params> p(4, 2);
  const device_array<unsigned char> room(1);
  const auto refused = [&](matrix<float> w_, matrix<params> p_, group_shape g, any_scheme s = {}) {
    const matrix<const float> of(w_);
    index_t bytes = 1;
    const status said = kernels::fit(of, p_, g, s, minmax{}, nullptr, nullptr);
    CHECK(kernels::fit(of, p_, g, s, ends_search{}, nullptr, nullptr) == said);
    CHECK(kernels::fit(of, p_, g, s, gptq_grid, nullptr, room.data(), bytes, nullptr) == said);
    CHECK(kernels::fit(of, p_, g, s, percentile{}, nullptr, nullptr) == said);
    return said;
  };
  const group_shape g = per_group(16);
  CHECK(refused({nullptr, 0, 8}, {nullptr, 0, 1}, per_channel) == status::ok);
  CHECK(refused({nullptr, 8, 0}, {nullptr, 8, 0}, per_group(4)) == status::ok);
  any_scheme s;
  s.bits = 0;
  CHECK(refused(w, p, g, s) == status::bad_bits);
  s.bits = 9;
  CHECK(refused(w, p, g, s) == status::bad_bits);
  for (const group_shape bad : {group_shape{1, 0}, {0, 16}, {1, -2}, {-2, 16}})
    CHECK(refused(w, p, bad) == status::bad_group);
  CHECK(refused(w, p, per_group(8)) == status::bad_shape);
  CHECK(refused(w, p, {2, 16}) == status::bad_shape);
  CHECK(refused(w.view().rows_at(0, 3), p, g) == status::bad_shape);
  CHECK(refused({w.view().data, -1, 32}, p, g) == status::bad_shape);
  CHECK(refused({w.view().data, 4, 32, 31}, p, g) == status::bad_shape);
  CHECK(refused(w, {p.view().data, 4, 2, 1}, g) == status::bad_shape);
  CHECK(refused({nullptr, 4, 32}, p, g) == status::bad_shape);
  CHECK(refused(w, {nullptr, 4, 2}, g) == status::bad_shape);
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(w.view().data) + 2);
  CHECK(refused({askew, 4, 32}, p, g) == status::misaligned);
  const auto askew_params = reinterpret_cast<params*>(reinterpret_cast<char*>(p.view().data) + 2);
  CHECK(refused(w, {askew_params, 4, 2}, g) == status::misaligned);
  const index_t many = index_t{1} << 50;
  CHECK(refused({w.view().data, many, 1}, {p.view().data, many, 1}, per_channel) == status::too_large);
  CHECK(refused({w.view().data, many, 300, 300}, {p.view().data, many, 1}, per_channel) == status::too_large);
  const matrix<const float> wide(w.view().data, 1 << 20, many);
  CHECK(kernels::fit(wide, {p.view().data, 1 << 20, 1}, per_channel, any_scheme{}, minmax{}, nullptr, nullptr) ==
        status::too_large);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device pretended(sm);
    CHECK(refused(w, p, g) == status::unsupported_device);
  }
#endif
}

TEST_CASE("kernel searches refuse a workspace or an importance that will not do") {
  const auto w = weights<float>(4, 32);
  const device_matrix<float> there(w);
  const device_matrix<params> p(4, 2);
  const auto search = [&](void* workspace, index_t& bytes, const float* importance = nullptr) {
    return kernels::fit(there.const_view(), p.view(), per_group(16), any_scheme{}, llm_compressor_grid, importance,
                        workspace, bytes, nullptr);
  };
  index_t bytes = 0;
  REQUIRE(search(nullptr, bytes) == status::ok);
  REQUIRE(bytes >= 8 * 12);
  const device_array<unsigned char> workspace(bytes + 8);
  index_t less = bytes - 1;
  CHECK(search(workspace.data(), less) == status::workspace_too_small);
  CHECK(search(workspace.data() + 8, bytes) == status::misaligned);
  CHECK(search(workspace.data(), bytes) == status::ok);
  const auto askew = reinterpret_cast<const float*>(reinterpret_cast<const char*>(there.view().data) + 2);
  CHECK(search(workspace.data(), bytes, askew) == status::misaligned);
  CHECK(kernels::fit(there.const_view(), p.view(), per_group(16), any_scheme{}, ends_search{}, askew, nullptr) ==
        status::misaligned);
  const index_t many = index_t{1} << 31;
  CHECK(kernels::fit(matrix<const float>(there.view().data, 2, many), p.view().rows_at(0, 1).cols_at(0, 1), per_tensor,
                     any_scheme{}, percentile{}, nullptr, nullptr) == status::too_large);
}

}  // namespace fit_tests

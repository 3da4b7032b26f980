// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/gptq.cuh"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "nibble/host/gptq.hpp"
#include "nibble/reference/gptq.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/activations.hpp"
#include "support/blas.hpp"
#include "support/linears.hpp"

namespace gptq_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

static_assert(kernels::detail::gptq_clip_steps == host::clip_steps);
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// A column order in device memory, and as the kernels take it.
struct device_order {
  host::column_order order;
  device_array<index_t> column, parameters;

  explicit device_order(host::column_order of)
      : order(std::move(of)), column(order.column), parameters(order.parameters) {}
  kernels::solving_order view() const { return {column.data(), parameters.data(), order.parameters.data()}; }
};

host::column_order as_they_lie(index_t k, index_t group) {
  return host::order_columns(std::vector<double>(static_cast<size_t>(k), 1.0), group, activation_order::none);
}

/// A linear, a factor that has NaN above its diagonal, and an order.
struct linear {
  owned<float> w, l;
  host::column_order order;
  index_t group;
  any_scheme scheme;
  owned<params> p;

  linear(owned<float> w_, owned<float> l_, host::column_order order_, index_t group_, any_scheme scheme_)
      : w(std::move(w_)),
        l(std::move(l_)),
        order(std::move(order_)),
        group(group_),
        scheme(scheme_),
        p(w.rows, per_group(group).across(w.cols), params{}) {
    for (index_t i = 0; i < l.rows; ++i)
      for (index_t j = i + 1; j < l.cols; ++j) l.view()(i, j) = not_a_number;
  }
  static owned<float> copy(matrix<const float> of) {
    owned<float> l(of.rows, of.cols);
    for (index_t i = 0; i < of.rows; ++i) std::copy(of.row(i), of.row(i) + of.cols, l.view().row(i));
    return l;
  }
  linear(owned<float> w_, const host::hessian& h, index_t group_, any_scheme scheme_)
      : linear(std::move(w_), copy(h.factor()), h.order(), group_, scheme_) {}
};

struct solution {
  owned<params> p;
  owned<uint8_t> q;
  double loss;
};

/// By the kernels; without an order's arrays where `plain`.
solution on_device(const linear& of, gptq_ranges ranges, bool plain = false) {
  const blas_handle blas;
  const device_matrix<float> w(of.w, of.w.cols + 3), l(of.l, of.l.cols + 1);
  const device_matrix<params> p(of.p, of.p.cols + 2);
  const device_matrix<uint8_t> q(of.w.rows, of.w.cols, of.w.cols + 5, 3);
  const device_array<double> loss(1);
  const device_order order(of.order);
  with_workspace([&](void* workspace, index_t& bytes) {
    return kernels::gptq(w.const_view(), l.const_view(), plain ? kernels::solving_order{} : order.view(), of.group,
                         ranges, of.scheme, p.view(), q.view(), loss.data(), workspace, bytes, blas);
  });
  return {p.download(), q.download(), loss.download()[0]};
}

/// By the formulas, in double: codes in given ranges.
owned<uint8_t> by_formula(const linear& of) {
  owned<uint8_t> q(of.w.rows, of.w.cols);
  std::vector<double> apart(static_cast<size_t>(of.w.cols));
  for (index_t row = 0; row < of.w.rows; ++row)
    for (index_t i = 0; i < of.w.cols; ++i) {
      const index_t col = of.order.column[static_cast<size_t>(i)];
      const params with = of.p.view()(row, of.order.parameters[static_cast<size_t>(i)]);
      double z = 0;
      for (index_t j = 0; j < i; ++j) z += static_cast<double>(of.l.view()(i, j)) * apart[static_cast<size_t>(j)];
      const double target = static_cast<double>(of.w.view()(row, col)) + z / static_cast<double>(of.l.view()(i, i));
      const float value = reference::detail::round_trip(static_cast<float>(target), with, of.scheme);
      q.view()(row, col) = static_cast<uint8_t>(std::lround(value / with.scale) + with.zero);
      apart[static_cast<size_t>(i)] = static_cast<double>(of.w.view()(row, col)) - static_cast<double>(value);
    }
  return q;
}

/// A factor of which every product and quotient is exact: pivots are powers of two, the rest −1, 0 and 1.
owned<float> exact_factor(index_t k) {
  std::mt19937 engine(9);
  owned<float> l(k, k);
  for (index_t i = 0; i < k; ++i)
    for (index_t j = 0; j <= i; ++j)
      l.view()(i, j) =
          i == j ? (engine() % 2 == 0 ? 1.0f : 2.0f) : static_cast<float>(static_cast<int>(engine() % 3) - 1);
  return l;
}

/// By host::gptq, of which the factor must be h's.
solution on_host(const linear& of, const host::hessian& h, gptq_ranges ranges) {
  solution out{of.p, owned<uint8_t>(of.w.rows, of.w.cols), 0};
  out.loss = host::gptq(of.w.view(), h, ranges, of.scheme, out.p.view(), out.q.view()) / h.unit();
  return out;
}

/// Parameters of every group as they lie, found beforehand.
void fit_beforehand(linear& of) {
  reference::fit(std::as_const(of.w).view(), of.p.view(), per_group(of.group), of.scheme, minmax{}, nullptr);
}

bool same_row(const solution& a, const solution& b, index_t row) {
  return std::equal(a.q.view().row(row), a.q.view().row(row + 1), b.q.view().row(row));
}

bool in_range(const solution& of, any_scheme scheme) {
  for (const params& p : of.p.data)
    if (!(p.scale > 0) || !is_finite(p.scale) || p.zero < 0 || p.zero > max_code(scheme)) return false;
  return std::all_of(of.q.data.begin(), of.q.data.end(), [&](uint8_t code) { return code <= max_code(scheme); });
}

host::hessian hessian_of(index_t k, index_t group, activation_order how, float damping = 0.01f) {
  return host::hessian(gathered(activations(2 * k + 40, k), 2 * k + 40, 0.1f), nullptr, group, how, damping);
}

struct shape {
  index_t rows, cols, group;
};
constexpr activation_order orders[] = {activation_order::none, activation_order::static_groups,
                                       activation_order::group_aware, activation_order::descending};

}  // namespace

TEST_CASE("on numbers that float holds exactly the kernel's codes are the formula's, across blocks and in any order") {
  for (const auto& [rows, cols, group] : {shape{3, 1, -1}, {5, 63, 32}, {9, 128, 128}, {8, 129, 16}, {17, 300, 48}})
    for (const int bits : {2, 3, 4, 8})
      for (const bool symmetric : {false, true}) {
        const bool mixed = bits != 3;
        CAPTURE(rows, cols, group, bits, symmetric);
        auto order = as_they_lie(cols, group);
        if (mixed) {
          std::vector<double> importance(order.column.size());
          for (size_t i = 0; i < importance.size(); ++i) importance[i] = static_cast<double>(i * 37 % 101);
          order = host::order_columns(importance, group, activation_order::static_groups);
        }
        linear of(eighths(rows, cols), exact_factor(cols), order, group, scheme_of(bits, symmetric));
        for (size_t i = 0; i < of.p.data.size(); ++i)
          of.p.data[i] = {0.5f, symmetric ? mid_code(of.scheme) : static_cast<int32_t>(i) % (1 << bits)};
        const auto got = on_device(of, gptq_ranges::given);
        REQUIRE(got.q.data == by_formula(of).data);
        REQUIRE(same_bytes(got.p, of.p));
        if (!mixed) REQUIRE(on_device(of, gptq_ranges::given, true).q.data == got.q.data);
      }
}

TEST_CASE("within one block of columns, in given ranges, the kernel's codes and loss are the host's bit for bit") {
  for (const auto how : orders)
    for (const int bits : {2, 3, 4, 8})
      for (const bool symmetric : {false, true})
        for (const convention rule : {convention::compressed_tensors, convention::autoawq}) {
          const index_t cols = bits == 4 ? 128 : 77, group = 32;
          CAPTURE(static_cast<int>(how), bits, symmetric, static_cast<int>(rule));
          const auto h = hessian_of(cols, group, how);
          linear of(weights<float>(13, cols), h, group, scheme_of(bits, symmetric, rule));
          if (bits == 3) of.scheme.compute_dtype = of.scheme.scale_dtype = dtype::bf16;
          fit_beforehand(of);
          const auto got = on_device(of, gptq_ranges::given), expected = on_host(of, h, gptq_ranges::given);
          REQUIRE(got.q.data == expected.q.data);
          REQUIRE(got.loss == Approx(expected.loss).epsilon(1e-12));
        }
}

TEST_CASE("of codes in ranges of any kind all but a share of ties are the host's, and the loss is the same") {
  int rows_in_all = 0, others = 0;
  const auto compare = [&](shape size, any_scheme scheme, activation_order how, gptq_ranges ranges) {
    CAPTURE(size.rows, size.cols, size.group, scheme.bits, scheme.symmetric, static_cast<int>(how),
            static_cast<int>(ranges));
    const auto h = hessian_of(size.cols, size.group, how);
    const linear of(weights<float>(size.rows, size.cols), h, size.group, scheme);
    const auto got = on_device(of, ranges), expected = on_host(of, h, ranges);
    REQUIRE(in_range(got, scheme));
    for (index_t row = 0; row < size.rows; ++row) others += same_row(got, expected, row) ? 0 : 1;
    rows_in_all += static_cast<int>(size.rows);
    REQUIRE(std::fabs(got.loss - expected.loss) <= 0.02 * expected.loss);
  };
  for (const auto how : {activation_order::none, activation_order::group_aware, activation_order::descending}) {
    for (const auto ranges : {gptq_ranges::minmax, gptq_ranges::mse}) {
      compare({11, 130, 32}, scheme_of(4, false), how, ranges);  // the short group may come anywhere
      compare({6, 270, 128}, scheme_of(2, false), how, ranges);
    }
    // symmetric, for the executor takes a fifth of the time over the ranges that it tries
    for (const auto ranges : {gptq_ranges::minmax, gptq_ranges::mse, gptq_ranges::gram})
      compare({9, 70, 48}, scheme_of(3, true), how, ranges);
  }
  for (const auto ranges : {gptq_ranges::minmax, gptq_ranges::mse, gptq_ranges::gram}) {
    compare({5, 300, 200}, scheme_of(3, true), activation_order::none, ranges);  // parts of groups
    compare({9, 20, 8}, scheme_of(8, false), activation_order::none, ranges);
    compare({3, 20, 128}, scheme_of(4, false, convention::gptq), activation_order::none, ranges);
  }
  for (const auto ranges : {gptq_ranges::minmax, gptq_ranges::mse}) {
    compare({9, 40, 1}, scheme_of(8, false), activation_order::none, ranges);
    compare({7, 200, -1}, scheme_of(4, false), activation_order::none, ranges);
    compare({5, 300, 200}, scheme_of(3, false), activation_order::none, ranges);
  }
  INFO(others << " of " << rows_in_all << " rows");
  REQUIRE(others * 50 <= rows_in_all);
}

TEST_CASE("the kernel's codes are the published algorithm's in double but where a target lies at a tie") {
  for (const auto& [rows, cols, group] : {shape{18, 64, 16}, {9, 130, 128}, {6, 200, -1}}) {
    const auto h = hessian_of(cols, group, activation_order::none);
    const linear of(weights<float>(rows, cols), h, group, scheme_of(4, false));
    const auto got = on_device(of, gptq_ranges::minmax);
    owned<double> damped = exact_gram(activations(2 * cols + 40, cols), 0.1f), u(cols, cols);
    reference::damp(damped.view(), 0.01);
    reference::inverse_factor(std::as_const(damped).view(), u.view());
    solution expected{of.p, owned<uint8_t>(rows, cols), 0};
    expected.loss = reference::gptq(of.w.view(), std::as_const(u).view(), group, of.scheme, true, expected.p.view(),
                                    expected.q.view());
    int others = 0;
    for (index_t row = 0; row < rows; ++row) others += same_row(got, expected, row) ? 0 : 1;
    CHECK(others <= 2);
    CHECK(got.loss * h.unit() == Approx(expected.loss).epsilon(0.05));
  }
}

TEST_CASE("rows beyond what the workspace holds at once have codes too, and a part in the loss") {
  const auto h = hessian_of(2, 2, activation_order::none);
  linear of(weights<float>(16390, 2), h, 2, scheme_of(4, false));
  fit_beforehand(of);
  const auto got = on_device(of, gptq_ranges::given), expected = on_host(of, h, gptq_ranges::given);
  REQUIRE(got.q.data == expected.q.data);
  REQUIRE(got.loss == Approx(expected.loss).epsilon(1e-12));
}

TEST_CASE("a row of weights that are no numbers spoils no other row, and has parameters and codes in range") {
  const auto h = hessian_of(150, 64, activation_order::group_aware);
  linear of(weights<float>(9, 150), h, 64, scheme_of(4, true));
  for (const auto ranges : {gptq_ranges::minmax, gptq_ranges::mse, gptq_ranges::gram}) {
    of.w = weights<float>(9, 150);
    const auto clean = on_device(of, ranges);
    for (const float odd : {not_a_number, std::numeric_limits<float>::infinity()}) {
      of.w.view()(4, 3) = odd;
      const auto got = on_device(of, ranges);
      REQUIRE(in_range(got, of.scheme));
      for (index_t row = 0; row < 9; ++row) REQUIRE((row == 4 || same_row(got, clean, row)));
    }
  }
}

TEST_CASE("where a Hessian has no factor, codes chosen all the same are the nearest") {
  const blas_handle blas;
  owned<float> g(150, 150, not_a_number);
  const device_matrix<float> gram(g), l(150, 150);
  const device_array<kernels::factored> state(1);
  REQUIRE(kernels::factor(gram.const_view(), nullptr, nullptr, 0.01, false, l.view(), state.data(), blas) ==
          status::ok);
  REQUIRE(state.download()[0].failed != 0);
  for (const auto ranges : {gptq_ranges::given, gptq_ranges::minmax}) {
    linear of(weights<float>(9, 150), l.download(), as_they_lie(150, 32), 32, scheme_of(4, false));
    if (ranges == gptq_ranges::given) fit_beforehand(of);
    const auto got = on_device(of, ranges, true);
    fit_beforehand(of);
    owned<uint8_t> nearest(9, 150);
    reference::quantize(std::as_const(of.w).view(), std::as_const(of.p).view(), nearest.view(), per_group(32),
                        of.scheme);
    REQUIRE(same_bytes(got.p, of.p));
    REQUIRE(got.q.data == nearest.data);
  }
}

TEST_CASE("the kernel's codes are the same bytes under every schedule and architecture") {
  for (const auto ranges : {gptq_ranges::minmax, gptq_ranges::gram}) {
    const auto h = hessian_of(140, 32, activation_order::group_aware);
    const linear of(weights<float>(10, 140), h, 32, scheme_of(3, ranges == gptq_ranges::gram));
    const auto first = on_device(of, ranges);
    const auto run = [&] {
      const auto again = on_device(of, ranges);
      REQUIRE((again.q.data == first.q.data && same_bytes(again.p, first.p) && again.loss == first.loss));
    };
    under_schedules(ranges == gptq_ranges::gram ? 2 : 4, run);
    if (ranges == gptq_ranges::minmax) on_architectures(run);
  }
}

TEST_CASE("the kernel of gptq refuses what it cannot do, and says why") {
  const device_matrix<float> w(owned<float>(4, 32, 1.0f)), l(owned<float>(32, 32, 1.0f));
  const device_matrix<params> p(owned<params>(4, 2, params{1.0f, 8}));
  const device_matrix<uint8_t> q(owned<uint8_t>(4, 32, 3));
  const device_array<double> loss(2);
  const blas_handle blas;
  const auto grouped = as_they_lie(32, 16);
  const device_order order(grouped);
  const auto gptq = [&](matrix<const float> of, matrix<const float> by, const kernels::solving_order& in,
                        matrix<params> with, matrix<uint8_t> to, index_t group = 16, int bits = 4,
                        gptq_ranges ranges = gptq_ranges::minmax, double* sum = nullptr) {
    index_t bytes = 0;
    return kernels::gptq(of, by, in, group, ranges, scheme_of(bits, false), with, to, sum, nullptr, bytes, blas);
  };
  const matrix<const float> all = w, of = l;
  const auto plain = kernels::solving_order{};
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(w.view().data) + 2);
  CHECK(gptq(all, of, plain, p, q) == status::ok);
  CHECK(gptq(all, of, order.view(), p, q) == status::ok);
  CHECK(gptq(all, of, plain, p, q, 16, 0) == status::bad_bits);
  CHECK(gptq(all, of, plain, p, q, 16, 9) == status::bad_bits);
  CHECK(gptq(all, of, plain, p, q, 0) == status::bad_group);
  CHECK(gptq(all, of, plain, p, q, -2) == status::bad_group);
  CHECK(gptq(all, of, plain, p, q, 8) == status::bad_shape);
  CHECK(gptq(all, of.rows_at(0, 31), plain, p, q) == status::bad_shape);
  CHECK(gptq(all, of.cols_at(0, 31), plain, p, q) == status::bad_shape);
  CHECK(gptq(all, of, plain, p, q.view().rows_at(0, 3)) == status::bad_shape);
  CHECK(gptq(all, of, plain, p, q.view().cols_at(0, 31)) == status::bad_shape);
  CHECK(gptq({nullptr, 4, 32}, of, plain, p, q) == status::bad_shape);
  CHECK(gptq({askew, 4, 32}, of, plain, p, q) == status::misaligned);
  CHECK(gptq(all, {askew, 32, 32}, plain, p, q) == status::misaligned);
  CHECK(gptq(all, of, plain, p, q, 16, 4, gptq_ranges::minmax,
             reinterpret_cast<double*>(reinterpret_cast<char*>(loss.data()) + 4)) == status::misaligned);
  CHECK(gptq({nullptr, 0, 32}, of, plain, {nullptr, 0, 2}, {nullptr, 0, 32}) == status::ok);

  auto in = order.view();
  in.column = nullptr;
  CHECK(gptq(all, of, in, p, q) == status::bad_shape);
  in = order.view(), in.on_host = nullptr;
  CHECK(gptq(all, of, in, p, q) == status::bad_shape);
  CHECK(gptq(all, of, in, p, q, 16, 4, gptq_ranges::given) == status::ok);
  in = order.view(), in.column = reinterpret_cast<const index_t*>(reinterpret_cast<const char*>(in.column) + 4);
  CHECK(gptq(all, of, in, p, q) == status::misaligned);
  auto groups = grouped.parameters;
  const auto with_groups = [&] {
    auto other = order.view();
    other.on_host = groups.data();
    return gptq(all, of, other, p, q);
  };
  groups[3] = 1;
  CHECK(with_groups() == status::bad_group);
  groups[3] = 2;
  CHECK(with_groups() == status::bad_shape);
  groups[3] = -1;
  CHECK(with_groups() == status::bad_shape);
  for (const auto ranges : {gptq_ranges::given, gptq_ranges::minmax, gptq_ranges::mse, gptq_ranges::gram})
    refuses_bad_workspaces([&](void* workspace, index_t& size) {
      return kernels::gptq(all, of, plain, 16, ranges, scheme_of(4, false), p.view(), q.view(), loss.data(), workspace,
                           size, blas);
    });
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(gptq(all, of, plain, p, q) == status::unsupported_device);
  }
#endif
}

#if defined(NIBBLE_SIMT)
TEST_CASE("gptq says when a kernel or a product of its was refused") {
  const blas_handle blas;
  for (const auto ranges : {gptq_ranges::minmax, gptq_ranges::gram}) {
    const auto h = hessian_of(10, 6, activation_order::none);
    const linear of(weights<float>(1, 10), h, 6, scheme_of(4, true));
    const device_matrix<float> w(of.w), l(of.l);
    const device_matrix<params> p(of.p);
    const device_matrix<uint8_t> q(1, 10);
    const device_array<double> loss(1);
    index_t bytes = 0;
    const auto solve = [&](void* workspace) {
      return kernels::gptq(w.const_view(), l.const_view(), {}, 6, ranges, of.scheme, p.view(), q.view(), loss.data(),
                           workspace, bytes, blas);
    };
    REQUIRE(solve(nullptr) == status::ok);
    const device_array<unsigned char> workspace(bytes);
    // both groups in a block; or, a group each, what is left of it, its cost, a fit, a product and a search, then its codes, and what
    // the first is worth to the second
    REQUIRE(launches_of([&] { return solve(workspace.data()); }) == (ranges == gptq_ranges::gram ? 2 * 6 + 1 + 1 : 2));
  }
}
#endif

}  // namespace gptq_tests

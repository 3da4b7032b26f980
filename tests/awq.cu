// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/awq.cuh"

#include <limits>

#include "nibble/host/awq.hpp"
#include "nibble/reference/awq.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/activations.hpp"
#include "support/blas.hpp"
#include "support/linears.hpp"

namespace awq_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

template <class To, class T>
owned<To> converted(const owned<T>& x) {
  owned<To> out(x.rows, x.cols);
  for (size_t i = 0; i < x.data.size(); ++i) out.data[i] = To(static_cast<float>(x.data[i]));
  return out;
}

template <class T>
std::vector<double> kernel_importance(const device_matrix<T>& w, index_t group) {
  const matrix<const T> all = w;
  const device_array<double> sum(std::vector<double>(static_cast<size_t>(all.cols), 0.5));
  with_workspace([&](void* workspace, index_t& bytes) {
    return kernels::weight_importance(all, group, sum.data(), workspace, bytes, nullptr);
  });
  return sum.download();
}

template <class T>
void importance_agrees(index_t rows, index_t cols, index_t group, index_t padding = 0, index_t offset = 0) {
  CAPTURE(rows, cols, group, padding, offset);
  const auto w = nasty_weights<T>(rows, cols);
  std::vector<double> expected(static_cast<size_t>(cols), 0.5);
  reference::weight_importance(w.view(), group, expected.data());
  const auto got = kernel_importance(device_matrix<T>(w, cols + padding, offset), group);
  // A sum and a quotient are rounded to float, and terms of one sign are added in double.
  const double bound = 2.1 * roundoff + static_cast<double>(rows + 1) * 0x1p-53;
  for (size_t j = 0; j < got.size(); ++j) REQUIRE(std::fabs(got[j] - expected[j]) <= bound * expected[j]);
}

/// Q(w·s)/s − w by the reference's fit, codes and arithmetic, each operation rounded to float.
template <class T>
std::pair<owned<float>, owned<params>> expected_error(const owned<T>& w, const std::vector<float>& s, index_t group,
                                                      any_scheme scheme) {
  const group_shape g = per_group(group);
  owned<float> scaled(w.rows, w.cols), back(w.rows, w.cols);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col)
      scaled.view()(row, col) = static_cast<float>(w.view()(row, col)) * s[static_cast<size_t>(col)];
  owned<params> p(w.rows, g.across(w.cols), params{});
  owned<uint8_t> q(w.rows, w.cols);
  reference::fit(std::as_const(scaled).view(), p.view(), g, scheme, minmax{}, nullptr);
  reference::quantize(std::as_const(scaled).view(), std::as_const(p).view(), q.view(), g, scheme);
  reference::dequantize(std::as_const(q).view(), std::as_const(p).view(), back.view(), g, scheme);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col)
      back.view()(row, col) =
          back.view()(row, col) / s[static_cast<size_t>(col)] - static_cast<float>(w.view()(row, col));
  return {back, p};
}

template <class T, class To>
void error_agrees(index_t rows, index_t cols, index_t group, any_scheme scheme, index_t padding = 0,
                  index_t offset = 0) {
  CAPTURE(rows, cols, group, scheme.bits, scheme.symmetric, padding, offset);
  const auto w = weights<T>(rows, cols, 4);
  const auto s = scales(cols);
  const auto [expected, p] = expected_error(w, s, group, scheme);
  const device_matrix<T> there(w, cols + padding, offset);
  const device_array<float> by(s);
  const device_matrix<To> difference(rows, cols, cols + padding, offset);
  const device_matrix<params> fitted(rows, p.cols, p.cols + 1);
  REQUIRE(kernels::scaled_error(there.const_view(), by.data(), difference.view(), fitted.view(), group, scheme,
                                nullptr) == status::ok);
  REQUIRE(same_bytes(difference.download(), converted<To>(expected)));
  REQUIRE(same_bytes(fitted.download(), p));
}

template <class T>
double kernel_loss(const owned<T>& d, const owned<T>& g) {
  const blas_handle blas;
  const device_matrix<T> difference(d, d.cols + 3), gram(g, g.cols + 1);
  const device_array<double> loss(1);
  with_workspace([&](void* workspace, index_t& bytes) {
    return kernels::gram_loss(difference.const_view(), gram.const_view(), loss.data(), workspace, bytes, blas);
  });
  return loss.download()[0];
}

/// tr(D·G·Dᵀ) of D and G as T stores them, within kernels::gram_loss's bound of the reference's.
template <class T>
void loss_agrees(index_t rows, index_t cols) {
  CAPTURE(rows, cols);
  const auto exact = exact_gram(activations(2 * cols + 9, cols), 0.25f);
  const auto d = converted<T>(weights<float>(rows, cols));
  const auto g = converted<T>(exact);
  owned<double> stored(cols, cols, 0.0);
  for (size_t i = 0; i < g.data.size(); ++i) stored.data[i] = static_cast<double>(static_cast<float>(g.data[i]));
  const auto as_float = converted<float>(d);
  const double loss = reference::gram_loss(as_float.view(), stored.view());
  const double unit = (sizeof(T) == 2 ? 2 : 1) * roundoff;
  const double bound = static_cast<double>(cols + 1) * unit * loss_magnitude(as_float.view(), exact) * 1.02;
  REQUIRE(std::fabs(kernel_loss(d, g) - loss) <= bound);
  REQUIRE((cols < 16 || rows < 8 || bound < 0.01 * loss));  // the bound means something
}

}  // namespace

TEST_CASE("the kernel's importance of weights is the reference's within its bound") {
  for (const index_t group : {-1, 1, 7, 8, 16, 32, 128}) {
    importance_agrees<float>(5, 61, group);
    importance_agrees<fp16>(5, 64, group);
    importance_agrees<bf16>(9, 264, group);
    importance_agrees<bf16>(9, 261, group, 3);
  }
  for (const index_t rows : {1, 7, 8, 9, 255, 256, 257, 513}) importance_agrees<bf16>(rows, 24, 16);
  for (const index_t offset : {0, 1, 4, 8})
    for (const index_t padding : {0, 1, 8}) importance_agrees<fp16>(6, 32, 16, padding, offset);
}

TEST_CASE("the kernel's rounding error of scaled weights is the reference's bit for bit") {
  for (const index_t group : {-1, 1, 7, 8, 16, 32, 128, 300})
    for (const int bits : {2, 4, 8}) {
      error_agrees<float, float>(9, 61, group, scheme_of(bits, false));
      error_agrees<bf16, bf16>(9, 264, group, scheme_of(bits, true));
      error_agrees<fp16, float>(9, 261, group, scheme_of(bits, false), 3);
      error_agrees<bf16, float>(9, 264, group, scheme_of(bits, false, convention::autoawq));
      error_agrees<bf16, float>(9, 261, group, scheme_of(bits, false, convention::autoawq), 3);
    }
  error_agrees<bf16, bf16>(9, 1032, -1, scheme_of(4, false));  // read twice
  for (const index_t rows : {1, 31, 32, 33, 257}) error_agrees<bf16, bf16>(rows, 16, 8, scheme_of(3, false));
  for (const index_t offset : {0, 1, 4, 8})
    for (const index_t padding : {0, 1, 8}) error_agrees<bf16, float>(6, 32, 16, scheme_of(4, false), padding, offset);
}

TEST_CASE("a group without a finite weight, and weights that overflow when scaled, are fitted as the reference's") {
  const auto w = nasty_weights<float>(9, 64);
  const std::vector<float> s(64, 4.0f);
  for (const auto rule : {convention::compressed_tensors, convention::autoawq}) {
    const any_scheme scheme = scheme_of(4, false, rule);
    const auto [expected, p] = expected_error(w, s, 16, scheme);
    const device_matrix<float> there(w), difference(9, 64);
    const device_array<float> by(s);
    const device_matrix<params> fitted(p.rows, p.cols);
    REQUIRE(kernels::scaled_error(there.const_view(), by.data(), difference.view(), fitted.view(), 16, scheme,
                                  nullptr) == status::ok);
    REQUIRE(same_bytes(fitted.download(), p));
  }
}

TEST_CASE("the kernel's rounding error of codes is the host's bit for bit") {
  for (const index_t group : {-1, 1, 5, 16, 32})
    for (const index_t cols : {1, 33, 34, 64, 200}) {
      CAPTURE(group, cols);
      const any_scheme scheme = scheme_of(4, false);
      const auto w = weights<float>(7, cols);
      const auto s = scales(cols);
      owned<params> p(7, per_group(group).across(cols), params{});
      owned<uint8_t> q(7, cols);
      reference::fit(w.view(), p.view(), per_group(group), scheme, minmax{}, nullptr);
      reference::quantize(w.view(), std::as_const(p).view(), q.view(), per_group(group), scheme);
      owned<float> expected(7, cols), times(7, cols);
      host::detail::codes_difference(w.view(), std::as_const(q).view(), std::as_const(p).view(), s.data(), nullptr,
                                     per_group(group), scheme, expected.view());
      const std::vector<float> of_row = {0.3f, 1.0f, 2.5f, 0.7f, 1.1f, 9.0f, 0.01f};
      host::detail::codes_difference(w.view(), std::as_const(q).view(), std::as_const(p).view(), s.data(),
                                     of_row.data(), per_group(group), scheme, times.view());
      for (const index_t stride : {cols, cols + 1, round_up(cols, 16)}) {
        const device_matrix<float> there(w, stride), difference(7, cols, stride);
        const device_matrix<uint8_t> codes(q, stride);
        const device_matrix<params> of(p);
        const device_array<float> by(s), rows(of_row);
        REQUIRE(kernels::codes_error(there.const_view(), codes.const_view(), of.const_view(), by.data(), nullptr,
                                     difference.view(), group, scheme, nullptr) == status::ok);
        REQUIRE(same_bytes(difference.download(), expected));
        REQUIRE(kernels::codes_error(there.const_view(), codes.const_view(), of.const_view(), by.data(), rows.data(),
                                     difference.view(), group, scheme, nullptr) == status::ok);
        REQUIRE(same_bytes(difference.download(), times));
      }
    }
}

TEST_CASE("scaled columns are w times s rounded to what stores them, and w alone without s") {
  for (const index_t cols : {1, 15, 64, 2056})
    for (const index_t padding : {0, 3}) {
      const auto w = weights<float>(3, cols);
      const auto s = scales(cols);
      const device_matrix<float> there(w, cols + padding);
      const device_array<float> by(s);
      const device_matrix<bf16> out(3, cols, cols + padding);
      owned<bf16> expected(3, cols);
      for (size_t i = 0; i < w.data.size(); ++i) expected.data[i] = bf16(w.data[i] * s[i % s.size()]);
      REQUIRE(kernels::scale_columns(there.const_view(), by.data(), out.view(), nullptr) == status::ok);
      REQUIRE(same_bytes(out.download(), expected));
      REQUIRE(kernels::scale_columns(there.const_view(), nullptr, out.view(), nullptr) == status::ok);
      REQUIRE(same_bytes(out.download(), converted<bf16>(w)));
    }
}

TEST_CASE("the kernel's loss is the reference's within its bound") {
  for (const index_t cols : {1, 2, 33, 96})
    for (const index_t rows : {1, 5, 40}) {
      loss_agrees<float>(rows, cols);
      loss_agrees<fp16>(rows, cols);
      loss_agrees<bf16>(rows, cols);
    }
  loss_agrees<float>(1027, 5);  // two products
  loss_agrees<float>(2, 300);
}

TEST_CASE("a scale search on the kernels chooses what the host's chooses") {
  const auto x = activations(400, 96);
  const auto moment = gathered(x, 400, 0.5f);
  const auto w = weights<float>(40, 96);
  const any_scheme scheme = scheme_of(3, false);
  const auto on_host = host::search_scale({w.view()}, moment, 32, duo_scaling::both, 12, [&](const float* s) {
    return host::scaled_loss(w.view(), s, moment, 32, scheme, minmax{});
  });
  owned<float> gram(96, 96);
  moment.block(0, 96, gram.view());
  const device_matrix<float> there(w), g(gram), difference(40, 96);
  const device_array<double> loss(1);
  const blas_handle blas;
  const auto on_device = host::search_scale({w.view()}, moment, 32, duo_scaling::both, 12, [&](const float* s) {
    const device_array<float> by(std::vector<float>(s, s + 96));
    REQUIRE(kernels::scaled_error(there.const_view(), by.data(), difference.view(), matrix<params>(), 32, scheme,
                                  nullptr) == status::ok);
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::gram_loss(difference.const_view(), g.const_view(), loss.data(), workspace, bytes, blas);
    });
    return loss.download()[0];
  });
  REQUIRE(on_device.scale == on_host.scale);
  REQUIRE(on_device.losses.size() == 12);
  for (size_t i = 0; i < 12; ++i) REQUIRE(on_device.losses[i] == Approx(on_host.losses[i]).epsilon(1e-4));
}

TEST_CASE("the kernels of awq give the same bytes under every schedule and architecture") {
  const auto w = weights<bf16>(300, 72);
  const device_matrix<bf16> there(w);
  const auto importance = kernel_importance(there, 24);
  const auto d = weights<float>(70, 48);
  const auto g = converted<float>(exact_gram(activations(100, 48), 0.25f));
  const double loss = kernel_loss(d, g);
  const auto run = [&] {
    REQUIRE(kernel_importance(there, 24) == importance);
    REQUIRE(kernel_loss(d, g) == loss);
    error_agrees<bf16, bf16>(33, 72, 24, scheme_of(4, false));
  };
  under_schedules(4, run);
  on_architectures(run);
}

TEST_CASE("awq's launchers refuse what they cannot do, and say why") {
  const device_matrix<float> w(owned<float>(4, 32, 1.0f)), d(owned<float>(4, 32, 0.0f)), g(owned<float>(32, 32, 0.0f));
  const device_matrix<params> p(owned<params>(4, 2, params{1.0f, 8}));
  const device_matrix<uint8_t> q(owned<uint8_t>(4, 32, 3));
  const device_array<float> s(std::vector<float>(32, 1.0f));
  const device_array<double> sum(std::vector<double>(32, 0.0)), loss(1);
  const blas_handle blas;
  index_t bytes = 0;
  const matrix<const float> all = w;
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(w.view().data) + 2);
  const any_scheme four = scheme_of(4, false);
  const auto both = [&](matrix<const float> of, const float* by, matrix<float> to, matrix<params> with, index_t group,
                        any_scheme scheme) {
    const status got = kernels::scaled_error(of, by, to, with, group, scheme, nullptr);
    matrix<const uint8_t> codes = q.const_view();
    codes.rows = of.rows;
    codes.cols = of.cols;
    REQUIRE(kernels::codes_error(of, codes, matrix<const params>(with), by, nullptr, to, group, scheme, nullptr) ==
            got);
    return got;
  };
  CHECK(both(all, s.data(), d, p, 16, four) == status::ok);
  CHECK(both(all, s.data(), d, p, 16, scheme_of(0, false)) == status::bad_bits);
  CHECK(both(all, s.data(), d, p, 16, scheme_of(9, false)) == status::bad_bits);
  CHECK(both(all, s.data(), d, p, 0, four) == status::bad_group);
  CHECK(both(all, s.data(), d, p, -2, four) == status::bad_group);
  CHECK(both(all, s.data(), d, p, 8, four) == status::bad_shape);
  CHECK(both(all, nullptr, d, p, 16, four) == status::bad_shape);
  CHECK(both(all, s.data(), d.view().rows_at(0, 3), p, 16, four) == status::bad_shape);
  CHECK(both(all, s.data(), d.view().cols_at(0, 31), p, 16, four) == status::bad_shape);
  CHECK(both({all.data, 4, 32, 31}, s.data(), d, p, 16, four) == status::bad_shape);
  CHECK(both({nullptr, 4, 32}, s.data(), d, p, 16, four) == status::bad_shape);
  CHECK(both({askew, 4, 31, 32}, s.data(), d.view().cols_at(0, 31), p, 16, four) == status::misaligned);
  CHECK(both(all, s.data(), {askew, 4, 32}, p, 16, four) == status::misaligned);
  CHECK(both(all, askew, d, p, 16, four) == status::misaligned);
  CHECK(both(all, s.data(), d, {reinterpret_cast<params*>(askew), 4, 2}, 16, four) == status::misaligned);
  CHECK(kernels::scaled_error(matrix<const float>(all.data, index_t{1} << 50, 1), s.data(),
                              matrix<float>(d.view().data, index_t{1} << 50, 1), matrix<params>(), 16, four,
                              nullptr) == status::too_large);
  CHECK(kernels::codes_error(all, q.const_view().rows_at(0, 3), p.const_view(), s.data(), nullptr, d.view(), 16, four,
                             nullptr) == status::bad_shape);
  CHECK(kernels::codes_error(all, q.const_view(), {}, s.data(), nullptr, d.view(), 16, four, nullptr) ==
        status::bad_shape);
  CHECK(kernels::codes_error(all, q.const_view(), p.const_view(), s.data(), askew, d.view(), 16, four, nullptr) ==
        status::misaligned);
  CHECK(kernels::scaled_error(matrix<const float>(nullptr, 0, 32), s.data(), matrix<float>(nullptr, 0, 32),
                              matrix<params>(), 16, four, nullptr) == status::ok);

  CHECK(kernels::scale_columns(all, s.data(), d.view().rows_at(0, 3), nullptr) == status::bad_shape);
  CHECK(kernels::scale_columns(matrix<const float>(askew, 4, 32), s.data(), d.view(), nullptr) == status::misaligned);
  CHECK(kernels::scale_columns(matrix<const float>(all.data, index_t{1} << 50, 1), s.data(),
                               matrix<float>(d.view().data, index_t{1} << 50, 1), nullptr) == status::too_large);

  const auto importance = [&](matrix<const float> of, index_t group, double* to) {
    return kernels::weight_importance(of, group, to, nullptr, bytes, nullptr);
  };
  CHECK(importance(all, 16, sum.data()) == status::ok);
  CHECK(importance(all, 0, sum.data()) == status::bad_group);
  CHECK(importance(all, 16, nullptr) == status::bad_shape);
  CHECK(importance({all.data, 4, 32, 31}, 16, sum.data()) == status::bad_shape);
  CHECK(importance({askew, 4, 31}, 16, sum.data()) == status::misaligned);
  CHECK(importance(all, 16, reinterpret_cast<double*>(askew)) == status::misaligned);

  const auto loss_of = [&](matrix<const float> of, matrix<const float> under, double* to) {
    return kernels::gram_loss(of, under, to, nullptr, bytes, blas);
  };
  CHECK(loss_of(d, g, loss.data()) == status::ok);
  CHECK(loss_of(d, g, nullptr) == status::bad_shape);
  CHECK(loss_of(d.const_view().cols_at(0, 31), g, loss.data()) == status::bad_shape);
  CHECK(loss_of(d, g.const_view().rows_at(0, 31), loss.data()) == status::bad_shape);
  CHECK(loss_of({nullptr, 4, 32}, g, loss.data()) == status::bad_shape);
  CHECK(loss_of({askew, 4, 32}, g, loss.data()) == status::misaligned);
  CHECK(loss_of(d, {askew, 32, 32}, loss.data()) == status::misaligned);
  CHECK(loss_of(d, g, reinterpret_cast<double*>(askew)) == status::misaligned);
  const device_array<unsigned char> enough(65536);
  index_t plenty = 65536;
  CHECK(kernels::gram_loss(d.const_view(), g.const_view(), loss.data(), enough.data(), plenty, nullptr) ==
        status::launch_failed);
  CHECK(kernels::gram_loss(d.const_view(), {g.view().data, 32, 32, index_t{1} << 31}, loss.data(), enough.data(),
                           plenty, blas) == status::too_large);
  refuses_bad_workspaces([&](void* workspace, index_t& size) {
    return kernels::weight_importance(all, 16, sum.data(), workspace, size, nullptr);
  });
  refuses_bad_workspaces([&](void* workspace, index_t& size) {
    return kernels::gram_loss(d.const_view(), g.const_view(), loss.data(), workspace, size, blas);
  });
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(both(all, s.data(), d, p, 16, four) == status::unsupported_device);
    CHECK(importance(all, 16, sum.data()) == status::unsupported_device);
    CHECK(loss_of(d, g, loss.data()) == status::unsupported_device);
    CHECK(kernels::scale_columns(all, s.data(), d.view(), nullptr) == status::unsupported_device);
  }
#endif
}

}  // namespace awq_tests

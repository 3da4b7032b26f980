// SPDX-License-Identifier: Apache-2.0
/// @file
/// Activations in int8 and their products with int8 weights on a CPU, threaded and vectorised. Codes and scales are the reference's
/// bytes; integer sums are exact, and scaled back as nibble::int8_output does: float(sum) · scale of the token · scale of the output,
/// each of the three rounded, which every path has the same bits of.
///     host::quantize_tokens       x (m, k) → codes (m, k), a scale a token
///     host::quantize_activations  x (m, k) → codes under scales that are there, of tokens or of the tensor
///     host::int8_matmul           codes (m, k) by codes (n, k) → y (m, n)
///     host::round_inputs          x (m, k) → what its codes stand for, in place
#pragma once

#include <type_traits>
#include <vector>

#include "nibble/host/fp8.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/smooth/int8.hpp"
#include "nibble/matrix.hpp"
#include "nibble/smooth.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Greatest finite |x|. Bits of floats that are not negative have their order.
template <class T>
inline float span_amax(const T* x, index_t count) noexcept {
  int32_t most = 0;
  for (index_t first = 0; first < count; first += span_block) {
    const index_t size = min(span_block, count - first);
    float block[span_block];
    const float* const values = as_floats(x + first, size, block);
    for (index_t i = 0; i < size; ++i) {
      const int32_t magnitude = bit_cast<int32_t>(values[i]) & 0x7fffffff;
      most = max(most, magnitude < 0x7f800000 ? magnitude : 0);
    }
  }
  return bit_cast<float>(most);
}

/// nibble::activation_code of a span, without branches.
template <bool Divides, class T>
inline void activation_span(const T* __restrict x, uint8_t* __restrict q, index_t count, float factor,
                            float least) noexcept {
  const rounding r{1.0f, 0.0f, least, 127.0f, 128u};
  for (index_t first = 0; first < count; first += span_block) {
    const index_t size = min(span_block, count - first);
    float block[span_block];
    const float* const values = as_floats(x + first, size, block);
    for (index_t i = 0; i < size; ++i)
      q[first + i] = code_of(number_or_zero(Divides ? values[i] / factor : values[i] * factor), r);
  }
}

template <class T>
inline void activation_codes(const T* x, uint8_t* q, index_t count, float factor, activation_rule rule) noexcept {
  const auto least = static_cast<float>(rule.least);
  if (rule.ratio == activation_ratio::quotient)
    activation_span<true>(x, q, count, factor, least);
  else
    activation_span<false>(x, q, count, factor, least);
}

/// f(row) for all rows, vectorised, shared out over the pool.
template <class F>
void for_rows(index_t rows, index_t cols, F f) {
  const index_t step = rows_at_once(cols);
  parallel_for(ceil_div(rows, step), [&](index_t tile) {
    vectorised([&] {
      for (index_t row = tile * step; row < min(rows, (tile + 1) * step); ++row) f(row);
    });
  });
}

}  // namespace detail

/// reference::quantize_activations. q (m, k) of x (m, k), float, fp16 or bf16, under scales (m, 1) or (1, 1).
template <class T>
void quantize_activations(matrix<const T> x, matrix<const float> scales, matrix<uint8_t> q, activation_rule rule = {}) {
  rule = under_static_scale(rule);
  detail::for_rows(x.rows, x.cols, [=](index_t row) {
    const float scale = scales(scales.rows == 1 ? 0 : row, 0);
    detail::activation_codes(x.row(row), q.row(row), x.cols, activation_factor(scale, 0.0f, rule), rule);
  });
}

/// reference::quantize_tokens. scales (m, 1) and q (m, k) of x (m, k), float, fp16 or bf16.
template <class T>
void quantize_tokens(matrix<const T> x, matrix<float> scales, matrix<uint8_t> q, activation_rule rule = {}) {
  detail::for_rows(x.rows, x.cols, [=](index_t row) {
    const float amax = detail::span_amax(x.row(row), x.cols), scale = activation_scale(amax);
    scales(row, 0) = scale;
    detail::activation_codes(x.row(row), q.row(row), x.cols, activation_factor(scale, amax, rule), rule);
  });
}

namespace detail {

/// x (m, k) less 128, rows filled up with zeros to whole vectors, and the sum of each.
template <class Input>
struct int8_inputs_of {
  index_t stride;
  std::vector<Input> data;
  std::vector<int32_t> sums;

  int8_inputs_of(matrix<const uint8_t> x, index_t lanes)
      : stride(round_up(x.cols, lanes)),
        data(static_cast<size_t>(x.rows * stride), Input(0)),
        sums(static_cast<size_t>(x.rows), 0) {
    for_rows(x.rows, x.cols, [&](index_t row) {
      Input* const to = data.data() + row * stride;
      const uint8_t* const from = x.row(row);
      int32_t sum = 0;
      for (index_t j = 0; j < x.cols; ++j) {
        const int32_t value = int32_t(from[j]) - 128;
        to[j] = static_cast<Input>(value);
        sum += value;
      }
      sums[static_cast<size_t>(row)] = sum;
    });
  }
};

/// Tokens and rows of W that a thread takes at a time: 256 tokens, and 256 KiB of W, which stay in its second-level cache.
inline constexpr index_t int8_tile_tokens = 256;
constexpr index_t int8_tile_rows(index_t k, index_t rows) noexcept {
  const index_t fit = round_up((index_t(1) << 18) / max(k, index_t(1)), 4);
  return clamp(fit, index_t(4), min(index_t(256), round_up(max(rows / 16, index_t(1)), 4)));
}

/// Calls f(rows, tokens, row, token), the first two as constants, until `rows` by `tokens` are covered.
template <class Kernel, class F>
void over_int8_tiles(index_t rows, index_t tokens, F&& f) {
  using one = std::integral_constant<int, 1>;
  const auto down = [&](auto t, index_t token) {
    index_t row = 0;
    for (; row + Kernel::rows <= rows; row += Kernel::rows)
      f(std::integral_constant<int, Kernel::rows>{}, t, row, token);
    for (; row < rows; ++row) f(one{}, t, row, token);
  };
  index_t token = 0;
  for (; token + Kernel::tokens <= tokens; token += Kernel::tokens)
    down(std::integral_constant<int, Kernel::tokens>{}, token);
  for (; token < tokens; ++token) down(one{}, token);
}

template <class Kernel>
void int8_matmul(matrix<const uint8_t> x, matrix<const float> scales, matrix<const uint8_t> w, matrix<const params> p,
                 matrix<float> y) {
  const int8_inputs_of<typename Kernel::input> in(x, Kernel::lanes);
  const index_t tile_rows = int8_tile_rows(x.cols, w.rows), down = ceil_div(w.rows, tile_rows);
  parallel_for(down * ceil_div(x.rows, int8_tile_tokens), [&](index_t tile) {
    const index_t row0 = tile % down * tile_rows, token0 = tile / down * int8_tile_tokens;
    const index_t rows = min(tile_rows, w.rows - row0), tokens = min(int8_tile_tokens, x.rows - token0);
    over_int8_tiles<Kernel>(rows, tokens, [&](auto r, auto t, index_t row_at, index_t token_at) {
      const index_t row = row0 + row_at, token = token0 + token_at;
      uint32_t sums[r.value * t.value];
      Kernel::template multiply<r.value, t.value>(
          {w.row(row), w.stride, in.data.data() + token * in.stride, in.stride, x.cols}, sums);
      for (int i = 0; i < t.value; ++i) {
        const index_t at = token + i;
        const float scale = scales(scales.rows == 1 ? 0 : at, 0);
        const auto total = static_cast<uint32_t>(in.sums[static_cast<size_t>(at)]);
        for (int j = 0; j < r.value; ++j) {
          const params of = p(row + j, 0);
          const uint32_t sum = sums[i * r.value + j] - static_cast<uint32_t>(of.zero) * total;
          y(at, row + j) = int8_output(static_cast<int32_t>(sum), scale, of.scale);
        }
      }
    });
  });
}

}  // namespace detail

/// reference::int8_matmul, its sums exact, each scaled back by int8_output: within 4·2^-24 of the reference's number, relative to it.
/// y (m, n) of codes x (m, k), scales (m, 1) or (1, 1), codes w (n, k), p (n, 1).
/// @pre Σ |c − 128|·|d − zero| < 2^31, as it is for k up to int8_inputs with codes of x from 1 on and zero points of 128.
inline void int8_matmul(matrix<const uint8_t> x, matrix<const float> scales, matrix<const uint8_t> w,
                        matrix<const params> p, matrix<float> y) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (detail::vnni_int8::here()) return detail::int8_matmul<detail::vnni_int8>(x, scales, w, p, y);
  if (__builtin_cpu_supports("avx2")) return detail::int8_matmul<detail::avx2_int8>(x, scales, w, p, y);
#endif
  detail::int8_matmul<detail::plain_int8>(x, scales, w, p, y);
}

/// x (m, k) ← what its int8 codes stand for, (code − 128) · scale of the token, in place.
inline void round_inputs(matrix<float> x, activation_rule rule) {
  detail::for_rows(x.rows, x.cols, [=](index_t row) {
    float* const values = x.row(row);
    const float amax = detail::span_amax(values, x.cols), scale = activation_scale(amax);
    const float factor = activation_factor(scale, amax, rule);
    for (index_t first = 0; first < x.cols; first += detail::span_block) {
      const index_t size = min(detail::span_block, x.cols - first);
      uint8_t q[detail::span_block];
      detail::activation_codes(values + first, q, size, factor, rule);
      detail::dequantize_span<dtype::f32>(q, values + first, size, {scale, 128});
    }
  });
}

/// The same under the one scale of a checkpoint. @pre scale > 0 and finite.
inline void round_inputs(matrix<float> x, float scale, activation_rule rule) {
  rule = under_static_scale(rule);
  const float factor = activation_factor(scale, 0.0f, rule);
  detail::for_rows(x.rows, x.cols, [=](index_t row) {
    for (index_t first = 0; first < x.cols; first += detail::span_block) {
      const index_t size = min(detail::span_block, x.cols - first);
      uint8_t q[detail::span_block];
      detail::activation_codes(x.row(row) + first, q, size, factor, rule);
      detail::dequantize_span<dtype::f32>(q, x.row(row) + first, size, {scale, 128});
    }
  });
}

namespace detail {

/// What a scheme's groups have: a scale, or a scale and a zero point.
template <class Scheme, class = void>
struct parameter_of {
  using type = params;
};
template <class Scheme>
struct parameter_of<Scheme, std::void_t<decltype(Scheme::format)>> {
  using type = float;
};

/// round_inputs of some rows under parameters that are there.
template <class T, class P, class Scheme>
void read_back(matrix<T> x, matrix<const P> p, group_shape g, Scheme s) {
  std::vector<uint8_t> codes(static_cast<size_t>(x.size()));
  const matrix<uint8_t> q(codes.data(), x.rows, x.cols);
  host::quantize(matrix<const T>(x), p, q, g, s);
  host::dequantize(matrix<const uint8_t>(q), p, x, g, s);
}

/// f(rows) for pieces of x of some 2^16 elements, shared out over the pool.
template <class T, class F>
void for_pieces(matrix<T> x, F f) {
  const index_t step = rows_at_once(x.cols);
  parallel_for(ceil_div(x.rows, step),
               [&](index_t tile) { f(x.rows_at(tile * step, min(step, x.rows - tile * step))); });
}

}  // namespace detail

/// x (m, k) ← what its codes under a scheme of integers or floating-point codes stand for, in place: the number that
/// compressed-tensors' dynamic quantization makes of an activation of dtype s.compute_dtype, zeros' sign aside. g is per_channel for a
/// scale a token, per_tensor for one, per_group(128) for one a token and 128 inputs; int8's scheme is any_scheme{8, true}.
template <class T, class Scheme>
void round_inputs(matrix<T> x, group_shape g, Scheme s) {
  using parameter = typename detail::parameter_of<Scheme>::type;
  if (x.empty()) return;
  if (g.rows == -1) {
    std::vector<parameter> found(static_cast<size_t>(g.across(x.cols)));
    const matrix<parameter> p(found.data(), 1, g.across(x.cols));
    host::fit(matrix<const T>(x), p, g, s, minmax{});
    return detail::for_pieces(x, [&](matrix<T> piece) { detail::read_back(piece, matrix<const parameter>(p), g, s); });
  }
  detail::for_pieces(x, [&](matrix<T> piece) {
    std::vector<parameter> found(static_cast<size_t>(g.down(piece.rows) * g.across(piece.cols)));
    const matrix<parameter> p(found.data(), g.down(piece.rows), g.across(piece.cols));
    host::fit(matrix<const T>(piece), p, g, s, minmax{});
    detail::read_back(piece, matrix<const parameter>(p), g, s);
  });
}

/// The same under the one scale of a checkpoint. @pre scale > 0 and finite.
template <class T, class Scheme>
void round_inputs(matrix<T> x, float scale, Scheme s) {
  using parameter = typename detail::parameter_of<Scheme>::type;
  parameter one{};
  if constexpr (std::is_same_v<parameter, float>)
    one = scale;
  else
    one = {scale, mid_code(s)};
  detail::for_pieces(
      x, [&](matrix<T> piece) { detail::read_back(piece, matrix<const parameter>(&one, 1, 1), per_tensor, s); });
}

}  // namespace host
NIBBLE_NAMESPACE_END

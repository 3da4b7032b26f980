// SPDX-License-Identifier: Apache-2.0
/// @file
/// reference::gemm at the speed of memory, equal to it bit for bit: W is read once for every few tokens, straight from
/// its stored form, threads over tiles of its rows.
///     host::gemm(x, w, y)                                      dense w (n, k): float, fp16 or bf16
///     host::gemm(x, layout, words, scales, zeros, group, y)    codes in 32-bit words (n, ⌈k·bits/32⌉)
/// Codes of 2, 4 and 8 bits are multiplied out of their words; other widths, and groups that end inside a word, row by
/// row through floats in cache.
#pragma once

#include <algorithm>
#include <vector>

#include "nibble/gemm.hpp"
#include "nibble/host/gemm/avx2.hpp"
#include "nibble/host/gemm/avx512.hpp"
#include "nibble/host/gemm/plain.hpp"
#include "nibble/host/pack.hpp"
#include "nibble/host/parallel.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows and tokens a kernel takes at once: sums, weights and a vector of x fit the registers.
inline constexpr int gemm_rows = 4, gemm_tokens = 4;

/// Rows a thread takes at a time: some 128 KiB of W, which stay in the second-level cache for the next tokens.
constexpr index_t gemm_tile(index_t row_bytes) noexcept {
  return clamp(round_up((index_t(1) << 17) / max(row_bytes, index_t(1)), gemm_rows), index_t(gemm_rows), index_t(256));
}

/// x (m, k) as kernels read it: with `run` inputs to a word, element 16·run·b + 16·s + l is input 16·run·b + run·l + s,
/// zeros past the end.
class arranged_inputs {
 public:
  arranged_inputs(matrix<const float> x, index_t run) : stride_(round_up(x.cols, gemm_lanes * run)) {
    data_.assign(static_cast<size_t>(x.rows * stride_), 0.0f);
    parallel_for(ceil_div(x.rows, gemm_tokens), [&](index_t tile) {
      for (index_t t = tile * gemm_tokens; t < min(x.rows, (tile + 1) * gemm_tokens); ++t) {
        float* to = data_.data() + t * stride_;
        const float* from = x.row(t);
        const index_t block = gemm_lanes * run, whole = run == 1 ? 0 : x.cols / block * block;
        for (index_t first = 0; first < whole; first += block)
          for (index_t s = 0; s < run; ++s)
            for (index_t l = 0; l < gemm_lanes; ++l) to[first + gemm_lanes * s + l] = from[first + run * l + s];
        for (index_t j = whole; j < x.cols; ++j)
          to[run == 1 ? j : whole + j % run * gemm_lanes + (j - whole) / run] = from[j];
      }
    });
  }
  const float* row(index_t t) const { return data_.data() + t * stride_; }
  index_t stride() const { return stride_; }

 private:
  index_t stride_;
  std::vector<float> data_;
};

/// Calls f(rows, tokens, row, token), the first two as constants, until `rows` rows by `tokens` tokens are covered.
template <class F>
void over_products(index_t rows, index_t tokens, F&& f) {
  using one = std::integral_constant<int, 1>;
  using two = std::integral_constant<int, 2>;
  using four = std::integral_constant<int, 4>;
  const auto over_tokens = [&](auto count, index_t row) {
    index_t t = 0;
    for (; t + 4 <= tokens; t += 4) f(count, four{}, row, t);
    if (t + 2 <= tokens) f(count, two{}, row, t), t += 2;
    if (t < tokens) f(count, one{}, row, t);
  };
  index_t row = 0;
  for (; row + gemm_rows <= rows; row += gemm_rows) over_tokens(four{}, row);
  for (; row < rows; ++row) over_tokens(one{}, row);
}

/// Tokens whose x stays in the second-level cache while the rows of a tile pass.
template <class F>
void over_token_blocks(index_t tokens, F&& f) {
  for (index_t first = 0; first < tokens; first += gemm_tokens) f(first, min(index_t(gemm_tokens), tokens - first));
}

template <class Kernel, class T>
void gemm_dense(matrix<const float> x, matrix<const T> w, matrix<float> y) {
  const arranged_inputs in(x, 1);
  const index_t tile_rows = gemm_tile(w.cols * static_cast<index_t>(sizeof(T)));
  parallel_for(ceil_div(w.rows, tile_rows), [&](index_t tile) {
    const index_t first = tile * tile_rows, rows = min(tile_rows, w.rows - first);
    over_token_blocks(x.rows, [&](index_t token, index_t tokens) {
      over_products(rows, tokens, [&](auto r, auto t, index_t row, index_t at) {
        const gemm_output_view o{in.row(token + at), in.stride(), &y(token + at, first + row), y.stride};
        Kernel::template dense<T, r.value, t.value>(w.row(first + row), w.stride, w.cols, o);
      });
    });
  });
}

/// The parameters of a tile's rows as floats: one a group where groups are whole blocks of 16 words, else one a word.
struct tile_params {
  std::vector<float> scales, zeros;
  index_t per_row, blocks_a_param;

  template <class Scale>
  void read(matrix<const Scale> stored, matrix<const uint8_t> zero_points, int bits, index_t words, index_t run,
            index_t width) {
    const bool by_group = stored.cols == 1 || width % (gemm_lanes * run) == 0;
    per_row = by_group ? stored.cols : round_up(words, gemm_lanes);
    blocks_a_param = !by_group ? 0 : stored.cols == 1 ? ceil_div(words, gemm_lanes) : width / (gemm_lanes * run);
    scales.resize(static_cast<size_t>(stored.rows * per_row));
    zeros.resize(scales.size());
    const auto middle = static_cast<float>(1 << (bits - 1));
    const auto zero_of = [&](index_t row, index_t g) {
      return zero_points.data ? static_cast<float>(zero_points(row, g)) : middle;
    };
    vectorised([&] {
      for (index_t row = 0; row < stored.rows; ++row) {
        float *scale = scales.data() + row * per_row, *zero = zeros.data() + row * per_row;
        if (by_group) {
          for (index_t g = 0; g < stored.cols; ++g) scale[g] = load(stored(row, g));
          for (index_t g = 0; g < stored.cols; ++g) zero[g] = zero_of(row, g);
          continue;
        }
        const index_t share = width / run;  // words of a group
        for (index_t g = 0; g < stored.cols; ++g) {
          const index_t end = g + 1 < stored.cols ? (g + 1) * share : per_row;
          std::fill(scale + g * share, scale + end, load(stored(row, g)));
          std::fill(zero + g * share, zero + end, zero_of(row, g));
        }
      }
    });
  }
};

template <class Kernel, int Bits, class Scale>
void gemm_words(matrix<const float> x, matrix<const uint32_t> words, matrix<const Scale> scales,
                matrix<const uint8_t> zeros, index_t width, matrix<float> y) {
  constexpr index_t run = 32 / Bits;
  const arranged_inputs in(x, run);
  const index_t tile_rows = gemm_tile(words.cols * 4);
  parallel_for(ceil_div(words.rows, tile_rows), [&](index_t tile) {
    const index_t first = tile * tile_rows, rows = min(tile_rows, words.rows - first);
    thread_local tile_params p;
    p.read(scales.rows_at(first, rows), zeros.data ? zeros.rows_at(first, rows) : zeros, Bits, words.cols, run, width);
    over_token_blocks(x.rows, [&](index_t token, index_t tokens) {
      over_products(rows, tokens, [&](auto r, auto t, index_t row, index_t at) {
        const gemm_output_view o{in.row(token + at), in.stride(), &y(token + at, first + row), y.stride};
        const packed_rows w{
            words.row(first + row),           words.stride, words.cols,      p.scales.data() + row * p.per_row,
            p.zeros.data() + row * p.per_row, p.per_row,    p.blocks_a_param};
        Kernel::template words<Bits, r.value, t.value>(w, o);
      });
    });
  });
}

/// Any width and group: a few rows at a time become codes, then floats, in cache.
template <class Kernel, class Scale>
void gemm_through_floats(matrix<const float> x, layout::compressed_tensors l, matrix<const uint32_t> words,
                         matrix<const Scale> scales, matrix<const uint8_t> zeros, index_t width, matrix<float> y) {
  const index_t k = x.cols;
  const arranged_inputs in(x, 1);
  parallel_for(ceil_div(words.rows, gemm_rows), [&](index_t tile) {
    const index_t first = tile * gemm_rows, rows = min(index_t(gemm_rows), words.rows - first);
    thread_local std::vector<uint8_t> codes;
    thread_local std::vector<float> weights;
    codes.resize(static_cast<size_t>(rows * k));
    weights.resize(codes.size());
    unpack(l, words.rows_at(first, rows), matrix<uint8_t>(codes.data(), rows, k));
    vectorised([&] {
      for (index_t row = 0; row < rows; ++row)
        for (index_t g = 0; g < scales.cols; ++g) {
          const float scale = load(scales(first + row, g));
          const float zero =
              zeros.data ? static_cast<float>(zeros(first + row, g)) : static_cast<float>(1 << (l.bits - 1));
          const uint8_t* code = codes.data() + row * k;
          float* weight = weights.data() + row * k;
          for (index_t j = g * width; j < min(k, (g + 1) * width); ++j)
            weight[j] = (static_cast<float>(code[j]) - zero) * scale;
        }
    });
    over_products(rows, x.rows, [&](auto r, auto t, index_t row, index_t at) {
      const gemm_output_view o{in.row(at), in.stride(), &y(at, first + row), y.stride};
      Kernel::template dense<float, r.value, t.value>(weights.data() + row * k, k, k, o);
    });
  });
}

template <class Kernel, class Scale>
void gemm_packed(matrix<const float> x, layout::compressed_tensors l, matrix<const uint32_t> words,
                 matrix<const Scale> scales, matrix<const uint8_t> zeros, index_t group, matrix<float> y) {
  const index_t width = group < 0 ? x.cols : group;
  if (gemm_run(l.bits, group) == 1) return gemm_through_floats<Kernel>(x, l, words, scales, zeros, width, y);
  if (l.bits == 2) return gemm_words<Kernel, 2>(x, words, scales, zeros, width, y);
  if (l.bits == 4) return gemm_words<Kernel, 4>(x, words, scales, zeros, width, y);
  gemm_words<Kernel, 8>(x, words, scales, zeros, width, y);
}

/// f(kernel), the fastest this machine runs.
template <class F>
void with_gemm_kernel(F&& f) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (has_avx512()) return f(avx512_kernel{});
  if (has_avx2()) return f(avx2_kernel{});
#endif
  f(plain_kernel{});
}

}  // namespace detail

/// y (m, n) = x (m, k) · w (n, k)ᵀ; T float, fp16 or bf16.
template <class T>
void gemm(matrix<const float> x, matrix<const T> w, matrix<float> y) {
  detail::with_gemm_kernel([&](auto kernel) { detail::gemm_dense<decltype(kernel)>(x, w, y); });
}

/// y (m, n) = x (m, k) · Wᵀ of the codes in words; scales (n, groups) float, fp16 or bf16; zeros (n, groups), null where
/// the packing is symmetric. @pre can_pack; scales finite, and so is every (code − zero)·scale.
template <class Scale>
void gemm(matrix<const float> x, layout::compressed_tensors l, matrix<const uint32_t> words, matrix<const Scale> scales,
          matrix<const uint8_t> zeros, index_t group, matrix<float> y) {
  detail::with_gemm_kernel(
      [&](auto kernel) { detail::gemm_packed<decltype(kernel)>(x, l, words, scales, zeros, group, y); });
}

}  // namespace host
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// reference::gemm at the speed of memory, equal to it bit for bit: W is read once for every few tokens, straight from
/// its stored form, threads over tiles of its rows.
///     host::gemm(x, w, y)                                      dense w (n, k): float, fp16 or bf16
///     host::gemm(x, layout, words, scales, zeros, group, y)    codes in 32-bit words (n, ⌈k·bits/32⌉)
/// Codes of 2, 4 and 8 bits are multiplied out of their words; other widths, and groups that end inside a word, as a code a
/// byte, which AVX-512 makes in registers and others in cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "nibble/gemm.hpp"
#include "nibble/host/gemm/avx2.hpp"
#include "nibble/host/gemm/avx512.hpp"
#include "nibble/host/gemm/inputs.hpp"
#include "nibble/host/gemm/plain.hpp"
#include "nibble/host/gemm/vnni.hpp"
#include "nibble/host/pack.hpp"
#include "nibble/host/parallel.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows and tokens a kernel takes at once: sums, weights and a vector of x fit the registers.
inline constexpr int gemm_rows = 4, gemm_tokens = 4;

/// Rows a thread takes at a time, of `rows`: 128 to 512 KiB of W, which stay in the second-level cache for the next tokens;
/// no more than a 32nd of W where that allows it, since threads end together only as far as tiles are small.
constexpr index_t gemm_tile(index_t row_bytes, index_t rows) noexcept {
  const index_t bytes = clamp(row_bytes * rows / 32, index_t(1) << 17, index_t(1) << 19);
  return clamp(round_up(bytes / max(row_bytes, index_t(1)), gemm_rows), index_t(gemm_rows), index_t(256));
}

/// Bytes from row `row` on to those that are read after `count` rows from it, if the tile has them.
constexpr index_t fetched_ahead(index_t row_bytes, index_t row, index_t count, index_t rows) noexcept {
  return row + 2 * count <= rows ? count * row_bytes : 0;
}

/// x (m, k) with every row filled up with zeros to whole vectors.
class padded_inputs {
 public:
  explicit padded_inputs(matrix<const float> x) : stride_(round_up(x.cols, gemm_lanes)) {
    data_.resize(static_cast<size_t>(x.rows * stride_));
    for (index_t t = 0; t < x.rows; ++t) std::copy_n(x.row(t), x.cols, data_.data() + t * stride_);
  }
  const float* row(index_t t) const { return data_.data() + t * stride_; }
  index_t stride() const { return stride_; }

 private:
  index_t stride_;
  std::vector<float> data_;
};

/// Calls f(rows, tokens, row, token), the first two as constants, until `rows` rows by `tokens` tokens are covered.
/// @tparam Tokens  at once, 4 or 1.
template <int Tokens, class F>
void over_products(index_t rows, index_t tokens, F&& f) {
  const auto over_rows = [&](auto count, index_t token) {
    const std::integral_constant<int, gemm_rows> most{};
    index_t row = 0;
    for (; row + gemm_rows <= rows; row += gemm_rows) f(most, count, row, token);
    for (; row < rows; ++row) f(std::integral_constant<int, 1>{}, count, row, token);
  };
  index_t token = 0;
  if constexpr (Tokens == 4) {
    for (; token + 4 <= tokens; token += 4) over_rows(std::integral_constant<int, 4>{}, token);
    if (token + 2 <= tokens) over_rows(std::integral_constant<int, 2>{}, token), token += 2;
  }
  for (; token < tokens; ++token) over_rows(std::integral_constant<int, 1>{}, token);
}

/// Tokens whose x stays in the second-level cache while the rows of a tile pass.
template <class F>
void over_token_blocks(index_t tokens, F&& f) {
  for (index_t first = 0; first < tokens; first += gemm_tokens) f(first, min(index_t(gemm_tokens), tokens - first));
}

template <class Kernel, class T>
void gemm_dense(matrix<const float> x, matrix<const T> w, matrix<float> y) {
  const padded_inputs in(x);
  const index_t tile_rows = gemm_tile(w.cols * static_cast<index_t>(sizeof(T)), w.rows);
  parallel_for(ceil_div(w.rows, tile_rows), [&](index_t tile) {
    const index_t first = tile * tile_rows, rows = min(tile_rows, w.rows - first);
    over_token_blocks(x.rows, [&](index_t token, index_t tokens) {
      over_products<4>(rows, tokens, [&](auto r, auto t, index_t row, index_t at) {
        const gemm_output_view<float> o{in.row(token + at), in.stride(), &y(token + at, first + row), y.stride};
        const index_t ahead = fetched_ahead(w.stride * static_cast<index_t>(sizeof(T)), row, r.value, rows);
        Kernel::template dense<T, r.value, t.value>(w.row(first + row), w.stride, w.cols, ahead, o);
      });
    });
  });
}

/// Scales (n, groups) of any dtype, so that products are compiled once and not once a dtype: tile_params reads them as float.
struct stored_scales {
  template <class Scale>
  explicit stored_scales(matrix<const Scale> of)
      : type(dtype_of<Scale>::value), data(of.data), rows(of.rows), cols(of.cols), stride(of.stride) {}
  dtype type;
  const void* data;
  index_t rows, cols, stride;

  stored_scales rows_at(index_t first, index_t count) const {
    stored_scales part = *this;
    part.data = static_cast<const std::byte*>(data) + first * stride * size_of(type);
    part.rows = count;
    return part;
  }
  /// f(matrix<const T>), T the dtype's.
  template <class F>
  void visit(F&& f) const {
    if (type == dtype::f32)
      f(matrix<const float>(static_cast<const float*>(data), rows, cols, stride));
    else if (type == dtype::f16)
      f(matrix<const fp16>(static_cast<const fp16*>(data), rows, cols, stride));
    else
      f(matrix<const bf16>(static_cast<const bf16*>(data), rows, cols, stride));
  }
};

/// The parameters of a tile's rows as packed_rows has them: one a group where groups are whole blocks or divide a block
/// into 2, 4, 8 or 16, else one a word.
struct tile_params {
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  index_t per_row, blocks_a_param, params_a_block;

  /// @param width  inputs of a group. @param run  of a word. @param zero_factor  that zero points are stored times.
  void read(const stored_scales& stored, matrix<const uint8_t> zero_points, int bits, index_t blocks, index_t run,
            index_t width, int32_t zero_factor) {
    const bool whole = stored.cols == 1 || width % (gemm_lanes * run) == 0;
    const index_t share = width / run;  // words of a group
    blocks_a_param = !whole ? 0 : stored.cols == 1 ? blocks : share / gemm_lanes;
    params_a_block = whole ? 1 : gemm_lanes % share == 0 ? gemm_lanes / share : gemm_lanes;
    per_row = whole ? stored.cols : blocks * params_a_block;
    const index_t copies = whole || gemm_lanes % share == 0 ? 1 : share;
    scales.resize(static_cast<size_t>(stored.rows * per_row + gemm_lanes));
    zeros.resize(scales.size());
    const int32_t middle = (1 << (bits - 1)) * zero_factor;
    stored.visit([&](auto of) { fill(of, zero_points, copies, middle, zero_factor); });
  }

 private:
  /// Every parameter `copies` times. @param middle  the zero point where none is stored.
  template <class Scale>
  void fill(matrix<const Scale> stored, matrix<const uint8_t> zero_points, index_t copies, int32_t middle,
            int32_t zero_factor) {
    vectorised([&] {
      for (index_t row = 0; row < stored.rows; ++row) {
        float* scale = scales.data() + row * per_row;
        int32_t* zero = zeros.data() + row * per_row;
        if (copies == 1) {
          for (index_t g = 0; g < stored.cols; ++g) scale[g] = load(stored(row, g));
          if (zero_points.data)
            for (index_t g = 0; g < stored.cols; ++g) zero[g] = zero_points(row, g) * zero_factor;
          else
            std::fill(zero, zero + stored.cols, middle);
        } else {
          for (index_t at = 0; at < min(per_row, stored.cols * copies); ++at) {
            scale[at] = load(stored(row, at / copies));
            zero[at] = zero_points.data ? zero_points(row, at / copies) * zero_factor : middle;
          }
        }
        const index_t end = min(per_row, stored.cols * copies);  // lanes past k, whose inputs are zeros
        std::fill(scale + end, scale + per_row, 0.0f);
        std::fill(zero + end, zero + per_row, 0);
      }
    });
  }
};

/// A packed W as a tile of its rows is multiplied.
struct packed_weights {
  int bits;
  matrix<const uint32_t> words;
  stored_scales scales;
  matrix<const uint8_t> zeros;
  index_t width;  ///< inputs of a group
  packed_weights rows_at(index_t first, index_t rows) const {
    return {bits, words.rows_at(first, rows), scales.rows_at(first, rows),
            zeros.data ? zeros.rows_at(first, rows) : zeros, width};
  }
};

/// y (m, rows): all tokens against a few rows of W, whose words stay in cache.
template <class Kernel, int Bits, bool String, class Block, int Run>
void multiply_tile(const block_inputs<Block, Run>& in, const packed_weights& w, matrix<float> y) {
  thread_local tile_params p;
  p.read(w.scales, w.zeros, w.bits, in.blocks(), Run, w.width, Block::zero_factor);
  over_token_blocks(y.rows, [&](index_t token, index_t tokens) {
    over_products<Block::most_tokens>(w.words.rows, tokens, [&](auto r, auto t, index_t row, index_t at) {
      const gemm_output_view<Block> o{in.row(token + at), in.blocks(), &y(token + at, row), y.stride};
      const packed_rows rows{w.words.row(row),
                             w.words.stride,
                             w.words.cols,
                             w.bits,
                             in.blocks(),
                             p.scales.data() + row * p.per_row,
                             p.zeros.data() + row * p.per_row,
                             p.per_row,
                             p.blocks_a_param,
                             fetched_ahead(w.words.stride * 4, row, r.value, w.words.rows),
                             p.params_a_block};
      Kernel::template packed<Bits, String, r.value, t.value>(rows, o);
    });
  });
}

template <class Kernel, int Bits, bool String, class Block, int Run>
void gemm_blocks(matrix<const float> x, const packed_weights& w, matrix<float> y) {
  const block_inputs<Block, Run> in(x);
  const index_t tile_rows = gemm_tile(w.words.cols * 4, w.words.rows);
  parallel_for(ceil_div(w.words.rows, tile_rows), [&](index_t tile) {
    const index_t first = tile * tile_rows, rows = min(tile_rows, w.words.rows - first);
    multiply_tile<Kernel, Bits, String>(in, w.rows_at(first, rows), y.cols_at(first, rows));
  });
}

/// Straight from the words. @tparam String  Bits is 8, and codes of w.bits become bytes as they are read.
template <class Kernel, int Bits, bool String, int Run>
void gemm_words(matrix<const float> x, const packed_weights& w, matrix<float> y) {
  if constexpr (Kernel::reads_bytes && (Bits < 8 || String)) {
    if (x.rows == 1) return gemm_blocks<Kernel, Bits, String, byte_block<8 / Bits>, Run>(x, w, y);
  }
  gemm_blocks<Kernel, Bits, String, pair_block<16 / Bits>, Run>(x, w, y);
}

/// Any width and group: rows at a time become a code a byte, Run of them a word, in cache.
template <class Kernel, int Run>
void gemm_through_bytes(matrix<const float> x, const packed_weights& w, matrix<float> y) {
  const block_inputs<pair_block<2>, Run> in(x);
  const index_t k = x.cols, word_count = ceil_div(k, Run), tile_rows = gemm_tile(word_count * 4, w.words.rows);
  parallel_for(ceil_div(w.words.rows, tile_rows), [&](index_t tile) {
    const index_t first = tile * tile_rows, rows = min(tile_rows, w.words.rows - first);
    thread_local std::vector<uint32_t> words;
    words.assign(static_cast<size_t>(rows * word_count), 0);
    const layout::compressed_tensors l{w.bits};
    if constexpr (Run == 4) {
      auto* bytes = reinterpret_cast<uint8_t*>(words.data());
      unpack(l, w.words.rows_at(first, rows), matrix<uint8_t>(bytes, rows, k, 4 * word_count));
    } else {
      for (index_t row = 0; row < rows; ++row)
        for (index_t j = 0; j < k; ++j)
          words[static_cast<size_t>(row * k + j)] = code_at(l, w.words, w.words.rows, k, first + row, j);
    }
    packed_weights of_tile = w.rows_at(first, rows);
    of_tile.words = matrix<const uint32_t>(words.data(), rows, word_count);
    multiply_tile<Kernel, 8, false>(in, of_tile, y.cols_at(first, rows));
  });
}

template <class Kernel>
void gemm_runs(matrix<const float> x, const packed_weights& w, index_t group, matrix<float> y) {
  const index_t run = gemm_run(w.bits, group);
  if (run == 1) return gemm_through_bytes<Kernel, 1>(x, w, y);
  if (run * w.bits == 32) {
    if (w.bits == 2) return gemm_words<Kernel, 2, false, 16>(x, w, y);
    if (w.bits == 4) return gemm_words<Kernel, 4, false, 8>(x, w, y);
    return gemm_words<Kernel, 8, false, 4>(x, w, y);
  }
  if constexpr (Kernel::reads_strings)
    gemm_words<Kernel, 8, true, 4>(x, w, y);
  else
    gemm_through_bytes<Kernel, 4>(x, w, y);
}

template <class Kernel, class Scale>
void gemm_packed(matrix<const float> x, layout::compressed_tensors l, matrix<const uint32_t> words,
                 matrix<const Scale> scales, matrix<const uint8_t> zeros, index_t group, matrix<float> y) {
  gemm_runs<Kernel>(x, {l.bits, words, stored_scales(scales), zeros, group < 0 ? x.cols : group}, group, y);
}

/// f(kernel), the fastest this machine runs on dense weights.
template <class F>
void with_dense_kernel(F&& f) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (has_avx512()) return f(avx512_kernel{});
  if (has_avx2()) return f(avx2_kernel{});
#endif
  f(plain_kernel{});
}
/// f(kernel), the fastest this machine runs on packed ones.
template <class F>
void with_packed_kernel(F&& f) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (has_vnni()) return f(vnni_kernel{});
  if (has_avx2()) return f(avx2_kernel{});
#endif
  f(plain_kernel{});
}

}  // namespace detail

/// y (m, n) = x (m, k) · w (n, k)ᵀ; T float, fp16 or bf16.
template <class T>
void gemm(matrix<const float> x, matrix<const T> w, matrix<float> y) {
  detail::with_dense_kernel([&](auto kernel) { detail::gemm_dense<decltype(kernel)>(x, w, y); });
}

/// y (m, n) = x (m, k) · Wᵀ of the codes in words; scales (n, groups) float, fp16 or bf16; zeros (n, groups), null where
/// the packing is symmetric. @pre can_pack; scales finite, and so is every (code − zero)·scale.
template <class Scale>
void gemm(matrix<const float> x, layout::compressed_tensors l, matrix<const uint32_t> words, matrix<const Scale> scales,
          matrix<const uint8_t> zeros, index_t group, matrix<float> y) {
  detail::with_packed_kernel(
      [&](auto kernel) { detail::gemm_packed<decltype(kernel)>(x, l, words, scales, zeros, group, y); });
}

}  // namespace host
NIBBLE_NAMESPACE_END

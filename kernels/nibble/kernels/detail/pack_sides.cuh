// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the words of each layout meet a tile of codes in shared memory. A side cuts a tile into pieces, one thread's work at a
/// time: a few rows of a few words, held as units of 32 bits, which it makes from the tile's codes or spreads over them. So
/// any two sides make a kernel: plain codes and words are pack and unpack, words and words are repack.
///     word, rows, units         a piece is `rows` rows of 32 · units bits in words of that type, `codes` codes
///     turned                    words lie across rows of codes: wants a tile as high as it is wide
///     origin(i, j)              the word where the tile of code (i, j) begins
///     at<Tile>(piece)           the piece's first word, from there
///     pack, unpack(tile, piece, units)
/// Neighbouring pieces are neighbouring words along a row, as far as a tile goes.
#pragma once

#include "nibble/kernels/detail/code_tile.cuh"
#include "nibble/layout.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// A word of a tile: row and column from the tile's first.
struct spot {
  int row, col;
};

template <class Layout, int Bits>
struct side;

/// Codes (n, k), one a byte.
struct plain_codes {};

template <int Bits>
struct side<plain_codes, Bits> {
  using word = uint8_t;
  static constexpr int rows = 1, units = 4, codes = 16;
  static constexpr bool turned = false;
  __device__ static layout::extents origin(index_t i, index_t j) { return {i, j}; }
  template <class Tile>
  __device__ static spot at(int piece) {
    return {piece / (Tile::cols / 16), piece % (Tile::cols / 16) * 16};
  }
  template <class Tile>
  __device__ static void pack(Tile tile, int piece, uint32_t (&to)[1][4]) {
    const auto four = tile.template get<device::chunk<uint32_t, 4>>(at<Tile>(piece).row, at<Tile>(piece).col);
#pragma unroll
    for (int u = 0; u < 4; ++u) to[0][u] = four.at[u];
  }
  template <class Tile>
  __device__ static void unpack(Tile tile, int piece, const uint32_t (&from)[1][4]) {
    tile.set(at<Tile>(piece).row, at<Tile>(piece).col,
             device::chunk<uint32_t, 4>{{from[0][0], from[0][1], from[0][2], from[0][3]}});
  }
};

/// 32 codes of a row are Bits words of it.
template <int Bits>
struct side<layout::compressed_tensors, Bits> {
  using word = uint32_t;
  static constexpr int rows = 1, units = Bits, codes = 32;
  static constexpr bool turned = false;
  __device__ static layout::extents origin(index_t i, index_t j) { return {i, j / 32 * Bits}; }
  template <class Tile>
  __device__ static spot at(int piece) {
    return {piece / (Tile::cols / 32), piece % (Tile::cols / 32) * Bits};
  }
  template <class Tile>
  __device__ static void pack(Tile tile, int piece, uint32_t (&to)[1][Bits]) {
    uint32_t run[8];
    tile.get_run(piece / (Tile::cols / 32), piece % (Tile::cols / 32) * 32, run);
    pack_string<Bits>(run, to[0]);
  }
  template <class Tile>
  __device__ static void unpack(Tile tile, int piece, const uint32_t (&from)[1][Bits]) {
    uint32_t run[8];
    unpack_string<Bits>(from[0], run);
    tile.set_run(piece / (Tile::cols / 32), piece % (Tile::cols / 32) * 32, run);
  }
};

/// 32 inputs of 4 outputs are Bits rows of 4 words.
template <int Bits>
struct side<layout::gptq, Bits> {
  using word = uint32_t;
  static constexpr int rows = Bits, units = 4, codes = 128;
  static constexpr bool turned = true;
  __device__ static layout::extents origin(index_t i, index_t j) { return {j / 32 * Bits, i}; }
  template <class Tile>
  __device__ static spot at(int piece) {
    return {piece / (Tile::rows / 4) * Bits, piece % (Tile::rows / 4) * 4};
  }
  template <class Tile>
  __device__ static void pack(Tile tile, int piece, uint32_t (&to)[Bits][4]) {
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      uint32_t run[8], string[Bits];
      tile.get_run(piece % (Tile::rows / 4) * 4 + u, piece / (Tile::rows / 4) * 32, run);
      pack_string<Bits>(run, string);
#pragma unroll
      for (int r = 0; r < Bits; ++r) to[r][u] = string[r];
    }
  }
  template <class Tile>
  __device__ static void unpack(Tile tile, int piece, const uint32_t (&from)[Bits][4]) {
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      uint32_t run[8], string[Bits];
#pragma unroll
      for (int r = 0; r < Bits; ++r) string[r] = from[r][u];
      unpack_string<Bits>(string, run);
      tile.set_run(piece % (Tile::rows / 4) * 4 + u, piece / (Tile::rows / 4) * 32, run);
    }
  }
};

/// 4 inputs of 32 outputs are 4 rows of 4 words. Of 8 outputs, 4 inputs each, pairs of nibbles make four words whose bytes
/// lie transposed.
template <>
struct side<layout::awq_gemm, 4> {
  using word = uint32_t;
  static constexpr int rows = 4, units = 4, codes = 128;
  static constexpr bool turned = true;
  __device__ static layout::extents origin(index_t i, index_t j) { return {j, i / 8}; }
  template <class Tile>
  __device__ static spot at(int piece) {
    return {piece / (Tile::rows / 32) * 4, piece % (Tile::rows / 32) * 4};
  }
  template <class Tile>
  __device__ static void pack(Tile tile, int piece, uint32_t (&to)[4][4]) {
    const int row = at<Tile>(piece).col * 8, col = at<Tile>(piece).row;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      uint32_t pairs[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int first = row + 8 * u + p % 2 * 4 + p / 2;
        pairs[p] = tile.template get<uint32_t>(first, col) | tile.template get<uint32_t>(first + 2, col) << 4;
      }
      turn_bytes(pairs);
#pragma unroll
      for (int r = 0; r < 4; ++r) to[r][u] = pairs[r];
    }
  }
  template <class Tile>
  __device__ static void unpack(Tile tile, int piece, const uint32_t (&from)[4][4]) {
    const int row = at<Tile>(piece).col * 8, col = at<Tile>(piece).row;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      uint32_t pairs[4] = {from[0][u], from[1][u], from[2][u], from[3][u]};
      turn_bytes(pairs);
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int first = row + 8 * u + p % 2 * 4 + p / 2;
        tile.set(first, col, pairs[p] & 0x0f0f0f0fu);
        tile.set(first + 2, col, pairs[p] >> 4 & 0x0f0f0f0fu);
      }
    }
  }
};

/// 32 codes of a row are 8 words of 16 bits. In a run 8b + 2a + c, a and c choose the word and b the nibble.
template <>
struct side<layout::awq_gemv_fast, 4> {
  using word = uint16_t;
  static constexpr int rows = 1, units = 4, codes = 32;
  static constexpr bool turned = false;
  __device__ static layout::extents origin(index_t i, index_t j) { return {i / 4, j}; }
  template <class Tile>
  __device__ static spot at(int piece) {
    return {piece / 8 / (Tile::cols / 64), piece / 8 % (Tile::cols / 64) * 64 + piece % 8 * 8};
  }
  template <class Tile>
  __device__ static spot first_code(int piece) {
    return {at<Tile>(piece).row * 4 + piece / 2 % 4, piece / 8 % (Tile::cols / 64) * 64 + piece % 2 * 32};
  }
  template <class Tile>
  __device__ static void pack(Tile tile, int piece, uint32_t (&to)[1][4]) {
    const spot code = first_code<Tile>(piece);
    uint32_t run[8];
    tile.get_run(code.row, code.col, run);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t low = run[half] | run[2 + half] << 4, high = run[4 + half] | run[6 + half] << 4;
      to[0][2 * half] = interleave(low, high), to[0][2 * half + 1] = interleave(low >> 16, high >> 16);
    }
  }
  template <class Tile>
  __device__ static void unpack(Tile tile, int piece, const uint32_t (&from)[1][4]) {
    const spot code = first_code<Tile>(piece);
    uint32_t run[8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t a = from[0][2 * half], b = from[0][2 * half + 1];
      const uint32_t low = even_bytes(a) | even_bytes(b) << 16, high = even_bytes(a >> 8) | even_bytes(b >> 8) << 16;
      run[half] = low & 0x0f0f0f0fu, run[2 + half] = low >> 4 & 0x0f0f0f0fu;
      run[4 + half] = high & 0x0f0f0f0fu, run[6 + half] = high >> 4 & 0x0f0f0f0fu;
    }
    tile.set_run(code.row, code.col, run);
  }
};

/// A row of 64 outputs by 16 inputs is 32 · Bits words, Bits of them one lane's of mma.m16n8k16: 4 make a piece. 4 bits: a
/// word has both outputs i and i + 8; 8 bits: two words have them.
template <int Bits>
struct side<layout::marlin, Bits> {
  using word = uint32_t;
  static constexpr int rows = 1, units = 4, codes = 128 / Bits, a_lane = Bits / 4;
  static constexpr bool turned = true;
  __device__ static layout::extents origin(index_t i, index_t j) { return {j / 16, i / 64 * 32 * Bits}; }
  template <class Tile>
  __device__ static spot at(int piece) {
    const int unit = piece / (32 * a_lane);
    return {unit / (Tile::rows / 64), unit % (Tile::rows / 64) * 32 * Bits + piece % (32 * a_lane) * 4};
  }
  /// Where the two neighbouring inputs lie that are pair `pair` of a piece's word u: 2 · half of the outputs + half of the
  /// inputs, of 8 bits half of the inputs.
  template <class Tile>
  __device__ static spot pair_at(int piece, int u, int pair) {
    const int unit = piece / (32 * a_lane), lane = piece / a_lane % 32;
    const int word = piece % a_lane * 4 + u, of_16 = word / a_lane;
    const int block = Bits == 4 ? pair / 2 : word % 2;
    return {unit % (Tile::rows / 64) * 64 + of_16 * 16 + block * 8 + lane / 4,
            unit / (Tile::rows / 64) * 16 + pair % 2 * 8 + lane % 4 * 2};
  }
  template <class Tile>
  __device__ static void pack(Tile tile, int piece, uint32_t (&to)[1][4]) {
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      uint32_t pairs[2] = {};
#pragma unroll
      for (int pair = 0; pair < 8 / a_lane / 2; ++pair) {
        const spot code = pair_at<Tile>(piece, u, pair);
        const uint32_t two = tile.template get<uint16_t>(code.row, code.col);
        if constexpr (Bits == 4)
          pairs[pair / 2] |= two << pair % 2 * 4;
        else
          pairs[pair] = two;
      }
      to[0][u] = interleave(pairs[0], pairs[1]);
    }
  }
  template <class Tile>
  __device__ static void unpack(Tile tile, int piece, const uint32_t (&from)[1][4]) {
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const uint32_t pairs[2] = {even_bytes(from[0][u]), even_bytes(from[0][u] >> 8)};
#pragma unroll
      for (int pair = 0; pair < 8 / a_lane / 2; ++pair) {
        const spot code = pair_at<Tile>(piece, u, pair);
        const uint32_t two = Bits == 4 ? pairs[pair / 2] >> pair % 2 * 4 & 0x0f0fu : pairs[pair];
        tile.set(code.row, code.col, static_cast<uint16_t>(two));
      }
    }
  }
};

/// The matrix as one row: 32 codes are 16 bytes, the first code of each in the high nibble.
template <>
struct side<layout::bitsandbytes, 4> {
  using word = uint8_t;
  static constexpr int rows = 1, units = 4, codes = 32;
  static constexpr bool turned = false;
  __device__ static layout::extents origin(index_t, index_t j) { return {0, j / 2}; }
  template <class Tile>
  __device__ static spot at(int piece) {
    return {0, piece * 16};
  }
  __device__ static uint32_t exchange_nibbles(uint32_t x) { return select(0x0f0f0f0fu, x >> 4, x << 4); }
  template <class Tile>
  __device__ static void pack(Tile tile, int piece, uint32_t (&to)[1][4]) {
    uint32_t run[8];
    tile.get_run(0, piece * 32, run);
    pack_string<4>(run, to[0]);
#pragma unroll
    for (int u = 0; u < 4; ++u) to[0][u] = exchange_nibbles(to[0][u]);
  }
  template <class Tile>
  __device__ static void unpack(Tile tile, int piece, const uint32_t (&from)[1][4]) {
    uint32_t run[8], string[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) string[u] = exchange_nibbles(from[0][u]);
    unpack_string<4>(string, run);
    tile.set_run(0, piece * 32, run);
  }
};

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What pack, unpack and repack share: a tile of codes in shared memory, and four codes at a time in a register.
#pragma once

#include "nibble/kernels/detail/device.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// The bits of `a` where `mask` has ones, of `b` elsewhere: one LOP3.
__device__ constexpr uint32_t select(uint32_t mask, uint32_t a, uint32_t b) {
  return (a & mask) | (b & ~mask);
}

/// Four codes, one a byte, as a string of 4 · Bits bits. Codes of 1 to 8 bits.
template <int Bits>
__device__ constexpr uint32_t close_ranks(uint32_t codes) {
  constexpr uint32_t first = 0x00010001u * ((1u << Bits) - 1), half = (1u << 2 * Bits) - 1;
  const uint32_t pairs = select(first, codes, codes >> (8 - Bits));
  return select(half, pairs, pairs >> (16 - 2 * Bits));
}

/// Its inverse. Bits of the string past 4 · Bits do not matter.
template <int Bits>
__device__ constexpr uint32_t open_ranks(uint32_t string) {
  constexpr uint32_t first = 0x00010001u * ((1u << Bits) - 1), half = (1u << 2 * Bits) - 1;
  const uint32_t pairs = select(half, string, string << (16 - 2 * Bits));
  return select(first, pairs, pairs << (8 - Bits)) & 0x01010101u * ((1u << Bits) - 1);
}

/// The 4 × 4 bytes of four words, transposed.
__device__ inline void turn_bytes(uint32_t (&x)[4]) {
  const uint32_t even = 0x00ff00ffu, low = 0x0000ffffu;
  const uint32_t a = select(even, x[0], x[1] << 8), b = select(even, x[0] >> 8, x[1]);
  const uint32_t c = select(even, x[2], x[3] << 8), d = select(even, x[2] >> 8, x[3]);
  x[0] = select(low, a, c << 16), x[1] = select(low, b, d << 16);
  x[2] = select(low, a >> 16, c), x[3] = select(low, b >> 16, d);
}

/// Bytes a0, b0, a1, b1, lowest first.
__device__ constexpr uint32_t interleave(uint32_t a, uint32_t b) {
  return select(0x00ff00ffu, select(0x000000ffu, a, a << 8), select(0x0000ff00u, b << 8, b << 16));
}
/// Bytes x0, x2, and zeros.
__device__ constexpr uint32_t even_bytes(uint32_t x) {
  return (x & 0x000000ffu) | (x >> 8 & 0x0000ff00u);
}

/// Codes (Rows, Cols), outputs by inputs, one a byte, in shared memory. Chunks of 16 bytes are permuted within every 8 of a
/// row, so that the lanes of a warp find their codes in different banks whether they go along a row (two in one where a lane
/// takes 32 bytes), down consecutive rows, down every fourth row or down every 32nd: the three bits of a chunk's place are
/// flipped by those sums of the row's bits under which the bits 0–2, the bits 2–4, and the bits 5–6 beside a chunk's lowest,
/// are independent.
template <int Rows, int Cols>
struct code_tile {
  static constexpr int rows = Rows, cols = Cols;
  static_assert(Cols % 128 == 0, "a row of a tile is whole runs of 8 chunks");

  uint8_t* bytes;  ///< Rows · Cols, 16-byte aligned

  __device__ uint8_t* at(int row, int col) const {
    const int flip = (row ^ (row >> 3 & 3) ^ (row >> 4 & 6)) & 7;
    return bytes + row * Cols + ((col & ~15) ^ (flip * 16)) + (col & 15);
  }
  /// The codes of a T from (row, col) on, one access. @pre col is a multiple of sizeof(T).
  template <class T>
  __device__ T get(int row, int col) const {
    return device::load(reinterpret_cast<const T*>(at(row, col)));
  }
  template <class T>
  __device__ void set(int row, int col, T codes) const {
    device::store(reinterpret_cast<T*>(at(row, col)), codes);
  }

  /// 32 codes along a row, four a word. @pre col is a multiple of 32.
  __device__ void get_run(int row, int col, uint32_t (&codes)[8]) const {
    const auto low = get<device::chunk<uint32_t, 4>>(row, col), high = get<device::chunk<uint32_t, 4>>(row, col + 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = low.at[i], codes[4 + i] = high.at[i];
  }
  __device__ void set_run(int row, int col, const uint32_t (&codes)[8]) const {
    set(row, col, device::chunk<uint32_t, 4>{{codes[0], codes[1], codes[2], codes[3]}});
    set(row, col + 16, device::chunk<uint32_t, 4>{{codes[4], codes[5], codes[6], codes[7]}});
  }
};

/// 32 codes, four a word, as the Bits words of a string, and back.
template <int Bits>
__device__ void pack_string(const uint32_t (&codes)[8], uint32_t (&words)[Bits]) {
#pragma unroll
  for (int w = 0; w < Bits; ++w) words[w] = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int word = i * Bits / 8, shift = i * Bits % 8 * 4;
    const uint64_t four = uint64_t{close_ranks<Bits>(codes[i])} << shift;
    words[word] |= static_cast<uint32_t>(four);
    if (shift + 4 * Bits > 32) words[word + 1] |= static_cast<uint32_t>(four >> 32);
  }
}
template <int Bits>
__device__ void unpack_string(const uint32_t (&words)[Bits], uint32_t (&codes)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int word = i * Bits / 8, shift = i * Bits % 8 * 4;
    uint64_t four = words[word];
    if (shift + 4 * Bits > 32) four |= uint64_t{words[word + 1]} << 32;
    codes[i] = open_ranks<Bits>(static_cast<uint32_t>(four >> shift));
  }
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END

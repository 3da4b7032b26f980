// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where the integers of ggml's blocks lie (block_layout.hpp), written in lanes: I is int_lanes<N>, a lane a block, and a block is
/// units of two bytes, little-endian, which stand in the low 16 bits. Each function fills units from `to` on.
#pragma once

#include "nibble/block/lane.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace block_search {

/// Count bytes. @pre each in [0, 256).
template <int Count, class I>
NIBBLE_LANE void put_bytes(const I* bytes, I* to) noexcept {
  for (int i = 0; i < Count / 2; ++i) to[i] = bytes[2 * i] | bytes[2 * i + 1] << 8;
}

/// Low nibbles of 32 codes: byte j holds those of codes j and j + 16.
template <class I>
NIBBLE_LANE void put_nibbles_of_32(const I* codes, I* to) noexcept {
  const I low(15);
  for (int i = 0; i < 8; ++i) {
    const I* const c = codes + 2 * i;
    to[i] = (c[0] & low) | (c[16] & low) << 4 | (c[1] & low) << 8 | (c[17] & low) << 12;
  }
}

/// Bits 4 of 32 codes.
template <class I>
NIBBLE_LANE void put_fifth_bits(const I* codes, I* to) noexcept {
  for (int half = 0; half < 2; ++half) {
    I bits(0);
    for (int i = 0; i < 16; ++i) bits = bits | ((codes[16 * half + i] >> 4) & I(1)) << i;
    to[half] = bits;
  }
}

/// Low nibbles of 256 codes: a byte holds codes 32 apart.
template <class I>
NIBBLE_LANE void put_nibbles_of_256(const I* codes, I* to) noexcept {
  const I low(15);
  for (int run = 0; run < 4; ++run)
    for (int i = 0; i < 16; ++i) {
      const I* const c = codes + 64 * run + 2 * i;
      to[16 * run + i] = (c[0] & low) | (c[32] & low) << 4 | (c[1] & low) << 8 | (c[33] & low) << 12;
    }
}

/// Low nibbles of q6_k: a byte holds codes 64 apart.
template <class I>
NIBBLE_LANE void put_nibbles_of_q6(const I* codes, I* to) noexcept {
  const I low(15);
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 32; ++i) {
      const I* const c = codes + 128 * half + 2 * i;
      to[32 * half + i] = (c[0] & low) | (c[64] & low) << 4 | (c[1] & low) << 8 | (c[65] & low) << 12;
    }
}

/// Bits [shift, shift + 2) of 256 codes: a byte holds codes 0, 32, 64 and 96 on.
template <class I>
NIBBLE_LANE void put_two_bits_of_256(const I* codes, int shift, I* to) noexcept {
  const I low(3);
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 16; ++i) {
      const I* const c = codes + 128 * half + 2 * i;
      I unit(0);
      for (int part = 0; part < 4; ++part)
        unit = unit | ((c[32 * part] >> shift) & low) << (2 * part) |
               ((c[32 * part + 1] >> shift) & low) << (2 * part + 8);
      to[16 * half + i] = unit;
    }
}

/// Bit `shift` of 256 codes: bit j of a byte is of the code 32·j on.
template <class I>
NIBBLE_LANE void put_bit_of_256(const I* codes, int shift, I* to) noexcept {
  const I low(1);
  for (int i = 0; i < 16; ++i) {
    I unit(0);
    for (int part = 0; part < 8; ++part)
      unit = unit | ((codes[32 * part + 2 * i] >> shift) & low) << part |
             ((codes[32 * part + 2 * i + 1] >> shift) & low) << (part + 8);
    to[i] = unit;
  }
}

/// 8 scales and 8 minima of 6 bits in the 12 bytes of q4_k and q5_k.
template <class I>
NIBBLE_LANE void put_scales_of_12(const I* scales, const I* minima, I* to) noexcept {
  const I six(63), low(15);
  I bytes[12];
  for (int j = 0; j < 4; ++j) {
    bytes[j] = (scales[j] & six) | ((scales[j + 4] & six) >> 4) << 6;
    bytes[j + 4] = (minima[j] & six) | ((minima[j + 4] & six) >> 4) << 6;
    bytes[j + 8] = (scales[j + 4] & low) | (minima[j + 4] & low) << 4;
  }
  put_bytes<12>(bytes, to);
}

/// 16 scales of 6 bits in the 12 bytes of q3_k. @pre in [0, 64).
template <class I>
NIBBLE_LANE void put_scales_of_q3(const I* scales, I* to) noexcept {
  const I low(15);
  I bytes[12];
  for (int j = 0; j < 8; ++j) bytes[j] = (scales[j] & low) | (scales[j + 8] & low) << 4;
  for (int j = 0; j < 4; ++j)
    bytes[j + 8] = scales[j] >> 4 | (scales[j + 4] >> 4) << 2 | (scales[j + 8] >> 4) << 4 | (scales[j + 12] >> 4) << 6;
  put_bytes<12>(bytes, to);
}

/// 8 scales of 6 bits of iq4_xs: two bits each in a unit, then four bytes of nibbles. @pre in [0, 64).
template <class I>
NIBBLE_LANE void put_scales_of_iq4(const I* scales, I* to) noexcept {
  const I low(15);
  I high(0);
  for (int j = 0; j < 8; ++j) high = high | (scales[j] >> 4) << (2 * j);
  to[0] = high;
  for (int i = 0; i < 2; ++i) {
    const I* const s = scales + 4 * i;
    to[i + 1] = (s[0] & low) | (s[1] & low) << 4 | (s[2] & low) << 8 | (s[3] & low) << 12;
  }
}

}  // namespace block_search
NIBBLE_NAMESPACE_END

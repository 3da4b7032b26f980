// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes ↔ words. For every layout of layout.hpp, both directions of one bijection:
///     where(layout, n, k, i, j)            → the word and the shift at which code (i, j) begins
///     source(layout, n, k, row, col, slot) → the code that lies in a slot of a word
/// and on them the two rules, for one element each, that packing in parallel needs:
///     word = word_at(layout, codes, row, col)          no word depends on another
///     code = code_at(layout, words, n, k, i, j)
/// Where 32 % bits != 0 a code may cross into the next word: layout::…::continues_below says whether that is the word
/// one row down or one column on. Slots past the matrix hold 0, or what the layout fills up with.
///
/// The other columns of the grid pack whole matrices; codes (n, k) are one a byte, and words have layout.packed(n, k):
///     reference::pack(layout, matrix<const uint8_t> codes, matrix<word> words)      host::pack: the same
///     reference::unpack(layout, matrix<const word> words, matrix<uint8_t> codes)    host::unpack: the same
/// Zero points go through the same functions with `layout.zeros()` and (n, groups), scales through
///     pack_scales(layout.scales(), matrix<const T> scales, matrix<T> stored), and unpack_scales(…, stored, scales) back.
#pragma once

#include "nibble/half.hpp"
#include "nibble/layout.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace layout {

/// A code's place: bits [shift, shift + bits) from word (row, col) on.
struct place {
  index_t row;
  index_t col;
  int32_t shift;
};

/// What lies in a slot: code (i, j), its lowest bit at `shift`; negative where the code began in the word before.
struct element {
  index_t i;
  index_t j;
  int32_t shift;
};

/// Codes that touch one 32-bit word of a string of b-bit codes, at most.
NIBBLE_HOST_DEVICE constexpr int32_t string_slots(int32_t bits) noexcept {
  return 32 % bits == 0 ? 32 / bits : (30 + bits) / bits + 1;
}

/// Slot `slot` of word `w` of such a string: (index in the string, unused, shift).
NIBBLE_HOST_DEVICE constexpr element string_source(index_t w, int32_t slot, int32_t bits) noexcept {
  const index_t first = w * 32 / bits;
  return {first + slot, 0, static_cast<int32_t>((first + slot) * bits - w * 32)};
}

NIBBLE_HOST_DEVICE constexpr int32_t slots(compressed_tensors l) noexcept {
  return string_slots(l.bits);
}
NIBBLE_HOST_DEVICE constexpr place where(compressed_tensors l, index_t, index_t, index_t i, index_t j) noexcept {
  return {i, j * l.bits / 32, static_cast<int32_t>(j * l.bits % 32)};
}
NIBBLE_HOST_DEVICE constexpr element source(compressed_tensors l, index_t, index_t, index_t row, index_t col,
                                            int32_t slot) noexcept {
  const element e = string_source(col, slot, l.bits);
  return {row, e.i, e.shift};
}

NIBBLE_HOST_DEVICE constexpr int32_t slots(compressed_tensors_zeros l) noexcept {
  return string_slots(l.bits);
}
NIBBLE_HOST_DEVICE constexpr place where(compressed_tensors_zeros l, index_t, index_t, index_t i, index_t j) noexcept {
  return {i * l.bits / 32, j, static_cast<int32_t>(i * l.bits % 32)};
}
NIBBLE_HOST_DEVICE constexpr element source(compressed_tensors_zeros l, index_t, index_t, index_t row, index_t col,
                                            int32_t slot) noexcept {
  const element e = string_source(row, slot, l.bits);
  return {e.i, col, e.shift};
}

NIBBLE_HOST_DEVICE constexpr int32_t slots(gptq l) noexcept {
  return string_slots(l.bits);
}
NIBBLE_HOST_DEVICE constexpr place where(gptq l, index_t, index_t, index_t i, index_t j) noexcept {
  return {j * l.bits / 32, i, static_cast<int32_t>(j * l.bits % 32)};
}
NIBBLE_HOST_DEVICE constexpr element source(gptq l, index_t, index_t, index_t row, index_t col, int32_t slot) noexcept {
  const element e = string_source(row, slot, l.bits);
  return {col, e.i, e.shift};
}

NIBBLE_HOST_DEVICE constexpr int32_t slots(gptq_zeros l) noexcept {
  return string_slots(l.bits);
}
NIBBLE_HOST_DEVICE constexpr place where(gptq_zeros l, index_t, index_t, index_t i, index_t j) noexcept {
  return {j, i * l.bits / 32, static_cast<int32_t>(i * l.bits % 32)};
}
NIBBLE_HOST_DEVICE constexpr element source(gptq_zeros l, index_t, index_t, index_t row, index_t col,
                                            int32_t slot) noexcept {
  const element e = string_source(col, slot, l.bits);
  return {e.i, row, e.shift};
}

/// Slot that holds element e of a word of `count`, even elements first: 0,2,4,6,1,3,5,7 or 0,2,1,3, which lets a GPU extract
/// pairs with one mask.
NIBBLE_HOST_DEVICE constexpr int32_t even_odd(index_t e, int32_t count = 8) noexcept {
  return static_cast<int32_t>((e & 1) * (count / 2) + e / 2);
}
/// Its inverse: the element in a slot.
NIBBLE_HOST_DEVICE constexpr index_t odd_even(int32_t slot, int32_t count = 8) noexcept {
  return slot % (count / 2) * 2 + slot / (count / 2);
}

NIBBLE_HOST_DEVICE constexpr int32_t slots(awq_gemm) noexcept {
  return 8;
}
NIBBLE_HOST_DEVICE constexpr place where(awq_gemm, index_t, index_t, index_t i, index_t j) noexcept {
  return {j, i / 8, 4 * even_odd(i % 8)};
}
NIBBLE_HOST_DEVICE constexpr element source(awq_gemm, index_t, index_t, index_t row, index_t col,
                                            int32_t slot) noexcept {
  return {col * 8 + odd_even(slot), row, 4 * slot};
}

NIBBLE_HOST_DEVICE constexpr int32_t slots(awq_gemv) noexcept {
  return 8;
}
NIBBLE_HOST_DEVICE constexpr place where(awq_gemv, index_t, index_t, index_t i, index_t j) noexcept {
  return {i, j / 8, static_cast<int32_t>(j % 8 * 4)};
}
NIBBLE_HOST_DEVICE constexpr element source(awq_gemv, index_t, index_t, index_t row, index_t col,
                                            int32_t slot) noexcept {
  return {row, col * 8 + slot, 4 * slot};
}

NIBBLE_HOST_DEVICE constexpr int32_t slots(awq_gemv_zeros) noexcept {
  return 8;
}
NIBBLE_HOST_DEVICE constexpr place where(awq_gemv_zeros, index_t n, index_t k, index_t i, index_t j) noexcept {
  return where(awq_gemv{}, n, k, i, j);
}
NIBBLE_HOST_DEVICE constexpr element source(awq_gemv_zeros, index_t n, index_t k, index_t row, index_t col,
                                            int32_t slot) noexcept {
  return source(awq_gemv{}, n, k, row, col, slot);
}

/// With o = j % 32 = 8b + 2a + c, the code comes at 8a + 4c + b of its run of 32; 4 rows of 64 such follow one another.
NIBBLE_HOST_DEVICE constexpr int32_t slots(awq_gemv_fast) noexcept {
  return 4;
}
NIBBLE_HOST_DEVICE constexpr place where(awq_gemv_fast, index_t, index_t, index_t i, index_t j) noexcept {
  const index_t a = j / 2 % 4, b = j % 32 / 8, c = j % 2;
  const index_t at = i % 4 * 64 + j % 64 / 32 * 32 + 8 * a + 4 * c + b;
  return {i / 4, j / 64 * 64 + at / 4, static_cast<int32_t>(at % 4 * 4)};
}
NIBBLE_HOST_DEVICE constexpr element source(awq_gemv_fast, index_t, index_t, index_t row, index_t col,
                                            int32_t slot) noexcept {
  const index_t at = col % 64 * 4 + slot;
  const index_t a = at % 32 / 8, b = at % 4, c = at / 4 % 2;
  return {row * 4 + at / 64, col / 64 * 64 + at % 64 / 32 * 32 + 8 * b + 2 * a + c, 4 * slot};
}

/// In a 16 × 16 of (k, n), thread 4·(n % 8) + k % 8 / 2 of mma.m16n8k16 holds k % 2, k / 8 and n / 8 of both: 8 codes, one
/// word of 4 bits or two of 8. Four of those side by side in n make a tile, so that a thread's words follow one another.
NIBBLE_HOST_DEVICE constexpr int32_t slots(marlin l) noexcept {
  return 32 / l.bits;
}
NIBBLE_HOST_DEVICE constexpr place where(marlin l, index_t, index_t, index_t i, index_t j) noexcept {
  const int32_t count = slots(l);
  const index_t thread = i % 8 * 4 + j % 8 / 2;
  const index_t held = i % 16 / 8 * 4 + j % 16 / 8 * 2 + j % 2;
  return {j / 16, i / 64 * 32 * l.bits + thread * l.bits + i % 64 / 16 * (8 / count) + held / count,
          l.bits * even_odd(held % count, count)};
}
NIBBLE_HOST_DEVICE constexpr element source(marlin l, index_t, index_t, index_t row, index_t col,
                                            int32_t slot) noexcept {
  const int32_t count = slots(l), words = 8 / count;
  const index_t thread = col % (32 * l.bits) / l.bits, of_thread = col % l.bits;
  const index_t held = of_thread % words * count + odd_even(slot, count);
  return {col / (32 * l.bits) * 64 + of_thread / words * 16 + held / 4 * 8 + thread / 4,
          row * 16 + held / 2 % 2 * 8 + thread % 4 * 2 + held % 2, l.bits * slot};
}

/// Where 64 outputs lie as an 8 × 8 transposed; its own inverse.
NIBBLE_HOST_DEVICE constexpr index_t marlin_turned(index_t i) noexcept {
  return i / 64 * 64 + i % 8 * 8 + i % 64 / 8;
}
NIBBLE_HOST_DEVICE constexpr int32_t slots(marlin_zeros l) noexcept {
  return 32 / l.bits;
}
NIBBLE_HOST_DEVICE constexpr place where(marlin_zeros l, index_t, index_t, index_t i, index_t j) noexcept {
  const int32_t count = slots(l);
  const index_t at = marlin_turned(i);
  return {j, at / count, l.bits * even_odd(at % count, count)};
}
NIBBLE_HOST_DEVICE constexpr element source(marlin_zeros l, index_t, index_t, index_t row, index_t col,
                                            int32_t slot) noexcept {
  const int32_t count = slots(l);
  return {marlin_turned(col * count + odd_even(slot, count)), row, l.bits * slot};
}

NIBBLE_HOST_DEVICE constexpr int32_t slots(bitsandbytes) noexcept {
  return 2;
}
NIBBLE_HOST_DEVICE constexpr place where(bitsandbytes, index_t, index_t k, index_t i, index_t j) noexcept {
  const index_t at = i * k + j;
  return {at / 2, 0, at % 2 == 0 ? 4 : 0};
}
NIBBLE_HOST_DEVICE constexpr element source(bitsandbytes, index_t, index_t k, index_t row, index_t,
                                            int32_t slot) noexcept {
  const index_t at = row * 2 + (1 - slot);
  return {at / k, at % k, 4 * slot};
}

/// What slots past the matrix hold.
template <class Layout>
NIBBLE_HOST_DEVICE constexpr uint8_t filler(Layout) noexcept {
  return 0;
}
NIBBLE_HOST_DEVICE constexpr uint8_t filler(bitsandbytes l) noexcept {
  return l.filler;
}

/// What is stored for a code, and the code that a stored value means: the same but for the zero points of GPTQ v1.
template <class Layout>
NIBBLE_HOST_DEVICE constexpr uint8_t stored(Layout, uint8_t code) noexcept {
  return code;
}
NIBBLE_HOST_DEVICE constexpr uint8_t stored(gptq_zeros l, uint8_t code) noexcept {
  return static_cast<uint8_t>((code - (l.version == gptq_version::v1 ? 1 : 0)) & ((1 << l.bits) - 1));
}
template <class Layout>
NIBBLE_HOST_DEVICE constexpr uint8_t restored(Layout, uint8_t value) noexcept {
  return value;
}
NIBBLE_HOST_DEVICE constexpr uint8_t restored(gptq_zeros l, uint8_t value) noexcept {
  return static_cast<uint8_t>((value + (l.version == gptq_version::v1 ? 1 : 0)) & ((1 << l.bits) - 1));
}

NIBBLE_HOST_DEVICE constexpr extents where_scale(plain_scales, index_t, index_t i, index_t g) noexcept {
  return {i, g};
}
NIBBLE_HOST_DEVICE constexpr extents where_scale(transposed_scales, index_t, index_t i, index_t g) noexcept {
  return {g, i};
}
NIBBLE_HOST_DEVICE constexpr extents where_scale(awq_gemv_scales, index_t, index_t i, index_t g) noexcept {
  return {i, g};
}
NIBBLE_HOST_DEVICE constexpr extents where_scale(awq_gemv_fast_scales, index_t, index_t i, index_t g) noexcept {
  return {g, i};
}
/// With several groups, the 8 × 8 of every 64 outputs transposed; with one, o = 8b + 2a + c goes to 8a + 2b + c.
NIBBLE_HOST_DEVICE constexpr extents where_scale(marlin_scales, index_t groups_, index_t i, index_t g) noexcept {
  if (groups_ > 1) return {g, marlin_turned(i)};
  return {g, i / 32 * 32 + i % 8 / 2 * 8 + i % 32 / 8 * 2 + i % 2};
}

}  // namespace layout

/// Word (row, col) of packed codes (n, k), which codes(i, j) tells. @pre every code is in [0, 2^bits); can_pack.
template <class Layout, class Codes>
NIBBLE_HOST_DEVICE constexpr typename Layout::word word_of(Layout l, const Codes& codes, index_t n, index_t k,
                                                           index_t row, index_t col) noexcept {
  uint32_t word = 0;
  for (int32_t slot = 0; slot < slots(l); ++slot) {
    const layout::element e = source(l, n, k, row, col, slot);
    if (e.shift >= 32) continue;
    const bool inside = e.i < n && e.j < k;
    const uint32_t value = inside ? stored(l, codes(e.i, e.j)) : filler(l);
    word |= e.shift < 0 ? value >> -e.shift : value << e.shift;
  }
  return static_cast<typename Layout::word>(word);
}

/// The same of a matrix of codes.
template <class Layout>
NIBBLE_HOST_DEVICE constexpr typename Layout::word word_at(Layout l, matrix<const uint8_t> codes, index_t row,
                                                           index_t col) noexcept {
  return word_of(l, codes, codes.rows, codes.cols, row, col);
}

/// Code (i, j) of the (n, k) codes packed in `words`.
template <class Layout>
NIBBLE_HOST_DEVICE constexpr uint8_t code_at(Layout l, matrix<const typename Layout::word> words, index_t n, index_t k,
                                             index_t i, index_t j) noexcept {
  const layout::place p = where(l, n, k, i, j);
  uint32_t value = static_cast<uint32_t>(words(p.row, p.col)) >> p.shift;
  if (p.shift + l.bits > static_cast<int32_t>(8 * sizeof(typename Layout::word))) {
    const uint32_t next = Layout::continues_below ? words(p.row + 1, p.col) : words(p.row, p.col + 1);
    value |= next << (32 - p.shift);
  }
  return restored(l, static_cast<uint8_t>(value & ((1u << l.bits) - 1)));
}

/// A zero point as AWQ GEMV-fast stores it: −scale·zero, so that w = code·scale + this.
NIBBLE_HOST_DEVICE constexpr fp16 awq_gemv_fast_zero(fp16 scale, int32_t zero) noexcept {
  return fp16(-(static_cast<float>(scale) * static_cast<float>(zero)));
}

NIBBLE_NAMESPACE_END

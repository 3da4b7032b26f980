// SPDX-License-Identifier: Apache-2.0
/// @file
/// Part of simt/device.hpp: a warp's matrix instructions, by the fragments that detail/mma.cuh tells.
#pragma once

#include <cstring>

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "simt/executor.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace device {
namespace detail {

/// What a lane brings: its fragments of `Count` elements a register.
template <class Accumulator>
struct multiplied {
  Accumulator* d;
  const uint32_t *a, *b;
};

/// Element `which` of the A or B registers of lanes (g, t): k index by register pair, as both fragments have it.
template <class T, int PerRegister>
T element(const uint32_t* registers, int which_register, int which) {
  T value;
  std::memcpy(&value, reinterpret_cast<const unsigned char*>(registers + which_register) + which * sizeof(T),
              sizeof(T));
  static_assert(sizeof(T) * PerRegister == 4, "registers are full");
  return value;
}

/// D += A · B for a whole warp; Sum holds all products' sum without error, or nearly: it is rounded once.
template <class T, class Sum, class Accumulator>
void multiply(void* const* operands) {
  constexpr int each = 4 / sizeof(T), depth = 8 * each;
  for (int row = 0; row < 16; ++row)
    for (int col = 0; col < 8; ++col) {
      const auto& owner = *static_cast<const multiplied<Accumulator>*>(operands[row % 8 * 4 + col / 2]);
      Accumulator& d = owner.d[row / 8 * 2 + col % 2];
      Sum sum = static_cast<Sum>(d);
      for (int k = 0; k < depth; ++k) {
        const int t = k / each % 4, upper = k / (4 * each);
        const auto& of_a = *static_cast<const multiplied<Accumulator>*>(operands[row % 8 * 4 + t]);
        const auto& of_b = *static_cast<const multiplied<Accumulator>*>(operands[col * 4 + t]);
        sum += static_cast<Sum>(element<T, each>(of_a.a, upper * 2 + row / 8, k % each)) *
               static_cast<Sum>(element<T, each>(of_b.b, upper, k % each));
      }
      d = static_cast<Accumulator>(sum);
    }
}

}  // namespace detail

inline uint32_t pack_bf16(float low, float high) {
  return uint32_t{bf16(low).bits} | uint32_t{bf16(high).bits} << 16;
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], place at = place::here()) {
  detail::multiplied<float> mine{d, a, b};
  const auto finish = [](void* const* operands, uint32_t) { detail::multiply<T, double, float>(operands); };
  simt::meet(dtype_of<T>::value == dtype::f16 ? "mma of fp16" : "mma of bf16", all_lanes, &mine, finish, false, at);
}

inline void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], place at = place::here()) {
  detail::multiplied<int32_t> mine{d, a, b};
  const auto finish = [](void* const* operands, uint32_t) { detail::multiply<int8_t, int64_t, int32_t>(operands); };
  simt::meet("mma of int8", all_lanes, &mine, finish, false, at);
}

namespace detail {
struct matrix_rows {
  uint16_t row[8];  ///< the one this lane gave the address of
  uint32_t* r;
};
}  // namespace detail

template <bool Transposed = false, int Count>
void load_matrices(uint32_t (&r)[Count], const void* row, place at = place::here()) {
  static_assert(Count == 1 || Count == 2 || Count == 4, "ldmatrix loads 1, 2 or 4 matrices");
  detail::matrix_rows mine{{}, r};
  detail::check_aligned(row, 16, "ldmatrix", at);
  if (lane() < 8 * Count) std::memcpy(mine.row, row, 16);
  const auto finish = [](void* const* operands, uint32_t) {
    const auto of = [&](int i, int j, int k) {  // element (j, k) of matrix i
      return uint32_t{static_cast<const detail::matrix_rows*>(operands[8 * i + j])->row[k]};
    };
    for (int to = 0; to < 32; ++to)
      for (int i = 0; i < Count; ++i) {
        const int g = to / 4, t = 2 * (to % 4);
        static_cast<const detail::matrix_rows*>(operands[to])->r[i] =
            Transposed ? of(i, t, g) | of(i, t + 1, g) << 16 : of(i, g, t) | of(i, g, t + 1) << 16;
      }
  };
  simt::meet(Transposed ? "ldmatrix, transposed" : "ldmatrix", all_lanes, &mine, finish, false, at);
}

}  // namespace device
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// A thread's floats and integers in the place of lanes<1> (block/lane.hpp): the same operations, each rounded once whatever flags
/// a kernel is compiled with, so that the searches over blocks have the reference's bits.
#pragma once

#include "nibble/block/lane.hpp"
#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/kernels/detail/device.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {
namespace block_lane {

struct truth {
  bool v;
};

struct integer {
  int32_t v;
  integer() = default;
  __device__ integer(int32_t x) noexcept : v(x) {}
};

struct number {
  using integers = integer;
  using mask = truth;
  float v;
  number() = default;
  __device__ number(float x) noexcept : v(x) {}
  __device__ static number zero() noexcept { return 0.0f; }
};

// clang-format off
__device__ inline number operator+(number a, number b) { return device::add(a.v, b.v); }
__device__ inline number operator-(number a, number b) { return device::subtract(a.v, b.v); }
__device__ inline number operator*(number a, number b) { return device::multiply(a.v, b.v); }
__device__ inline number operator/(number a, number b) { return device::divide(a.v, b.v); }
__device__ inline truth operator<(number a, number b) { return {a.v < b.v}; }
__device__ inline truth operator>(number a, number b) { return {a.v > b.v}; }
__device__ inline truth operator==(number a, number b) { return {a.v == b.v}; }
__device__ inline truth operator!=(number a, number b) { return {a.v != b.v}; }
__device__ inline integer operator+(integer a, integer b) { return a.v + b.v; }
__device__ inline integer operator-(integer a, integer b) { return a.v - b.v; }
__device__ inline integer operator&(integer a, integer b) { return a.v & b.v; }
__device__ inline integer operator|(integer a, integer b) { return a.v | b.v; }
__device__ inline integer operator<<(integer a, int count) { return a.v << count; }
__device__ inline integer operator>>(integer a, int count) { return a.v >> count; }
__device__ inline truth operator&(truth a, truth b) { return {a.v && b.v}; }
__device__ inline truth operator|(truth a, truth b) { return {a.v || b.v}; }

__device__ inline bool any(truth m) { return m.v; }
__device__ inline bool any(integer a) { return a.v != 0; }
__device__ inline number select(truth m, number a, number b) { return m.v ? a.v : b.v; }
__device__ inline integer select(truth m, integer a, integer b) { return m.v ? a.v : b.v; }
__device__ inline number select_less(number x, number y, number a, number b) { return x.v < y.v ? a.v : b.v; }
__device__ inline integer select_less(number x, number y, integer a, integer b) { return x.v < y.v ? a.v : b.v; }
__device__ inline number select_unequal(number x, number y, number a, number b) { return x.v != y.v ? a.v : b.v; }
__device__ inline integer lesser(integer a, integer b) { return a.v < b.v ? a.v : b.v; }
__device__ inline integer bits_of(number a) { return bit_cast<int32_t>(a.v); }
__device__ inline number of_bits(integer a) { return bit_cast<float>(a.v); }
__device__ inline number abs(number a) { return nibble::abs(a.v); }
__device__ inline number negated(number a) { return -a.v; }
__device__ inline number square_root(number a) { return device::square_root(a.v); }
// clang-format on

/// As those of block/lane.hpp.
__device__ inline integer whole(number x) {
  return (bit_cast<int32_t>(device::add(x.v, rounding_shift)) & 0x7fffff) - 0x400000;
}
__device__ inline number level(number x, int low, int high) {
  return static_cast<float>(clamp(whole(x).v, low, high));
}
__device__ inline integer integers(number x) {
  return static_cast<int32_t>(x.v);
}
__device__ inline number numbers(integer x) {
  return static_cast<float>(x.v);
}
__device__ inline integer truncated(number x) {
  return x.v >= -2147483648.0f && x.v < 2147483648.0f ? static_cast<int32_t>(x.v) : -2147483647 - 1;
}
__device__ inline integer half_bits(number x) {
  return int32_t{fp16_bits(x.v)};
}
__device__ inline number half_value(integer half) {
  return fp16_value(static_cast<uint16_t>(half.v));
}

}  // namespace block_lane
}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END

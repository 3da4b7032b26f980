// SPDX-License-Identifier: Apache-2.0
/// @file
/// The vocabulary every row is written in: integer types (NVRTC has no <cstdint>, so they come from here),
/// `index_t`, the host/device marker, and integer helpers.
/// Compile with -ffp-contract=off: where a product is fused with a sum, results are no longer the stated ones bit for bit.
#pragma once

#include "nibble/version.hpp"

#if defined(__CUDACC_RTC__)
#include <cuda/std/cstddef>
#include <cuda/std/cstdint>
#else
#include <cstddef>
#include <cstdint>
#endif

#if defined(__CUDACC__)
#define NIBBLE_HOST_DEVICE __host__ __device__
#else
#define NIBBLE_HOST_DEVICE
#endif

#if defined(__FAST_MATH__)
#error "nibble's rounding rules need IEEE arithmetic: compile without -ffast-math"
#endif

NIBBLE_NAMESPACE_BEGIN

#if defined(__CUDACC_RTC__)
namespace fixed = cuda::std;
#else
namespace fixed = std;
#endif
using fixed::int16_t;
using fixed::int32_t;
using fixed::int64_t;
using fixed::int8_t;
using fixed::size_t;
using fixed::uint16_t;
using fixed::uint32_t;
using fixed::uint64_t;
using fixed::uint8_t;

/// Every extent, stride and offset: 64 bits, so that a matrix may hold more than 2^31 elements.
using index_t = int64_t;

/// The value of `From`'s bits read as a `To` of the same size.
template <class To, class From>
NIBBLE_HOST_DEVICE constexpr To bit_cast(const From& from) noexcept {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  return __builtin_bit_cast(To, from);
}

/// ⌈a / b⌉. @pre a >= 0, b > 0.
NIBBLE_HOST_DEVICE constexpr index_t ceil_div(index_t a, index_t b) noexcept {
  return a / b + (a % b != 0 ? 1 : 0);
}

/// `a` rounded up to a multiple of `b`. @pre a >= 0, b > 0.
NIBBLE_HOST_DEVICE constexpr index_t round_up(index_t a, index_t b) noexcept {
  return ceil_div(a, b) * b;
}

NIBBLE_NAMESPACE_END

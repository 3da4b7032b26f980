// SPDX-License-Identifier: Apache-2.0
/// @file
/// N floats side by side, and the operations that searches over quantized blocks are written in: one lane is one group of weights
/// (or one block), so that each lane adds up in the order of a scalar loop and has a scalar loop's bits. lanes<1> is that scalar,
/// lanes<4>, <8> and <16> are vectors of the compiler, whose instructions are those of the function that all of this is inlined
/// into. Nothing branches on a lane; `select` takes a branch's place. A type with the same operations (say, of a GPU's arithmetic
/// that rounds once an operation) can stand for lanes<1>.
/// Vectors travel inside structs, by reference: as plain arguments their convention depends on the instruction set.
#pragma once

#include "nibble/core.hpp"

#if defined(__CUDACC_RTC__)
#define NIBBLE_LANE __device__ __forceinline__
#elif defined(__GNUC__)
#define NIBBLE_LANE NIBBLE_HOST_DEVICE inline __attribute__((always_inline))
#else
#define NIBBLE_LANE NIBBLE_HOST_DEVICE inline
#endif

NIBBLE_NAMESPACE_BEGIN

namespace detail {

template <int N>
struct lane_types;
template <>
struct lane_types<1> {
  using numbers = float;
  using integers = int32_t;
  using conditions = bool;
};
#if defined(__GNUC__) && !defined(__CUDACC__)
template <int N>
struct lane_types {
  typedef float numbers __attribute__((vector_size(4 * N)));
  typedef int32_t integers __attribute__((vector_size(4 * N)));
  using conditions = integers;  // 0 or 1: gcc 12 keeps what comparisons say themselves, 0 or −1, in pieces
};
#endif

}  // namespace detail

template <int N>
struct lane_mask {
  typename detail::lane_types<N>::conditions v;
};

namespace detail {

/// v ← x in all lanes. gcc 12 makes an instruction a lane of a number that becomes a vector at run time, if vectors of that size are
/// new to the function it is inlined into; a loop becomes one instruction, unless -O3 has taken the loop apart before.
template <int N, class Vector, class Number>
NIBBLE_LANE void spread(Vector& v, Number x) noexcept {
  if constexpr (N == 1) {
    v = x;
  } else if (__builtin_constant_p(x)) {
    v = x - Vector{};
  } else {
#if defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 1
#endif
    for (int i = 0; i < N; ++i) v[i] = x;
  }
}

}  // namespace detail

template <int N>
struct int_lanes {
  static constexpr int count = N;
  using vector = typename detail::lane_types<N>::integers;
  vector v;
  int_lanes() = default;
  NIBBLE_LANE int_lanes(int32_t x) noexcept { detail::spread<N>(v, x); }
};

template <int N>
struct lanes {
  static constexpr int count = N;
  using vector = typename detail::lane_types<N>::numbers;
  using integers = int_lanes<N>;
  using mask = lane_mask<N>;
  vector v;
  lanes() = default;
  NIBBLE_LANE lanes(float x) noexcept { detail::spread<N>(v, x); }
  static NIBBLE_LANE lanes zero() noexcept {
    lanes r;
    r.v = vector{};
    return r;
  }
};

/// One lane of a vector in memory.
template <template <int> class Lanes, int N>
NIBBLE_LANE auto get_lane(const Lanes<N>& a, int lane) noexcept {
  if constexpr (N == 1)
    return a.v;
  else
    return a.v[lane];
}
template <template <int> class Lanes, int N, class Number>
NIBBLE_LANE void set_lane(Lanes<N>& a, int lane, Number x) noexcept {
  if constexpr (N == 1)
    a.v = x;
  else
    a.v[lane] = x;
}

// clang-format off
#define NIBBLE_LANE_OPERATION(lane_kind, symbol)                                                                  \
  template <int N>                                                                                                \
  NIBBLE_LANE lane_kind<N> operator symbol(const lane_kind<N>& a, const lane_kind<N>& b) noexcept {               \
    lane_kind<N> r;                                                                                               \
    r.v = a.v symbol b.v;                                                                                         \
    return r;                                                                                                     \
  }
#define NIBBLE_LANE_COMPARISON(lane_kind, symbol)                                                                 \
  template <int N>                                                                                                \
  NIBBLE_LANE lane_mask<N> operator symbol(const lane_kind<N>& a, const lane_kind<N>& b) noexcept {               \
    lane_mask<N> r;                                                                                               \
    if constexpr (N == 1)                                                                                         \
      r.v = a.v symbol b.v;                                                                                       \
    else                                                                                                          \
      r.v = a.v symbol b.v ? decltype(r.v){} + 1 : decltype(r.v){};                                                  \
    return r;                                                                                                     \
  }
NIBBLE_LANE_OPERATION(lanes, +)
NIBBLE_LANE_OPERATION(lanes, -)
NIBBLE_LANE_OPERATION(lanes, *)
NIBBLE_LANE_OPERATION(lanes, /)
NIBBLE_LANE_OPERATION(int_lanes, +)
NIBBLE_LANE_OPERATION(int_lanes, -)
NIBBLE_LANE_OPERATION(int_lanes, &)
NIBBLE_LANE_OPERATION(int_lanes, |)
NIBBLE_LANE_OPERATION(lane_mask, &)
NIBBLE_LANE_OPERATION(lane_mask, |)
NIBBLE_LANE_COMPARISON(lanes, <)
NIBBLE_LANE_COMPARISON(lanes, >)
NIBBLE_LANE_COMPARISON(lanes, ==)
NIBBLE_LANE_COMPARISON(lanes, !=)
NIBBLE_LANE_COMPARISON(int_lanes, <)
NIBBLE_LANE_COMPARISON(int_lanes, >)
NIBBLE_LANE_COMPARISON(int_lanes, ==)
#undef NIBBLE_LANE_OPERATION
#undef NIBBLE_LANE_COMPARISON
// clang-format on

/// @pre 0 <= count < 32; << needs a >= 0, as >> does to be a division.
template <int N>
NIBBLE_LANE int_lanes<N> operator<<(const int_lanes<N>& a, int count) noexcept {
  int_lanes<N> r;
  r.v = a.v << count;
  return r;
}
template <int N>
NIBBLE_LANE int_lanes<N> operator>>(const int_lanes<N>& a, int count) noexcept {
  int_lanes<N> r;
  r.v = a.v >> count;
  return r;
}

/// Lane by lane x < y ? a : b; select(x < y, a, b) in one instruction for sure.
template <int N>
NIBBLE_LANE lanes<N> select_less(const lanes<N>& x, const lanes<N>& y, const lanes<N>& a, const lanes<N>& b) noexcept {
  lanes<N> r;
  r.v = x.v < y.v ? a.v : b.v;
  return r;
}
template <int N>
NIBBLE_LANE int_lanes<N> select_less(const lanes<N>& x, const lanes<N>& y, const int_lanes<N>& a,
                                     const int_lanes<N>& b) noexcept {
  int_lanes<N> r;
  r.v = x.v < y.v ? a.v : b.v;
  return r;
}

/// Lane by lane x != y ? a : b; select(x != y, a, b) in one instruction.
template <int N>
NIBBLE_LANE lanes<N> select_unequal(const lanes<N>& x, const lanes<N>& y, const lanes<N>& a,
                                    const lanes<N>& b) noexcept {
  lanes<N> r;
  r.v = x.v != y.v ? a.v : b.v;
  return r;
}

/// Lane by lane m ? a : b.
template <int N>
NIBBLE_LANE lanes<N> select(const lane_mask<N>& m, const lanes<N>& a, const lanes<N>& b) noexcept {
  lanes<N> r;
  r.v = m.v != 0 ? a.v : b.v;
  return r;
}
template <int N>
NIBBLE_LANE int_lanes<N> select(const lane_mask<N>& m, const int_lanes<N>& a, const int_lanes<N>& b) noexcept {
  int_lanes<N> r;
  r.v = m.v != 0 ? a.v : b.v;
  return r;
}

/// The lesser and the greater of integers, in the form that compilers know an instruction for.
template <int N>
NIBBLE_LANE int_lanes<N> lesser(const int_lanes<N>& a, const int_lanes<N>& b) noexcept {
  int_lanes<N> r;
  r.v = a.v < b.v ? a.v : b.v;
  return r;
}
template <int N>
NIBBLE_LANE int_lanes<N> greater(const int_lanes<N>& a, const int_lanes<N>& b) noexcept {
  int_lanes<N> r;
  r.v = a.v > b.v ? a.v : b.v;
  return r;
}

/// Whether any lane's condition holds, or is not 0.
template <template <int> class Lanes, int N>
NIBBLE_LANE bool any(const Lanes<N>& a) noexcept {
  if constexpr (N == 1) {
    return a.v != 0;
  } else {
    uint64_t parts[N / 2], all = 0;
    __builtin_memcpy(parts, &a.v, sizeof(parts));
    for (int i = 0; i < N / 2; ++i) all |= parts[i];
    return all != 0;
  }
}

/// The bits of floats as integers, and back.
template <int N>
NIBBLE_LANE int_lanes<N> bits_of(const lanes<N>& a) noexcept {
  int_lanes<N> r;
  r.v = __builtin_bit_cast(typename int_lanes<N>::vector, a.v);
  return r;
}
template <int N>
NIBBLE_LANE lanes<N> of_bits(const int_lanes<N>& a) noexcept {
  lanes<N> r;
  r.v = __builtin_bit_cast(typename lanes<N>::vector, a.v);
  return r;
}

template <int N>
NIBBLE_LANE lanes<N> abs(const lanes<N>& a) noexcept {
  return of_bits(bits_of(a) & int_lanes<N>(0x7fffffff));
}
template <int N>
NIBBLE_LANE lanes<N> negated(const lanes<N>& a) noexcept {
  lanes<N> r;
  r.v = -a.v;
  return r;
}

/// Rounded as IEEE says; four lanes at a time where that is all a machine is sure to have.
template <int N>
NIBBLE_LANE lanes<N> square_root(const lanes<N>& a) noexcept {
  lanes<N> r;
  if constexpr (N == 1) {
    r.v = __builtin_sqrtf(a.v);
  } else {
#if defined(__SSE2__) && !defined(__CUDACC__)
    float parts[N];
    __builtin_memcpy(parts, &a.v, sizeof(parts));
    for (int i = 0; i < N; i += 4) {
      typename detail::lane_types<4>::numbers part;
      __builtin_memcpy(&part, parts + i, sizeof(part));
      part = __builtin_ia32_sqrtps(part);
      __builtin_memcpy(parts + i, &part, sizeof(part));
    }
    __builtin_memcpy(&r.v, parts, sizeof(parts));
#else
    for (int i = 0; i < N; ++i) r.v[i] = __builtin_sqrtf(a.v[i]);
#endif
  }
  return r;
}

/// 1.5·2^23: added to |x| < 2^22 it leaves no fraction bits, so the addition itself rounds, ties to even.
inline constexpr float rounding_shift = 12582912.0f;

/// Low 23 bits of x + 1.5·2^23 less 2^22: the nearest integer, ties to even, for |x| < 2^22. Beyond (and for ±inf −2^22, for the NaN
/// that arithmetic makes 0) it is what ggml's encoders take in its place.
template <int N>
NIBBLE_LANE int_lanes<N> whole(const lanes<N>& x) noexcept {
  return (bits_of(x + lanes<N>(rounding_shift)) & int_lanes<N>(0x7fffff)) - int_lanes<N>(0x400000);
}

/// The same limited to [low, high], as a float. @pre −2^22 <= low <= high < 2^22.
template <int N>
NIBBLE_LANE lanes<N> level(const lanes<N>& x, int low, int high) noexcept {
  constexpr int32_t zero = 0x4b400000;  // bits of 1.5·2^23, where integers are apart by one bit
  const int_lanes<N> least(zero + low), most(zero + high);
  int_lanes<N> b = (bits_of(x + lanes<N>(rounding_shift)) & int_lanes<N>(0x7fffff)) | int_lanes<N>(0x4b000000);
  b = lesser(greater(b, least), most);
  return of_bits(b) - lanes<N>(rounding_shift);
}

/// Float to integer and back. @pre |x| < 2^22, whole.
template <int N>
NIBBLE_LANE int_lanes<N> integers(const lanes<N>& x) noexcept {
  return bits_of(x + lanes<N>(rounding_shift)) - int_lanes<N>(0x4b400000);
}
template <int N>
NIBBLE_LANE lanes<N> numbers(const int_lanes<N>& x) noexcept {
  return of_bits(x + int_lanes<N>(0x4b400000)) - lanes<N>(rounding_shift);
}

/// x without its fraction; INT_MIN where no int32 has it, as x86-64 converts.
template <int N>
NIBBLE_LANE int_lanes<N> truncated(const lanes<N>& x) noexcept {
  int_lanes<N> r;
  if constexpr (N == 1) {
    r.v = x.v >= -2147483648.0f && x.v < 2147483648.0f ? static_cast<int32_t>(x.v) : -2147483647 - 1;
  } else {
    r.v = __builtin_convertvector(x.v, typename int_lanes<N>::vector);
  }
  return r;
}

/// fp16_bits and fp16_value of half.hpp; NaN keeps its sign and upper payload.
template <int N>
NIBBLE_LANE int_lanes<N> half_bits(const lanes<N>& x) noexcept {
  using I = int_lanes<N>;
  const I bits = bits_of(x), magnitude = bits & I(0x7fffffff), sign = (bits >> 16) & I(0x8000);
  const I normal = (magnitude - I(0x38000000 - 0xfff) + ((magnitude >> 13) & I(1))) >> 13;
  const I subnormal = bits_of(of_bits(magnitude) + lanes<N>(0.5f)) - I(0x3f000000);
  I half = select(magnitude < I(0x38800000), subnormal, normal);
  half = select(magnitude > I(0x477fefff), I(0x7c00), half);
  half = select(magnitude > I(0x7f800000), I(0x7e00) | ((magnitude >> 13) & I(0x1ff)), half);
  return sign | half;
}
template <int N>
NIBBLE_LANE lanes<N> half_value(const int_lanes<N>& half) noexcept {
  using I = int_lanes<N>;
  const I magnitude = half & I(0x7fff);
  const I special = I(0x7f800000) | ((magnitude & I(0x3ff)) << 13);
  const I finite = bits_of(of_bits(magnitude << 13) * lanes<N>(5.192296858534828e33f));
  const I sign = select((half & I(0x8000)) > I(0), I(static_cast<int32_t>(0x80000000u)), I(0));
  return of_bits(select(magnitude > I(0x7bff), special, finite) | sign);
}

NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// nibble::device of kernels/nibble/kernels/detail/device.cuh on the SIMT executor: the same functions, told there.
/// Memory is touched in this header, not in the executor: the sanitizers that kernels are built with see it.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda_runtime.h"
#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "simt/executor.hpp"

/// As nvcc's, an array with a size, so that UndefinedBehaviorSanitizer knows its bounds; each in a heap block of its own,
/// so that AddressSanitizer does.
#define NIBBLE_SHARED(T, name, count) \
  static char name##_declared_here;   \
  T(&name)                            \
  [count] =                           \
      *static_cast<T(*)[count]>(simt::shared_array(&name##_declared_here, sizeof(T) * (count), simt::place::here()))
#define NIBBLE_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(simt::dynamic_shared(simt::place::here()))

NIBBLE_NAMESPACE_BEGIN
namespace device {

using simt::place;

inline constexpr uint32_t all_lanes = 0xffffffffu;

inline int lane() {
  return static_cast<int>(simt::lane());
}

inline void barrier(place at = place::here()) {
  simt::block_barrier(at);
}
inline bool barrier_any(bool vote, place at = place::here()) {
  return simt::block_barrier(at, vote) > 0;
}
inline bool barrier_all(bool vote, place at = place::here()) {
  return simt::block_barrier(at, !vote) == 0;
}
inline int barrier_count(bool vote, place at = place::here()) {
  return static_cast<int>(simt::block_barrier(at, vote));
}

inline void warp_barrier(uint32_t mask = all_lanes, place at = place::here()) {
  simt::meet(
      "warp_barrier", mask, nullptr, [](void* const*, uint32_t) {}, true, at);
}

namespace detail {

template <class T>
struct shuffled {
  T value;
  int from;
  T result;
};

template <class T>
T shuffle(const char* operation, T value, int from, uint32_t mask, place at) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  if (from < 0 || from > 31 || (mask >> from & 1u) == 0)
    simt::fail(at, "%s with mask 0x%08x reads from lane %d, which is not in it", operation, mask, from);
  shuffled<T> mine{value, from, value};
  const auto finish = [](void* const* operands, uint32_t lanes) {
    for (int i = 0; i < 32; ++i) {
      if ((lanes >> i & 1u) == 0) continue;
      auto& to = *static_cast<shuffled<T>*>(operands[i]);
      to.result = static_cast<const shuffled<T>*>(operands[to.from])->value;
    }
  };
  simt::meet(operation, mask, &mine, finish, false, at);
  return mine.result;
}

struct voted {
  uint32_t value, result;
};

/// The lanes whose value, by `of(theirs, mine)`, counts for each lane.
template <class F>
uint32_t vote(const char* operation, uint32_t value, uint32_t mask, F, place at) {
  voted mine{value, 0};
  const auto finish = [](void* const* operands, uint32_t lanes) {
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 32 && (lanes >> i & 1u) != 0; ++j) {
        if ((lanes >> j & 1u) == 0) continue;
        auto& to = *static_cast<voted*>(operands[i]);
        if (F::counts(static_cast<const voted*>(operands[j])->value, to.value)) to.result |= 1u << j;
      }
  };
  simt::meet(operation, mask, &mine, finish, false, at);
  return mine.result;
}
struct is_set {
  static bool counts(uint32_t theirs, uint32_t) { return theirs != 0; }
};
struct is_same {
  static bool counts(uint32_t theirs, uint32_t mine) { return theirs == mine; }
};

inline void check_aligned(const void* p, std::size_t bytes, const char* what, place at) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes != 0)
    simt::fail(at, "misaligned: %s of %zu bytes at address %p", what, bytes, p);
}

}  // namespace detail

template <class T>
T shuffle(T value, int from, uint32_t mask = all_lanes, place at = place::here()) {
  return detail::shuffle("shuffle", value, from, mask, at);
}
template <class T>
T shuffle_xor(T value, int flip, uint32_t mask = all_lanes, place at = place::here()) {
  return detail::shuffle("shuffle_xor", value, lane() ^ flip, mask, at);
}
template <class T>
T shuffle_down(T value, int delta, uint32_t mask = all_lanes, place at = place::here()) {
  return detail::shuffle("shuffle_down", value, lane() + delta < 32 ? lane() + delta : lane(), mask, at);
}
template <class T>
T shuffle_up(T value, int delta, uint32_t mask = all_lanes, place at = place::here()) {
  return detail::shuffle("shuffle_up", value, lane() >= delta ? lane() - delta : lane(), mask, at);
}

inline uint32_t ballot(bool vote, uint32_t mask = all_lanes, place at = place::here()) {
  return detail::vote("ballot", vote, mask, detail::is_set{}, at);
}
inline bool any(bool vote, uint32_t mask = all_lanes, place at = place::here()) {
  return detail::vote("any", vote, mask, detail::is_set{}, at) != 0;
}
inline bool all(bool vote, uint32_t mask = all_lanes, place at = place::here()) {
  return detail::vote("all", vote, mask, detail::is_set{}, at) == mask;
}
inline uint32_t match(uint32_t value, uint32_t mask = all_lanes, place at = place::here()) {
  return detail::vote("match", value, mask, detail::is_same{}, at);
}

namespace detail {

template <class T>
using integer = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

/// *p = f(*p), atomically and unordered; returns what *p was.
template <class T, class F>
T atomic(T* p, F f, place at) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "an atomic has 4 or 8 bytes");
  check_aligned(p, sizeof(T), "an atomic", at);
  simt::maybe_yield(at);
  auto* const bits = reinterpret_cast<integer<T>*>(p);
  auto before = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &before, bit_cast<integer<T>>(f(bit_cast<T>(before))), false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return bit_cast<T>(before);
}

}  // namespace detail

template <class T>
T atomic_add(T* p, T value, place at = place::here()) {
  return detail::atomic(
      p, [=](T x) { return static_cast<T>(x + value); }, at);
}
template <class T>
T atomic_max(T* p, T value, place at = place::here()) {
  return detail::atomic(
      p, [=](T x) { return x < value ? value : x; }, at);
}
template <class T>
T atomic_min(T* p, T value, place at = place::here()) {
  return detail::atomic(
      p, [=](T x) { return value < x ? value : x; }, at);
}
inline uint32_t atomic_or(uint32_t* p, uint32_t value, place at = place::here()) {
  return detail::atomic(
      p, [=](uint32_t x) { return x | value; }, at);
}
inline uint32_t atomic_exchange(uint32_t* p, uint32_t value, place at = place::here()) {
  return detail::atomic(
      p, [=](uint32_t) { return value; }, at);
}
inline void fence() {
  simt::fence();
}
inline uint32_t load_acquire(const uint32_t* p, place at = place::here()) {
  detail::check_aligned(p, sizeof(*p), "a load", at);
  simt::yield(at);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void store_release(uint32_t* p, uint32_t value, place at = place::here()) {
  detail::check_aligned(p, sizeof(*p), "a store", at);
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

template <class T>
T load(const T* p, place at = place::here()) {
  detail::check_aligned(p, sizeof(T), "a load", at);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <class T>
void store(T* p, T value, place at = place::here()) {
  detail::check_aligned(p, sizeof(T), "a store", at);
  std::memcpy(p, &value, sizeof(T));
}
template <class T>
T load_once(const T* p, place at = place::here()) {
  return load(p, at);
}
template <class T>
void store_once(T* p, T value, place at = place::here()) {
  store(p, value, at);
}
template <class T>
T load_constant(const T* p, place at = place::here()) {
  return load(p, at);
}

template <int Bytes>
void cp_async(void* to, const void* from, bool valid = true, place at = place::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  detail::check_aligned(to, Bytes, "cp.async", at);
  detail::check_aligned(from, Bytes, "cp.async", at);
  std::memset(to, 0xff, Bytes);
  simt::begin_copy({to, valid ? from : nullptr, Bytes});
}
inline void cp_async_commit() {
  simt::commit_copies();
}
template <int Left>
void cp_async_wait() {
  simt::copy c;
  while (simt::next_copy(Left, c)) {
    if (c.from)
      std::memcpy(c.to, c.from, c.bytes);
    else
      std::memset(c.to, 0, c.bytes);
  }
}

// clang-format off
inline float add(float a, float b) { return a + b; }
inline float subtract(float a, float b) { return a - b; }
inline float multiply(float a, float b) { return a * b; }
inline float divide(float a, float b) { return a / b; }
inline float square_root(float a) { return std::sqrt(a); }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float power(float a, float b) { return std::pow(a, b); }
inline double add(double a, double b) { return a + b; }
inline double subtract(double a, double b) { return a - b; }
inline double multiply(double a, double b) { return a * b; }
inline double divide(double a, double b) { return a / b; }
inline double square_root(double a) { return std::sqrt(a); }
inline double fused(double a, double b, double c) { return std::fma(a, b, c); }
inline float exp2(float x) { return std::exp2(x); }
// clang-format on

}  // namespace device
NIBBLE_NAMESPACE_END

#include "simt/mma.hpp"

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a kernel asks of the machine, one thin function per instruction, so that kernels are plain C++ around them and
/// the same text runs on a GPU and on the SIMT executor of tests/simt. Nowhere else stands PTX, an intrinsic or an
/// architecture `#if`. What kernels use of CUDA besides: `__global__`, `__device__`, `__launch_bounds__`, `threadIdx`,
/// `blockIdx`, `blockDim`, `gridDim`.
/// Every collective is for all threads it names: of the block, or of the warp's lanes in `mask`, none of which has ended.
/// Sources: CUDA C++ Programming Guide, "C++ Language Extensions"; PTX ISA 7.0 and later.
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace device {
/// Consecutive elements that one access moves.
template <class T, int Count>
struct alignas(sizeof(T) * Count) chunk {
  T at[Count];
};
}  // namespace device
NIBBLE_NAMESPACE_END

#if defined(__CUDACC__)

/// An array of `count` T in shared memory, 16-byte aligned, its contents undefined.
#define NIBBLE_SHARED(T, name, count) __shared__ __align__(16) T name[count]
/// The launch's dynamic shared memory as a T*, 16-byte aligned. Every use in a block is the same memory.
#define NIBBLE_DYNAMIC_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char nibble_dynamic_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(nibble_dynamic_shared_bytes)

NIBBLE_NAMESPACE_BEGIN
namespace device {

inline constexpr uint32_t all_lanes = 0xffffffffu;

/// The thread's place in its warp, [0, 32).
__device__ inline int lane() {
  int value;
  asm("mov.u32 %0, %%laneid;" : "=r"(value));
  return value;
}

/// Waits for the block, and orders its memory accesses. The forms with a vote tell all threads how it went.
__device__ inline void barrier() {
  __syncthreads();
}
__device__ inline bool barrier_any(bool vote) {
  return __syncthreads_or(vote) != 0;
}
__device__ inline bool barrier_all(bool vote) {
  return __syncthreads_and(vote) != 0;
}
__device__ inline int barrier_count(bool vote) {
  return __syncthreads_count(vote);
}

/// Waits for the warp's lanes, and orders their memory accesses; shuffles and votes do not.
__device__ inline void warp_barrier(uint32_t mask = all_lanes) {
  __syncwarp(mask);
}

namespace detail {
template <index_t Bytes>
struct word_of;
template <>
struct word_of<1> {
  using type = unsigned char;
};
template <>
struct word_of<2> {
  using type = unsigned short;
};
template <>
struct word_of<4> {
  using type = unsigned int;
};
template <>
struct word_of<8> {
  using type = uint2;
};
template <>
struct word_of<16> {
  using type = uint4;
};
/// What the hardware moves a T of 1, 2, 4, 8 or 16 bytes as.
template <class T>
using word = typename word_of<sizeof(T)>::type;

template <class T, class F>
__device__ inline T by_words(T value, F f) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  if constexpr (sizeof(T) == 4) {
    return bit_cast<T>(f(bit_cast<unsigned>(value)));
  } else {
    const auto two = bit_cast<uint2>(value);
    return bit_cast<T>(uint2{f(two.x), f(two.y)});
  }
}
}  // namespace detail

/// `value` of lane `from`. @pre from in [0, 32) and in `mask`.
template <class T>
__device__ T shuffle(T value, int from, uint32_t mask = all_lanes) {
  return detail::by_words(value, [=](unsigned x) { return __shfl_sync(mask, x, from); });
}
/// `value` of lane (own ^ flip). @pre that lane is in `mask`.
template <class T>
__device__ T shuffle_xor(T value, int flip, uint32_t mask = all_lanes) {
  return detail::by_words(value, [=](unsigned x) { return __shfl_xor_sync(mask, x, flip); });
}
/// `value` of lane (own + delta); the last `delta` lanes get their own. @pre that lane is in `mask`.
template <class T>
__device__ T shuffle_down(T value, int delta, uint32_t mask = all_lanes) {
  return detail::by_words(value, [=](unsigned x) { return __shfl_down_sync(mask, x, delta); });
}
/// `value` of lane (own − delta); the first `delta` lanes get their own. @pre that lane is in `mask`.
template <class T>
__device__ T shuffle_up(T value, int delta, uint32_t mask = all_lanes) {
  return detail::by_words(value, [=](unsigned x) { return __shfl_up_sync(mask, x, delta); });
}

/// Bit i is lane i's vote.
__device__ inline uint32_t ballot(bool vote, uint32_t mask = all_lanes) {
  return __ballot_sync(mask, vote);
}
__device__ inline bool any(bool vote, uint32_t mask = all_lanes) {
  return __any_sync(mask, vote) != 0;
}
__device__ inline bool all(bool vote, uint32_t mask = all_lanes) {
  return __all_sync(mask, vote) != 0;
}
/// The lanes whose `value` is the same as this one's.
__device__ inline uint32_t match(uint32_t value, uint32_t mask = all_lanes) {
  return __match_any_sync(mask, value);
}

/// *p op value, atomically, for all the device; returns what *p was. T: int32, uint32, uint64; add also float, double.
template <class T>
__device__ T atomic_add(T* p, T value) {
  if constexpr (sizeof(T) == 8 && T(0.5) == T(0)) {
    return static_cast<T>(atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(value)));
  } else {
    return atomicAdd(p, value);
  }
}
template <class T>
__device__ T atomic_max(T* p, T value) {
  if constexpr (sizeof(T) == 8) {
    return static_cast<T>(atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(value)));
  } else {
    return atomicMax(p, value);
  }
}
template <class T>
__device__ T atomic_min(T* p, T value) {
  if constexpr (sizeof(T) == 8) {
    return static_cast<T>(atomicMin(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(value)));
  } else {
    return atomicMin(p, value);
  }
}
__device__ inline uint32_t atomic_or(uint32_t* p, uint32_t value) {
  return atomicOr(p, value);
}
__device__ inline uint32_t atomic_exchange(uint32_t* p, uint32_t value) {
  return atomicExch(p, value);
}

/// Between a write and the atomic or flag that tells of it, and between seeing that and reading what was written.
__device__ inline void fence() {
  __threadfence();
}
/// A flag in global memory: who sees the value that store_release wrote sees what its thread did before.
__device__ inline uint32_t load_acquire(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline void store_release(uint32_t* p, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

/// A T of 1, 2, 4, 8 or 16 bytes in one access. @pre p is aligned to sizeof(T).
template <class T>
__device__ T load(const T* p) {
  return bit_cast<T>(*reinterpret_cast<const detail::word<T>*>(p));
}
template <class T>
__device__ void store(T* p, T value) {
  *reinterpret_cast<detail::word<T>*>(p) = bit_cast<detail::word<T>>(value);
}
/// The same of global memory that is used once: it leaves the caches first.
template <class T>
__device__ T load_once(const T* p) {
  return bit_cast<T>(__ldcs(reinterpret_cast<const detail::word<T>*>(p)));
}
template <class T>
__device__ void store_once(T* p, T value) {
  __stcs(reinterpret_cast<detail::word<T>*>(p), bit_cast<detail::word<T>>(value));
}
/// The same of global memory that no thread writes during the kernel.
template <class T>
__device__ T load_constant(const T* p) {
  return bit_cast<T>(__ldg(reinterpret_cast<const detail::word<T>*>(p)));
}

/// Starts to copy Bytes (4, 8 or 16) from global to shared memory, or zeros when not `valid`; `from` is not read then.
/// They are there for this thread after cp_async_wait, for others after a barrier that follows it.
/// @pre both are aligned to Bytes.
template <int Bytes>
__device__ void cp_async(void* to, const void* from, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? Bytes : 0;
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(from), "n"(Bytes), "r"(bytes)
                 : "memory");
}
/// Closes the group of copies begun since the last one.
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most `Left` of this thread's groups are under way.
template <int Left>
__device__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

}  // namespace device
NIBBLE_NAMESPACE_END

#include "nibble/kernels/detail/arithmetic.cuh"
#include "nibble/kernels/detail/mma.cuh"

#elif defined(NIBBLE_SIMT)
#include "simt/device.hpp"
#else
#error "kernels are compiled by nvcc or NVRTC, or by a host compiler for the SIMT executor (tests/simt)"
#endif

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Part of device.cuh: matrix instructions of a warp. Fragments by lane, g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix
/// Fragments for mma.m16n8k16" and ".m16n8k32"); a register holds the element of lower index in its lower bits.
///     16-bit: A (16, 16) a0 = (g, 2t..2t+1)  a1 = (g+8, 2t..)  a2 = (g, 2t+8..)  a3 = (g+8, 2t+8..)
///             B (16, 8)  b0 = (2t..2t+1, g)  b1 = (2t+8.., g)
///     8-bit:  A (16, 32) a0 = (g, 4t..4t+3)  a1 = (g+8, 4t..)  a2 = (g, 4t+16..) a3 = (g+8, 4t+16..)
///             B (32, 8)  b0 = (4t..4t+3, g)  b1 = (4t+16.., g)
///     both:   D (16, 8)  d0, d1 = (g, 2t..2t+1)  d2, d3 = (g+8, 2t..2t+1)
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace device {

/// Two floats rounded to bf16 as a fragment's register holds them, `low` in the lower bits. The bits of a NaN are the hardware's.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

/// D += A · B of fp16 or bf16, accumulated in float; in which order, the hardware keeps to itself.
template <class T>
__device__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (dtype_of<T>::value == dtype::f16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// D += A · B of int8, exact but for a wrap beyond 2^31.
__device__ inline void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// ldmatrix: Count (1, 2 or 4) matrices of 8 × 8 16-bit elements from shared memory. Lane 8i + j gives the address of row j
/// of matrix i (lanes from 8 · Count on give any valid one); register i gets elements (g, 2t..2t+1) of matrix i, of its
/// transpose when Transposed. @pre rows are 16-byte aligned.
template <bool Transposed = false, int Count>
__device__ void load_matrices(uint32_t (&r)[Count], const void* row) {
  static_assert(Count == 1 || Count == 2 || Count == 4, "ldmatrix loads 1, 2 or 4 matrices");
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Count == 1) {
    if constexpr (Transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared) : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared) : "memory");
  } else if constexpr (Count == 2) {
    if constexpr (Transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                   : "=r"(r[0]), "=r"(r[1])
                   : "r"(shared)
                   : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                   : "=r"(r[0]), "=r"(r[1])
                   : "r"(shared)
                   : "memory");
  } else {
    if constexpr (Transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                   : "r"(shared)
                   : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                   : "r"(shared)
                   : "memory");
  }
}

}  // namespace device
NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The widest vectors this machine has, for plain loops that the compiler vectorises. Vector width never changes a
/// result: loops run through here name their order of summation, and none of the instruction sets chosen here fuses a
/// product with a sum.
#pragma once

#if defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>
#endif

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

#if defined(__GNUC__) && defined(__x86_64__)
namespace detail {
/// Whether this machine converts between fp16 and float in one instruction. (__builtin_cpu_supports of clang 14 does not
/// know the name.)
inline bool has_f16c() noexcept {
#if defined(__F16C__)
  return true;
#else
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  }();
  return has;
#endif
}
}  // namespace detail
#endif

#if defined(__GNUC__) && defined(__x86_64__) && !defined(__AVX2__)
namespace detail {
template <class F>
__attribute__((target("avx2"), flatten)) void run_with_avx2(F& f) {
  f();
}
}  // namespace detail

/// Calls f(), compiled for the baseline and for AVX2. @pre what f calls can be inlined into it.
template <class F>
void vectorised(F&& f) {
  if (__builtin_cpu_supports("avx2"))
    detail::run_with_avx2(f);
  else
    f();
}
#else
/// Calls f(): this build's own instruction set is all there is to choose.
template <class F>
void vectorised(F&& f) {
  f();
}
#endif

}  // namespace host
NIBBLE_NAMESPACE_END

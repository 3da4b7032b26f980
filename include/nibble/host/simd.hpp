// SPDX-License-Identifier: Apache-2.0
/// @file
/// The widest vectors this machine has, for plain loops that the compiler vectorises. Vector width never changes a
/// result: loops run through here name their order of summation, and none of the instruction sets chosen here fuses a
/// product with a sum.
#pragma once

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

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

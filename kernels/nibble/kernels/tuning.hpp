// SPDX-License-Identifier: Apache-2.0
/// @file
/// From the architecture of a device to a policy known at compile time. A tuning is a stateless functor beside a list of
/// the architectures it tells apart, oldest first; kernels are compiled once for each of them:
///
///     struct quantize {
///       static constexpr int architectures[] = {80, 90};
///       NIBBLE_HOST_DEVICE constexpr policy operator()(int sm) const { return sm >= 90 ? policy{256, 16} : policy{256, 8}; }
///     };
#pragma once

#include "nibble/core.hpp"
#include "nibble/kernels/status.hpp"

NIBBLE_NAMESPACE_BEGIN

/// The policy of `Tuning` for `Sm`, as a type that a kernel takes as its template argument.
template <class Tuning, int Sm>
struct tuned {
  static constexpr int sm = Sm;
  static constexpr auto value = Tuning{}(Sm);
};

/// A number as a type, for what a launcher chooses and a kernel takes as its template argument.
template <int Value>
struct constant {
  static constexpr int value = Value;
};

#if !defined(__CUDACC_RTC__)  // whoever compiles at run time knows the device already
namespace detail {
template <index_t Count>
constexpr index_t count_of(const int (&)[Count]) noexcept {
  return Count;
}

template <index_t Last, class Tuning, class F>
status choose_from(int sm, F& f) {
  constexpr int architecture = Tuning::architectures[Last];
  if constexpr (Last > 0)
    static_assert(Tuning::architectures[Last - 1] < architecture, "a tuning lists architectures in rising order");
  if (sm >= architecture) return f(tuned<Tuning, architecture>{});
  if constexpr (Last > 0)
    return choose_from<Last - 1, Tuning>(sm, f);
  else
    return status::unsupported_device;
}
}  // namespace detail

/// f(tuned<…>) of the newest architecture listed that is not newer than `sm`.
/// @param sm 10 · major + minor. @param f returns a status. @returns unsupported_device below the oldest one listed.
template <class Tuning, class F>
status choose(int sm, Tuning, F&& f) {
  return detail::choose_from<detail::count_of(Tuning::architectures) - 1, Tuning>(sm, f);
}
#endif

NIBBLE_NAMESPACE_END

// SPDX-License-Identifier: Apache-2.0
/// @file
/// Output that is too large to stay in a cache, past the caches: a store that writes a whole line without reading it first saves a
/// third of the traffic of a copy. Blocks are 18 to 256 bytes, lines 64, so pieces are put together in a small buffer.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "nibble/block/lane.hpp"
#include "nibble/core.hpp"
#include "nibble/math.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

/// From how many bytes of output on it is streamed: 4 MiB are read back twice as fast from a cache, 16 MiB as fast.
constexpr index_t streamed_bytes = index_t(32) << 20;

namespace detail {

/// AMD's processors with AVX-512 (Zen 4 and later; measured on Zen 4): memory is best left to them, written through the caches, and read in order without being asked
/// for ahead (docs/block.md).
inline bool is_amd_with_avx512() noexcept {
#if defined(__GNUC__) && defined(__x86_64__)
  return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

/// Whether so many bytes are streamed on this machine.
inline bool is_streamed(index_t bytes) noexcept {
  return !is_amd_with_avx512() && bytes >= streamed_bytes;
}

/// The least power of two that is no less than x.
constexpr int power_of_two_from(int x) noexcept {
  int power = 1;
  while (power < x) power *= 2;
  return power;
}

/// Asks for the line `bytes` after `at`, which may be no one's. Always inline: gcc 12 takes a function that does only this for one without
/// effect, and leaves out its calls.
template <bool Write>
NIBBLE_LANE void ask_ahead(const void* at, int bytes) noexcept {
#if defined(__GNUC__)
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) + static_cast<unsigned>(bytes)),
                     Write);
#else
  static_cast<void>(at);
  static_cast<void>(bytes);
#endif
}

/// Writes bytes from `to` on, of any alignment, in order, about Room of them at a time. @param Room at least what is put at once.
template <int Room>
class line_stream {
 public:
  explicit line_stream(void* to) noexcept
      : held_(static_cast<int>(reinterpret_cast<std::uintptr_t>(to) % line)),
        first_(held_),
        to_(static_cast<uint8_t*>(to) - held_) {}

  /// Where the next bytes are to be put. Aligned as the place they are for.
  void* next() noexcept { return buffer_ + held_; }

  /// `count` bytes have been put there.
  void put(int count) noexcept {
    held_ += count;
    if (held_ < Room) return;
    const int whole = held_ / line * line;
    int done = 0;
    if (first_ != 0) {  // of the first line only the end is ours
      std::memcpy(to_ + first_, buffer_ + first_, static_cast<std::size_t>(line - first_));
      first_ = 0;
      done = line;
    }
    for (; done < whole; done += line) stream_line(buffer_ + done, to_ + done);
    std::memcpy(buffer_, buffer_ + whole, line);
    to_ += whole;
    held_ -= whole;
  }

  /// What is still held, after which all that was streamed is in order with other stores.
  void finish() noexcept {
    std::memcpy(to_ + first_, buffer_ + first_, static_cast<std::size_t>(held_ - first_));
#if defined(__SSE2__)
    _mm_sfence();
#endif
  }

 private:
  static constexpr int line = 64;
  static_assert(Room >= line, "a line at least");

  static void stream_line(const uint8_t* from, uint8_t* to) noexcept {
#if defined(__SSE2__)
    for (int i = 0; i < line; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
#else
    std::memcpy(to, from, line);
#endif
  }

  static constexpr int size = 2 * Room + line;
  alignas(power_of_two_from(size)) uint8_t buffer_[size];  // in one page: a store across two takes hundreds of cycles
  int held_, first_;
  uint8_t* to_;
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

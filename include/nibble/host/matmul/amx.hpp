// SPDX-License-Identifier: Apache-2.0
/// @file
/// plain_tiles in the instructions of AMX (Intel's Software Developer's Manual, volume 1, chapter 18): the same bits where no number is subnormal
/// and no product overflows. A tile is 16 rows of 64 bytes: of a 16 pairs of 16 rows, of a panel 16 columns of 16 pairs, of sums
/// 16 × 16 floats. A block keeps four tiles of sums, and reads a tile of a and one of b for each of two products.
#pragma once

#include "nibble/host/matmul/avx512.hpp"

#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#define NIBBLE_AMX_KNOWN 1

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NIBBLE_AMX_ENTRY __attribute__((target("avx512f,amx-tile,amx-bf16")))

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Whether this machine has the instructions and Linux lets this process use them, for which it wants to be asked (arch_prctl(2)), once for all
/// threads: their registers then take 8 KiB more, also on a stack for signals (sigaltstack(2)), and it refuses where one is too small. (__builtin_cpu_supports of clang 14 does not know the names.)
inline bool has_amx_bf16() noexcept {
  static const bool has = [] {
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;  // of edx, leaf 7
    constexpr long request_permission = 0x1023, tile_data = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & bf16) != 0 && (d & tile) != 0 &&
           ::syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return has;
}

struct amx_tiles : avx512_packing<plain_tiles::depth> {
  static constexpr index_t rows = plain_tiles::rows, apart = plain_tiles::apart, tile_rows = plain_tiles::tile_rows;
  static constexpr bool takes_panels = false;

  /// Tiles of 16 × 64 bytes. They are let go of at the end, as a thread that has some takes longer to be switched.
  class session {
   public:
    NIBBLE_AMX_ENTRY session() noexcept {
      // palette 1; from byte 16 on bytes of a row of each tile, from 48 on rows
      alignas(64) uint8_t shape[64] = {1};
      for (int tile = 0; tile < 8; ++tile) shape[16 + 2 * tile] = 64, shape[48 + tile] = 16;
      as_written();
      _tile_loadconfig(shape);
    }
    NIBBLE_AMX_ENTRY ~session() { _tile_release(); }
    session(const session&) = delete;
    session& operator=(const session&) = delete;
  };

  /// @pre within a session
  NIBBLE_AMX_ENTRY static void block(const uint32_t* a, index_t row, index_t, const uint32_t* b, index_t pairs,
                                     float* c, index_t stride, bool add) noexcept {
    constexpr index_t half = 16;
    const index_t of_a = row * index_t{sizeof *a}, of_b = block_cols * index_t{sizeof *b};
    as_written();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (index_t t = 0; t < pairs; t += depth, a += depth, b += depth * block_cols) {
      _tile_loadd(4, a, of_a);
      _tile_loadd(6, b, of_b);
      _tile_loadd(7, b + half, of_b);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a + half * row, of_a);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    alignas(64) float sums[rows * block_cols];
    float* const to = add ? sums : c;
    const index_t apart_in_to = add ? block_cols : stride, of_to = apart_in_to * index_t{sizeof *c};
    _tile_stored(0, to, of_to);
    _tile_stored(1, to + half, of_to);
    _tile_stored(2, to + half * apart_in_to, of_to);
    _tile_stored(3, to + half * apart_in_to + half, of_to);
    as_written();
    if (!add) return;
    for (index_t i = 0; i < rows; ++i, c += stride)
      for (index_t j = 0; j < block_cols; j += half)
        _mm512_storeu_ps(c + j, _mm512_add_ps(_mm512_loadu_ps(c + j), _mm512_load_ps(sums + i * block_cols + j)));
  }

  static void turn(const uint32_t* panel, index_t pairs, uint32_t* out) noexcept {
    turn_panel(panel, pairs, pairs + apart, out);
  }

 private:
  /// Compilers do not know that a tile's load reads memory: what was stored before must be there.
  static void as_written() noexcept { asm volatile("" ::: "memory"); }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#undef NIBBLE_AMX_ENTRY
#endif

// SPDX-License-Identifier: Apache-2.0
/// @file
/// The SIMT executor: runs a kernel on the calling CPU thread, one fibre per CUDA thread, in a random order that a seed
/// repeats. What a thread may ask of it while it runs stands here; `simt/device.hpp` makes CUDA's instructions of it.
///
/// A thread runs until it waits: at a barrier, for the lanes of its warp, or when it yields. Which thread goes on then is
/// drawn among all that can, of several blocks. Whatever CUDA leaves undefined is an error: a sentence on stderr that
/// names kernel, block, thread and line, then abort().
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

/// A line of a kernel. As a default argument, `place at = place::here()` is the caller's.
struct place {
  const char* file;
  int line;
  static constexpr place here(const char* file_ = __builtin_FILE(), int line_ = __builtin_LINE()) noexcept {
    return {file_, line_};
  }
};

struct extent {
  unsigned x, y, z;
};

/// A launch: `body(arguments)` is one thread of the kernel. `kernel` is its address, for its name in messages.
struct work {
  extent grid, block;
  std::size_t dynamic_shared_bytes;
  void (*body)(const void*);
  const void* arguments;
  const void* kernel;
};

/// Runs all of it; returns when the last thread has ended.
void run(const work& w);

/// The device that launches believe to be on; −1 for none. 90 at first.
void set_architecture(int sm) noexcept;
int architecture() noexcept;

/// Which of the schedules that NIBBLE_SIMT_SEED (1 where it is not set) stands for the launches to come follow; 1 at first.
void set_schedule(unsigned number) noexcept;

/// Frees what is kept from one launch to the next. In the child of a process that has fibres ThreadSanitizer sees nothing.
void forget_fibres();

/// Ends the program with a sentence about the running thread.
[[noreturn]] void fail(place at, const char* format, ...) __attribute__((format(printf, 2, 3)));

/// The running thread's place in its warp, and its warp's lanes.
unsigned lane() noexcept;

/// Lets other threads run, for a thread that waits for one of them to write.
void yield(place at);
/// As yield, now and then: between two atomics of one thread there may be another's.
void maybe_yield(place at);
/// What this thread did before comes before what others do after a later fence of theirs.
void fence();

/// Waits for the whole block. What threads wrote before it, all of them see after it.
/// @returns how many threads came with `vote`.
unsigned block_barrier(place at, bool vote = false);

/// Waits for the lanes of `mask`, which must all come with this mask and this operation. The last of them runs
/// `finish(operands, mask)`, operands[lane] being what that lane passed. Orders memory among the lanes only when asked.
using finish_function = void (*)(void* const* operands, std::uint32_t mask);
void meet(const char* operation, std::uint32_t mask, void* operand, finish_function finish, bool orders_memory,
          place at);

/// The block's array that belongs to the declaration `site`: made, and filled with 0xff, by the first thread that asks.
void* shared_array(const void* site, std::size_t bytes, place at);
/// The launch's dynamic shared memory, in this block.
void* dynamic_shared(place at);

/// A cp.async: until its thread has waited for it, its destination is not to be read, and under AddressSanitizer cannot.
struct copy {
  void* to;
  const void* from;  ///< null for zeros
  std::size_t bytes;
};
void begin_copy(const copy& c);
void commit_copies();
/// The next copy to complete when at most `left` of the committed groups may remain; false when there is none.
bool next_copy(unsigned left, copy& c);

/// Makes bytes fault under AddressSanitizer, and takes that back; nothing elsewhere.
void forbid(const void* p, std::size_t bytes) noexcept;
void allow(const void* p, std::size_t bytes) noexcept;

}  // namespace simt

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the executor knows of a launch while it runs: its blocks in flight, their warps and threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda_runtime.h"
#include "fibre.hpp"
#include "simt/executor.hpp"

namespace simt {

/// xorshift64*: a schedule is drawn with it.
class random_numbers {
 public:
  explicit random_numbers(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u | 1u) {}
  /// In [0, count).
  std::size_t below(std::size_t count) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<std::size_t>(((state_ * 0x2545f4914f6cdd1du) >> 32) * count >> 32);
  }

 private:
  std::uint64_t state_;
};

enum class state : std::uint8_t { ready, at_barrier, at_meeting, ended };

struct block_state;

struct thread_state {
  fibre runs;
  block_state* block = nullptr;
  unsigned number = 0;  ///< within the block
  uint3 index{};
  state now = state::ready;
  // What it waits for.
  const char* operation = "";
  place at{"", 0};
  std::uint32_t mask = 0;
  void* operand = nullptr;
  // cp.async: copies in the order they were begun, and how many of them each committed group still has.
  std::vector<copy> copies;
  std::vector<std::size_t> groups;
  std::size_t uncommitted = 0;
};

/// Ordering objects, two in turn: with one, who leaves a barrier last would learn what others did up to the next.
struct order_state {
  char objects[2];
  unsigned turn;
  char& now() { return objects[turn % 2]; }
};

struct warp_state {
  order_state meetings[32];      ///< by the lowest lane of the mask
  std::uint32_t waiting, ended;  ///< lanes at a meeting, and those that are no more or never were
};

struct array_state {
  const void* site;
  std::unique_ptr<unsigned char, decltype(&std::free)> bytes;
};

struct block_state {
  explicit block_state(std::size_t size) : threads(size), warps((size + 31) / 32) {}
  uint3 index{};
  std::vector<thread_state> threads;
  std::vector<array_state> arrays;
  std::size_t static_bytes = 0;
  unsigned alive = 0, arrived = 0;
  unsigned votes = 0, elected = 0;  ///< at the barrier that threads come to, and at the last one
  place barrier{"", 0};             ///< where those that arrived wait
  order_state order{};
  std::vector<warp_state> warps;
};

struct launch_state {
  work of;
  random_numbers draw;
  std::vector<std::unique_ptr<block_state>> blocks;  ///< in flight
  std::vector<thread_state*> ready;
  std::uint64_t next_block = 0, all_blocks;
  thread_state* running = nullptr;
  /// Ordering objects: the launch comes after what stands before it, and before what follows; what one thread did before
  /// its fence comes before what another does after a later one.
  char begin = 0, end = 0, fence = 0;
  std::uint64_t idle_yields = 0;  ///< since a thread last ended or met others
};

/// The launch that runs, if one does.
extern launch_state* current;
inline thread_state& running() {
  return *current->running;
}

/// Which order of threads is drawn: NIBBLE_SIMT_SEED's, and what set_schedule said.
extern const std::uint64_t seed;
extern std::uint64_t schedule;

/// Nobody can go on: tells of one block what its threads wait for.
[[noreturn]] void deadlock(const block_state& b);

}  // namespace simt

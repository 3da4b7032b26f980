// SPDX-License-Identifier: Apache-2.0
// Compiled without -fsanitize=thread: ThreadSanitizer is to see the kernels' accesses, not the executor's.
#include "simt/executor.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include "state.hpp"

namespace simt {

launch_state* current = nullptr;
const std::uint64_t seed = [] {
  const char* text = std::getenv("NIBBLE_SIMT_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}();
std::uint64_t schedule = 1;

namespace {

/// Threads that may be in flight at once, and blocks.
#if defined(NIBBLE_SIMT_TSAN)
// ThreadSanitizer keeps 255 threads apart. Of more than some 300 it forgets what they did as they take turns, and finds nothing.
constexpr std::size_t most_threads = 255, most_blocks = 4;
#else
constexpr std::size_t most_threads = 1024, most_blocks = 4;
#endif
constexpr std::uint64_t most_idle_yields = 10'000'000;

std::mutex one_launch;
int sm = [] {
  const char* text = std::getenv("NIBBLE_SIMT_ARCHITECTURE");
  return text == nullptr ? 90 : std::atoi(text);
}();
std::uint64_t launches = 0;  ///< since the schedule was set

uint3 index_of(unsigned number, extent of) {
  return {number % of.x, number / of.x % of.y, number / of.x / of.y};
}

/// Goes to `t` and comes back when it waits or ends.
void resume(thread_state& t) {
  current->running = &t;
  threadIdx = t.index;
  blockIdx = t.block->index;
  t.runs.enter();
}

void wait() {
  running().runs.leave();
}

void make_ready(thread_state& t) {
  t.now = state::ready;
  current->ready.push_back(&t);
}

void thread_body() {
  acquire(current->begin);
  current->of.body(current->of.arguments);
  release(current->end);
  const overlooked own;
  thread_state& t = running();
  if (t.block->arrived > 0)
    fail(t.block->barrier, "this thread ends, and %u others wait for it at the barrier", t.block->arrived);
  for (const copy& c : t.copies) allow(c.to, c.bytes);
  t.copies.clear();
  t.now = state::ended;
  t.block->warps[t.number / 32].ended |= 1u << t.number % 32;
  current->idle_yields = 0;
}

void begin_block(block_state& b) {
  const std::uint64_t number = current->next_block++;
  const extent grid = current->of.grid;
  b.index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
             static_cast<unsigned>(number / grid.x / grid.y)};
  b.alive = static_cast<unsigned>(b.threads.size());
  b.static_bytes = 0;
  for (warp_state& w : b.warps) w.waiting = w.ended = 0;
  if (b.alive % 32 != 0) b.warps.back().ended = ~0u << b.alive % 32;
  for (unsigned i = 0; i < b.alive; ++i) {
    thread_state& t = b.threads[i];
    t.block = &b;
    t.number = i;
    t.index = index_of(i, current->of.block);
    t.groups.clear();
    t.uncommitted = 0;
    t.runs.start(thread_body);
    make_ready(t);
  }
}

void end_block(block_state& b) {
  b.arrays.clear();
  if (current->next_block < current->all_blocks) begin_block(b);
}

}  // namespace

void run(const work& w) {
  const std::lock_guard<std::mutex> one(one_launch);
  const overlooked own;
  const std::size_t threads = std::size_t(w.block.x) * w.block.y * w.block.z;
  launch_state launch{w,  random_numbers((seed << 40) + (schedule << 20) + ++launches),
                      {}, {},
                      0,  std::uint64_t(w.grid.x) * w.grid.y * w.grid.z};
  current = &launch;
  release(launch.begin);
  blockDim = dim3(w.block.x, w.block.y, w.block.z);
  gridDim = dim3(w.grid.x, w.grid.y, w.grid.z);
  std::size_t in_flight = std::min(most_blocks, std::max<std::size_t>(1, most_threads / threads));
  in_flight = static_cast<std::size_t>(std::min<std::uint64_t>(in_flight, launch.all_blocks));
  for (std::size_t i = 0; i < in_flight; ++i) {
    launch.blocks.push_back(std::make_unique<block_state>(threads));
    begin_block(*launch.blocks.back());
  }
  auto& ready = launch.ready;
  while (!ready.empty()) {
    std::swap(ready[launch.draw.below(ready.size())], ready.back());
    thread_state& t = *ready.back();
    ready.pop_back();
    resume(t);
    if (t.now == state::ended && --t.block->alive == 0) end_block(*t.block);
  }
  for (const auto& b : launch.blocks)
    if (b->alive > 0) deadlock(*b);
  acquire(launch.end);
  current = nullptr;
}

void forget_fibres() {
  fibre::places().clear();
}

void set_architecture(int sm_) noexcept {
  sm = sm_;
}
int architecture() noexcept {
  return sm;
}
void set_schedule(unsigned number) noexcept {
  schedule = number;
  launches = 0;
}

unsigned lane() noexcept {
  return running().number % 32;
}

void fence() {
  acquire(current->fence);
  release(current->fence);
}

void yield(place at) {
  const overlooked own;
  if (++current->idle_yields > most_idle_yields) fail(at, "threads wait for memory that no thread changes any more");
  make_ready(running());
  wait();
}

void maybe_yield(place at) {
  if (current->draw.below(4) == 0) yield(at);
}

unsigned block_barrier(place at, bool vote) {
  const overlooked own;
  thread_state& t = running();
  block_state& b = *t.block;
  if (b.alive < b.threads.size())
    fail(at, "a barrier that %zu threads of the block cannot reach, for they have ended", b.threads.size() - b.alive);
  if (b.arrived > 0 && (b.barrier.line != at.line || std::strcmp(b.barrier.file, at.file) != 0))
    fail(at, "divergent barriers: %u threads of the block wait at %s:%d", b.arrived, b.barrier.file, b.barrier.line);
  b.barrier = at;
  char& order = b.order.now();
  release(order);
  t.now = state::at_barrier;
  t.operation = "a barrier";
  t.at = at;
  t.mask = 0;
  b.votes += vote ? 1 : 0;
  if (++b.arrived == b.threads.size()) {
    current->idle_yields = 0;
    b.arrived = 0;
    b.elected = b.votes;
    b.votes = 0;
    ++b.order.turn;
    for (thread_state& u : b.threads) make_ready(u);
  }
  wait();
  acquire(order);
  return b.elected;  // the next barrier cannot end before this thread comes to it
}

namespace {

/// Whether all other lanes of `mask` wait for this one at the same meeting; fails where a lane can never come to it.
bool others_wait(const block_state& b, const warp_state& w, const char* operation, std::uint32_t mask, place at) {
  const thread_state& t = running();
  const unsigned me = t.number % 32, first = t.number - me;
  const auto size = static_cast<unsigned>(b.threads.size());
  if ((mask >> me & 1u) == 0) fail(at, "%s with mask 0x%08x, in which lane %u is not", operation, mask, me);
  if (const std::uint32_t gone = mask & w.ended) {
    const auto i = static_cast<unsigned>(__builtin_ctz(gone));
    if (first + i < size) fail(at, "%s with mask 0x%08x, but lane %u has ended", operation, mask, i);
    fail(at, "%s with mask 0x%08x, but the warp has only %u lanes", operation, mask, size - first);
  }
  bool all = (mask & ~w.waiting) == 1u << me;
  for (std::uint32_t left = mask & w.waiting; left != 0; left &= left - 1) {
    const auto i = static_cast<unsigned>(__builtin_ctz(left));
    const thread_state& u = b.threads[first + i];
    const bool same = u.mask == mask && std::strcmp(u.operation, operation) == 0;
    if (!same && (u.mask >> me & 1u) != 0)
      fail(at, "%s with mask 0x%08x, while lane %u waits at %s with mask 0x%08x in %s:%d", operation, mask, i,
           u.operation, u.mask, u.at.file, u.at.line);
    if (!same) all = false;   // it waits for others first
    if (!all && same) break;  // who differs from that lane is found when the last one comes
  }
  return all;
}

}  // namespace

void meet(const char* operation, std::uint32_t mask, void* operand, finish_function finish, bool orders_memory,
          place at) {
  const overlooked own;
  thread_state& t = running();
  block_state& b = *t.block;
  warp_state& w = b.warps[t.number / 32];
  const bool last = others_wait(b, w, operation, mask, at);
  order_state& meeting = w.meetings[__builtin_ctz(mask)];
  char& order = meeting.now();
  if (orders_memory) release(order);
  t.now = state::at_meeting;
  t.operation = operation;
  t.at = at;
  t.mask = mask;
  t.operand = operand;
  w.waiting |= 1u << t.number % 32;
  if (last) {
    current->idle_yields = 0;
    thread_state* const lanes = &b.threads[t.number / 32 * 32];
    void* operands[32] = {};
    for (std::uint32_t left = mask; left != 0; left &= left - 1)
      operands[__builtin_ctz(left)] = lanes[__builtin_ctz(left)].operand;
    finish(operands, mask);
    ++meeting.turn;
    w.waiting &= ~mask;
    for (std::uint32_t left = mask; left != 0; left &= left - 1) make_ready(lanes[__builtin_ctz(left)]);
  }
  wait();
  if (orders_memory) acquire(order);
}

}  // namespace simt

// SPDX-License-Identifier: Apache-2.0
// Compiled without -fsanitize=thread: ThreadSanitizer is to see the kernels' accesses, not the executor's.
#include "simt/executor.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fibre.hpp"
#include "kernel_name.hpp"

namespace simt {
namespace {

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

/// Threads that may be in flight at once, and blocks.
constexpr std::size_t most_threads = 1024, most_blocks = 4;
constexpr std::size_t most_static_bytes = 48 * 1024;
constexpr std::uint64_t most_idle_yields = 10'000'000;

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

launch_state* current = nullptr;
std::mutex one_launch;
int sm = [] {
  const char* text = std::getenv("NIBBLE_SIMT_ARCHITECTURE");
  return text == nullptr ? 90 : std::atoi(text);
}();
const std::uint64_t seed = [] {
  const char* text = std::getenv("NIBBLE_SIMT_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}();
std::uint64_t schedule = 1, launches = 0;  ///< launches since the schedule was set

thread_state& running() {
  return *current->running;
}

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

void print_place(std::string& text, place at) {
  text += std::string(at.file) + ":" + std::to_string(at.line);
}

std::string triple(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

/// Nobody can go on: tells of one block what its threads wait for.
[[noreturn]] void deadlock(const block_state& b) {
  std::string text;
  std::vector<bool> told(b.threads.size());
  place first{"", 0};
  for (std::size_t i = 0; i < b.threads.size(); ++i) {
    const thread_state& t = b.threads[i];
    if (told[i] || t.now == state::ended) continue;
    unsigned count = 0;
    for (std::size_t j = i; j < b.threads.size(); ++j) {
      const thread_state& u = b.threads[j];
      if (u.now != t.now || u.operation != t.operation || u.at.line != t.at.line || u.mask != t.mask) continue;
      told[j] = true;
      ++count;
    }
    if (text.empty()) first = t.at;
    text += text.empty() ? "" : "; ";
    text += std::to_string(count) + " wait at " + t.operation + " in ";
    print_place(text, t.at);
    if (t.now == state::at_meeting) {
      char mask[32];
      std::snprintf(mask, sizeof(mask), " with mask 0x%08x", t.mask);
      text += mask;
    }
    text += ", the first being " + triple(t.index);
  }
  fail(first, "deadlock: of the threads of block %s, %s", triple(b.index).c_str(), text.c_str());
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

void fail(place at, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  const std::string name = current ? kernel_name(current->of.kernel) : "no kernel";
  std::fprintf(stderr, "%s:%d: %s [%s, block %s, thread %s, schedule %llu of NIBBLE_SIMT_SEED=%llu]\n", at.file,
               at.line, text, name.c_str(), triple(blockIdx).c_str(), triple(threadIdx).c_str(),
               static_cast<unsigned long long>(schedule), static_cast<unsigned long long>(seed));
  std::abort();
}

void forbid([[maybe_unused]] const void* p, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(NIBBLE_SIMT_ASAN)
  __asan_poison_memory_region(p, bytes);
#endif
}
void allow([[maybe_unused]] const void* p, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(NIBBLE_SIMT_ASAN)
  __asan_unpoison_memory_region(p, bytes);
#endif
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

namespace {

void* new_array(block_state& b, const void* site, std::size_t bytes) {
  void* p = nullptr;
  if (::posix_memalign(&p, 16, bytes) != 0) std::abort();
  std::memset(p, 0xff, bytes);
  b.arrays.push_back({site, {static_cast<unsigned char*>(p), &std::free}});
  return p;
}

void* find_array(const block_state& b, const void* site) {
  for (const array_state& a : b.arrays)
    if (a.site == site) return a.bytes.get();
  return nullptr;
}

}  // namespace

void* shared_array(const void* site, std::size_t bytes, place at) {
  const overlooked own;
  block_state& b = *running().block;
  if (void* there = find_array(b, site)) return there;
  b.static_bytes += (bytes + 15) / 16 * 16;
  if (b.static_bytes > most_static_bytes)
    fail(at, "the kernel's shared arrays take %zu bytes, and CUDA gives %zu", b.static_bytes, most_static_bytes);
  return new_array(b, site, bytes);
}

void* dynamic_shared(place at) {
  const overlooked own;
  block_state& b = *running().block;
  if (void* there = find_array(b, nullptr)) return there;
  if (current->of.dynamic_shared_bytes == 0) fail(at, "the launch gave no dynamic shared memory");
  return new_array(b, nullptr, current->of.dynamic_shared_bytes);
}

void begin_copy(const copy& c) {
  const overlooked own;
  thread_state& t = running();
  forbid(c.to, c.bytes);
  t.copies.push_back(c);
  ++t.uncommitted;
}

void commit_copies() {
  const overlooked own;
  thread_state& t = running();
  t.groups.push_back(t.uncommitted);
  t.uncommitted = 0;
}

bool next_copy(unsigned left, copy& c) {
  const overlooked own;
  thread_state& t = running();
  while (t.groups.size() > left) {
    if (t.groups.front() == 0) {
      t.groups.erase(t.groups.begin());
      continue;
    }
    --t.groups.front();
    c = t.copies.front();
    t.copies.erase(t.copies.begin());
    allow(c.to, c.bytes);
    return true;
  }
  return false;
}

}  // namespace simt

// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/parallel.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace parallel_tests {

using namespace nibble;

namespace {

/// How often each tile of a loop over `count` tiles ran.
std::vector<int> visits(host::thread_pool& pool, index_t count) {
  std::vector<int> seen(static_cast<size_t>(count), 0);
  pool.run(count, [&](index_t tile, int) { ++seen[static_cast<size_t>(tile)]; });
  return seen;
}

/// Sums of tiles of 1000 values whose rounding depends on their order: equal only if the tiles were cut the same way.
std::vector<float> tile_sums(index_t tiles) {
  std::vector<float> sums(static_cast<size_t>(tiles));
  host::parallel_for(tiles, [&](index_t tile) {
    float sum = 0;
    for (int i = 0; i < 1000; ++i) sum += std::sin(static_cast<float>(tile * 1000 + i));
    sums[static_cast<size_t>(tile)] = sum;
  });
  return sums;
}

}  // namespace

TEST_CASE("every tile runs once, whatever the number of threads and tiles") {
  for (const int threads : {1, 2, 3, 8}) {
    host::thread_pool pool(threads);
    REQUIRE(pool.size() == threads);
    for (const index_t count : {0, 1, 2, 3, 7, 8, 9, 1000}) {
      const std::vector<int> seen = visits(pool, count);
      REQUIRE(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
    }
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose shadow memory no limit leaves room for
TEST_CASE("a pool that gets fewer threads than it asks for does all of the work with them") {
  const pid_t child = ::fork();
  if (child == 0) {
    const struct rlimit limit = {rlim_t{1} << 30, rlim_t{1} << 30};  // room for some hundred stacks at most
    bool fine = ::setrlimit(RLIMIT_AS, &limit) == 0;
    host::thread_pool pool(4000);
    const std::vector<int> seen = visits(pool, 10000);
    fine = fine && pool.size() >= 1 && pool.size() < 4000;
    fine = fine && std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; });
    pool.resize(1);
    ::_exit(fine ? 0 : 1);
  }
  int ended = -1;
  REQUIRE(::waitpid(child, &ended, 0) == child);
  CHECK(WIFEXITED(ended));
  CHECK(WEXITSTATUS(ended) == 0);
}
#endif

TEST_CASE("a negative count is an empty loop") {
  host::thread_pool pool(2);
  pool.run(-1, [](index_t, int) { FAIL("no tile should run"); });
}

TEST_CASE("a thread's number names one thread of the pool, so scratch memory may be indexed by it") {
  host::thread_pool pool(4);
  std::vector<std::atomic<int>> busy(4);
  std::atomic<bool> in_range{true}, alone{true};
  pool.run(2000, [&](index_t, int thread) {
    if (thread < 0 || thread >= 4) {
      in_range = false;
      return;
    }
    if (busy[static_cast<size_t>(thread)]++ != 0) alone = false;
    std::this_thread::yield();
    --busy[static_cast<size_t>(thread)];
  });
  REQUIRE(in_range);
  REQUIRE(alone);
}

TEST_CASE("several threads take part in a loop") {
  host::thread_pool pool(3);
  std::atomic<int> waiting{0};
  // Each tile waits until all three are running: only three threads at once can end this loop.
  pool.run(3, [&](index_t, int) {
    ++waiting;
    while (waiting < 3) std::this_thread::yield();
  });
  REQUIRE(waiting == 3);
}

TEST_CASE("what a tile throws comes out of the loop, and the pool works on") {
  for (const int threads : {1, 4}) {
    host::thread_pool pool(threads);
    for (int round = 0; round < 50; ++round) {
      std::string caught;
      try {
        pool.run(100, [&](index_t tile, int) {
          if (tile == 37) throw std::runtime_error("tile 37");
        });
      } catch (const std::runtime_error& failure) {
        caught = failure.what();
      }
      REQUIRE(caught == "tile 37");
      const std::vector<int> seen = visits(pool, 10);
      REQUIRE(std::count(seen.begin(), seen.end(), 1) == 10);
    }
  }
}

TEST_CASE("when every tile throws, exactly one exception comes out and no tile runs afterwards") {
  host::thread_pool pool(4);
  std::atomic<int> started{0};
  REQUIRE_THROWS_AS(pool.run(100000,
                             [&](index_t, int) {
                               ++started;
                               throw std::logic_error("each");
                             }),
                    std::logic_error);
  REQUIRE(started >= 1);
  REQUIRE(started <= 4);  // one a thread: whoever threw draws no further tile
}

TEST_CASE("a loop inside a tile runs wholly on the thread that started it") {
  host::thread_pool pool(4);
  std::atomic<int> inner{0}, strangers{0};
  pool.run(16, [&](index_t, int outer_thread) {
    const auto self = std::this_thread::get_id();
    pool.run(25, [&](index_t, int thread) {
      ++inner;
      if (std::this_thread::get_id() != self || thread != outer_thread) ++strangers;
    });
  });
  REQUIRE(inner == 16 * 25);
  REQUIRE(strangers == 0);
}

TEST_CASE("an exception of an inner loop crosses both loops") {
  host::thread_pool pool(3);
  REQUIRE_THROWS_AS(pool.run(8,
                             [&](index_t outer, int) {
                               pool.run(8, [&](index_t, int) {
                                 if (outer == 5) throw std::out_of_range("inner");
                               });
                             }),
                    std::out_of_range);
  const std::vector<int> seen = visits(pool, 8);  // no thread still believes that it is inside a loop
  REQUIRE(std::count(seen.begin(), seen.end(), 1) == 8);
}

TEST_CASE("loops of several callers share one pool in turn") {
  host::thread_pool pool(3);
  std::atomic<index_t> total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) pool.run(20, [&](index_t tile, int) { total += tile; });
    });
  for (std::thread& caller : callers) caller.join();
  REQUIRE(total == 4 * 50 * 190);
}

TEST_CASE("a pool can be resized between loops") {
  host::thread_pool pool(1);
  for (const int threads : {4, 2, 1, 3, 1, 8}) {
    pool.resize(threads);
    REQUIRE(pool.size() == threads);
    const std::vector<int> seen = visits(pool, 64);
    REQUIRE(std::count(seen.begin(), seen.end(), 1) == 64);
  }
}

TEST_CASE("a thousand short loops end") {
  host::thread_pool pool(4);
  std::atomic<int> tiles{0};
  for (int round = 0; round < 1000; ++round) pool.run(4, [&](index_t, int) { ++tiles; });
  REQUIRE(tiles == 4000);
}

TEST_CASE("parallel_for gives the same bytes whatever the number of threads") {
  const int before = host::pool().size();
  host::set_threads(1);
  const std::vector<float> one = tile_sums(200);
  for (const int threads : {2, 3, 7}) {
    host::set_threads(threads);
    REQUIRE(host::pool().size() == threads);
    REQUIRE(tile_sums(200) == one);
  }
  host::set_threads(0);
  REQUIRE(host::pool().size() == 1);
  host::set_threads(before);
}

}  // namespace parallel_tests

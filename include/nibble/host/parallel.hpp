// SPDX-License-Identifier: Apache-2.0
/// @file
/// Our threads over fixed tiles. Work is cut by its own shape, never by the number of threads, and each tile writes what
/// no other tile writes, so the bytes of a result do not depend on how many threads there are.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

/// A pool of threads that run the tiles of one loop at a time. A loop started inside a tile runs on the thread that
/// started it.
class thread_pool {
 public:
  /// @param threads at least 1; the calling thread is one of them. As resize.
  explicit thread_pool(int threads) { resize(threads); }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() { stop(); }

  int size() const noexcept { return static_cast<int>(workers_.size()) + 1; }

  /// Fewer threads where the system gives no more, as in a container: size() tells. @pre no loop is running.
  void resize(int threads) {
    stop();
    stopping_ = false;
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::exception&) {  // those that there are do the same work
    }
  }

  /// Calls f(tile, thread) for tile in [0, count), thread in [0, size()). Rethrows the first exception a tile threw,
  /// after every started tile has ended.
  template <class F>
  void run(index_t count, F&& f) {
    if (count <= 0) return;
    if (inside() || workers_.empty() || count == 1) {
      for (index_t tile = 0; tile < count; ++tile) f(tile, slot());
      return;
    }
    std::lock_guard<std::mutex> one_loop(loop_);
    std::exception_ptr failure;
    std::mutex failure_mutex;
    std::atomic<index_t> next{0};
    auto body = [&](int thread) {
      inside() = true;
      slot() = thread;
      for (index_t tile; (tile = next.fetch_add(1)) < count;) {
        try {
          f(tile, thread);
        } catch (...) {
          std::lock_guard<std::mutex> guard(failure_mutex);
          if (!failure) failure = std::current_exception();
          next = count;
        }
      }
      inside() = false;
      slot() = 0;
    };
    {
      std::lock_guard<std::mutex> guard(mutex_);
      call_ = [](void* state, int thread) { (*static_cast<decltype(body)*>(state))(thread); };
      state_ = &body;
      open_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    body(0);
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = false;  // no tile is left for who has not begun
    if (active_ > 0) {
      lock.unlock();
      await([&] { return active_ == 0; });
      lock.lock();
      done_.wait(lock, [&] { return active_ == 0; });
    }
    lock.unlock();
    if (failure) std::rethrow_exception(failure);
  }

 private:
  static bool& inside() {
    thread_local bool value = false;
    return value;
  }
  static int& slot() {
    thread_local int value = 0;
    return value;
  }
  /// Looks for some microseconds whether `there`: loops that follow each other closely would else wait for the system to wake a thread, which
  /// takes longer than many a loop.
  template <class F>
  static void await(F&& there) {
    const auto start = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < 16; ++i) {
        if (there()) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() - start < std::chrono::microseconds(50));
  }
  static void relax() noexcept {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    __builtin_ia32_pause();
#endif
  }
  void work(int thread) {
    for (uint64_t seen = 0;;) {
      await([&] { return generation_.load(std::memory_order_acquire) != seen; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      if (!open_) continue;
      const auto call = call_;
      void* const state = state_;
      ++active_;
      lock.unlock();
      call(state, thread);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }
  void stop() {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    generation_ = 0;
  }

  std::vector<std::thread> workers_;
  std::mutex loop_, mutex_;
  std::condition_variable wake_, done_;
  void (*call_)(void*, int) = nullptr;
  void* state_ = nullptr;
  std::atomic<uint64_t> generation_{0};  ///< of loops
  std::atomic<int> active_{0};           ///< workers that run tiles of the loop
  bool open_ = false;                    ///< whether the loop may still have some
  bool stopping_ = false;
};

/// The pool host functions run on: as many threads as the machine has, until set_threads says otherwise.
inline thread_pool& pool() {
  static thread_pool instance(static_cast<int>(std::thread::hardware_concurrency()) > 0
                                  ? static_cast<int>(std::thread::hardware_concurrency())
                                  : 1);
  return instance;
}

/// @param threads at least 1. @pre no loop is running.
inline void set_threads(int threads) {
  pool().resize(threads < 1 ? 1 : threads);
}

/// f(tile) for every tile in [0, count), in any order, on pool().
template <class F>
void parallel_for(index_t count, F&& f) {
  pool().run(count, [&](index_t tile, int) { f(tile); });
}

}  // namespace host
NIBBLE_NAMESPACE_END

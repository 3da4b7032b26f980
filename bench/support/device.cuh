// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the benches of kernels share. Time is taken by events around the replay of a CUDA graph of many launches, so the host is
/// not in it. Cold: launches go round sets of buffers of which more than twice the L2 is touched between two uses of one. Warm: all
/// launches on one set, registered where it fits the L2. Beside each kernel, by turns with it, run a copy of as many bytes under the
/// same conditions and one of 1 GiB; a copy is the driver's or a plain kernel's, whichever is faster. Bytes count what is read and
/// what is written, for the copies as for the rest. Every figure is the median of the rounds.
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "commit.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/scheme.hpp"

namespace bench {

using nibble::index_t;
using nibble::status;

constexpr int rounds = 15;

inline void need(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
inline void need(status s) {
  if (s != status::ok) throw std::runtime_error(nibble::to_string(s));
}

/// The device that all is measured on.
struct gpu {
  cudaDeviceProp properties{};
  cudaStream_t stream = nullptr;
  cudaEvent_t start = nullptr, stop = nullptr;

  gpu() {
    need(cudaGetDeviceProperties(&properties, 0), "the GPU's properties");
    need(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    need(cudaEventCreate(&start), "an event");
    need(cudaEventCreate(&stop), "an event");
  }
  gpu(const gpu&) = delete;
  gpu& operator=(const gpu&) = delete;
};
inline const gpu& device() {
  static const gpu only;  // lives until the process ends, as the context does
  return only;
}

template <class T>
class buffer {
 public:
  explicit buffer(index_t count) : count_(count) {
    need(cudaMalloc(&data_, static_cast<size_t>(count) * sizeof(T)), "device memory");
  }
  ~buffer() { cudaFree(data_); }
  buffer(buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), count_(other.count_) {}
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  T* data() const { return data_; }
  index_t size() const { return count_; }
  index_t bytes() const { return count_ * index_t{sizeof(T)}; }

 private:
  T* data_ = nullptr;
  index_t count_;
};

/// As much workspace as call(workspace, bytes) → status asks for.
template <class F>
buffer<unsigned char> workspace_of(F&& call) {
  index_t bytes = 0;
  need(call(nullptr, bytes));
  return buffer<unsigned char>(bytes);
}

/// 64 bits that look random, a different 64 for each i. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014, the mixing function of SplitMix64.
__device__ inline uint64_t mixed(uint64_t i) {
  i *= 0x9e3779b97f4a7c15u;
  i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9u;
  i = (i ^ (i >> 27)) * 0x94d049bb133111ebu;
  return i ^ (i >> 31);
}

/// N(0, deviation²) by Box and Muller.
template <class T>
struct normal {
  float deviation;
  __device__ T operator()(uint64_t random) const {
    const float u = (static_cast<float>(random >> 40) + 1.0f) * 0x1p-24f;  // (0, 1]
    const float turn = static_cast<float>(random & 0xffffffu) * 0x1p-24f;
    return T(deviation * sqrtf(-2.0f * logf(u)) * cospif(2.0f * turn));
  }
};

/// Integers in [0, 2^bits).
template <class T>
struct uniform_bits {
  int bits;
  __device__ T operator()(uint64_t random) const { return static_cast<T>(random >> (64 - bits)); }
};

/// Parameters of groups of such weights: scales within 10 % of 6·deviation / max_code, zero points next to the middle.
struct uniform_params {
  float scale;
  int32_t mid;
  __device__ nibble::params operator()(uint64_t random) const {
    const float share = static_cast<float>(random >> 40) * 0x1p-24f;
    return {scale * (0.9f + 0.2f * share), mid + static_cast<int32_t>(random % 3) - 1};
  }
};

template <class T, class Draw>
__global__ void fill_kernel(T* to, index_t count, Draw draw, uint64_t seed) {
  const index_t step = index_t{gridDim.x} * blockDim.x;
  for (index_t i = index_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = draw(mixed(static_cast<uint64_t>(i) + (seed << 40)));
}

template <class T, class Draw>
void fill(const buffer<T>& to, Draw draw, unsigned seed) {
  need(nibble::launch(fill_kernel<T, Draw>, 4096, 256, 0, device().stream, to.data(), to.size(), draw, uint64_t{seed}));
}

template <class T>
void zero(const buffer<T>& to) {
  need(cudaMemsetAsync(to.data(), 0, static_cast<size_t>(to.bytes()), device().stream), "zeros");
}

constexpr int copy_threads = 256, copies_per_thread = 4;
using copied_chunk = nibble::device::chunk<uint32_t, 4>;

/// to = from, copies_per_thread · 16 bytes a thread.
static __global__ void __launch_bounds__(copy_threads)
    copy_kernel(const copied_chunk* from, copied_chunk* to, index_t count) {
  const index_t first = index_t{blockIdx.x} * (copy_threads * copies_per_thread) + threadIdx.x;
  copied_chunk held[copies_per_thread];
#pragma unroll
  for (int i = 0; i < copies_per_thread; ++i)
    if (first + i * copy_threads < count) held[i] = nibble::device::load_once(from + first + i * copy_threads);
#pragma unroll
  for (int i = 0; i < copies_per_thread; ++i)
    if (first + i * copy_threads < count) nibble::device::store_once(to + first + i * copy_threads, held[i]);
}

/// Keeps the device busy while the host queues what is to be timed.
static __global__ void busy_kernel(long long cycles) {
  for (const long long start = clock64(); clock64() - start < cycles;) {
  }
}

/// A CUDA graph of `launches` launches.
class replay {
 public:
  /// f(i, stream) → status launches number i. The first is also launched by itself, for code is loaded when it is first used.
  template <class F>
  replay(index_t launches, F&& f) : launches_(launches) {
    cudaStream_t stream = device().stream;
    need(f(0, stream));
    need(cudaStreamSynchronize(stream), "the first launch");
    need(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a graph");
    status launched = status::ok;
    for (index_t i = 0; i < launches && launched == status::ok; ++i) launched = f(i, stream);
    cudaGraph_t graph = nullptr;
    const cudaError_t captured = cudaStreamEndCapture(stream, &graph);
    need(launched);
    need(captured, "a graph");
    const cudaError_t made = cudaGraphInstantiateWithFlags(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    need(made, "a graph");
    seconds();
  }
  ~replay() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }
  replay(const replay&) = delete;
  replay& operator=(const replay&) = delete;

  /// Of one launch.
  double seconds() const {
    const gpu& on = device();
    constexpr long long cycles = 100'000;  // 50 to 100 µs
    need(nibble::launch(busy_kernel, 1, 1, 0, on.stream, cycles));
    need(cudaEventRecord(on.start, on.stream), "an event");
    need(cudaGraphLaunch(graph_, on.stream), "a graph");
    need(cudaEventRecord(on.stop, on.stream), "an event");
    need(cudaEventSynchronize(on.stop), "a run");
    float milliseconds = 0.0f;
    need(cudaEventElapsedTime(&milliseconds, on.start, on.stop), "an event");
    return 1e-3 * static_cast<double>(milliseconds) / static_cast<double>(launches_);
  }

 private:
  index_t launches_;
  cudaGraphExec_t graph_ = nullptr;
};

/// Cycles a second of the multiprocessors at work, over some 50 ms.
inline double clock_rate() {
  const gpu& on = device();
  constexpr long long cycles = 100'000'000;
  float milliseconds = 0.0f;
  need(nibble::launch(busy_kernel, 1, 1, 0, on.stream, cycles));  // wakes the clock
  need(cudaEventRecord(on.start, on.stream), "an event");
  need(nibble::launch(busy_kernel, 1, 1, 0, on.stream, cycles));
  need(cudaEventRecord(on.stop, on.stream), "an event");
  need(cudaEventSynchronize(on.stop), "a run");
  need(cudaEventElapsedTime(&milliseconds, on.start, on.stop), "an event");
  return 1e3 * static_cast<double>(cycles) / static_cast<double>(milliseconds);
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// How many sets of `bytes` each make one cold again before it is used again.
inline index_t cold_sets(index_t bytes) {
  return 2 + 2 * index_t{device().properties.l2CacheSize} / bytes;
}
/// As many launches of each set, 16 or more in all.
inline index_t launches_over(index_t sets) {
  return sets * nibble::ceil_div(index_t{16}, sets);
}

/// A copy that reads and writes `bytes` together, from and to `sets` pairs of buffers in turn.
class device_copy {
 public:
  device_copy(index_t bytes, index_t sets) : chunks_(nibble::ceil_div(bytes, index_t{2 * sizeof(copied_chunk)})) {
    for (index_t set = 0; set < sets; ++set) {
      from_.emplace_back(4 * chunks_);
      to_.emplace_back(4 * chunks_);
      fill(from_.back(), uniform_bits<uint32_t>{32}, static_cast<unsigned>(set));
    }
    const replay drivers(launches_over(sets),
                         [&](index_t i, cudaStream_t stream) { return copy_by_driver(i, stream); });
    const replay kernels(launches_over(sets),
                         [&](index_t i, cudaStream_t stream) { return copy_by_kernel(i, stream); });
    std::vector<double> theirs, ours;
    for (int round = 0; round < 5; ++round) {
      theirs.push_back(drivers.seconds());
      ours.push_back(kernels.seconds());
    }
    by_driver_ = median(theirs) <= median(ours);
  }
  status operator()(index_t i, cudaStream_t stream) const {
    return by_driver_ ? copy_by_driver(i, stream) : copy_by_kernel(i, stream);
  }
  index_t bytes() const { return 2 * chunks_ * index_t{sizeof(copied_chunk)}; }
  index_t sets() const { return static_cast<index_t>(from_.size()); }
  bool by_driver() const { return by_driver_; }

 private:
  size_t set(index_t i) const { return static_cast<size_t>(i) % from_.size(); }
  status copy_by_driver(index_t i, cudaStream_t stream) const {
    const cudaError_t copied =
        cudaMemcpyAsync(to_[set(i)].data(), from_[set(i)].data(), static_cast<size_t>(from_[set(i)].bytes()),
                        cudaMemcpyDeviceToDevice, stream);
    return copied == cudaSuccess ? status::ok : status::launch_failed;
  }
  status copy_by_kernel(index_t i, cudaStream_t stream) const {
    return nibble::launch(copy_kernel, nibble::ceil_div(chunks_, index_t{copy_threads * copies_per_thread}),
                          copy_threads, 0, stream, reinterpret_cast<const copied_chunk*>(from_[set(i)].data()),
                          reinterpret_cast<copied_chunk*>(to_[set(i)].data()), chunks_);
  }

  index_t chunks_;
  std::vector<buffer<uint32_t>> from_, to_;
  bool by_driver_ = true;
};

/// The machine's copy rate: 1 GiB read and written, which no L2 holds.
inline const device_copy& large_copy() {
  static const device_copy only(index_t{1} << 30, 1);
  return only;
}

/// Times `ours` and the copies by turns. Counters: GB/s; copy, its share of a copy of as many bytes under the same conditions
/// (copy_GB/s); and cold only floor, its share of the copy of 1 GiB (floor_GB/s), which is what these bytes take at least.
inline void beside_copy(benchmark::State& state, index_t bytes, bool cold, const replay& ours) {
  const device_copy same(bytes, cold ? cold_sets(bytes) : 1);
  const replay same_copy(launches_over(same.sets()), same), large(4, large_copy());
  std::vector<double> times, copies, floors;
  for (auto _ : state) {
    times.push_back(ours.seconds());
    copies.push_back(same_copy.seconds());
    floors.push_back(large.seconds());
    state.SetIterationTime(times.back());
  }
  const double rate = static_cast<double>(bytes) / median(times);
  const double copy_rate = static_cast<double>(same.bytes()) / median(copies);
  state.counters["us"] = 1e6 * median(times);
  state.counters["GB/s"] = rate / 1e9;
  state.counters["copy_GB/s"] = copy_rate / 1e9;
  state.counters["copy"] = rate / copy_rate;
  if (cold) {
    const double floor_rate = static_cast<double>(large_copy().bytes()) / median(floors);
    state.counters["floor_GB/s"] = floor_rate / 1e9;
    state.counters["floor"] = rate / floor_rate;
  }
  state.SetLabel(same.by_driver() ? "copy by driver" : "copy by kernel");
}

inline bool& failed() {
  static bool any = false;
  return any;
}

/// Registers f(state); what it throws fails its bench, and the program's exit status tells.
template <class F>
void add(const std::string& name, F f) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [f](benchmark::State& state) {
                                 try {
                                   f(state);
                                 } catch (const std::exception& error) {
                                   failed() = true;
                                   state.SkipWithError(error.what());
                                 }
                               })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond)
      ->Iterations(rounds);
}

/// Outputs and inputs of a linear, or tokens and channels.
struct extents {
  index_t n, k;
  std::string name() const { return std::to_string(n) + "x" + std::to_string(k); }
  index_t size() const { return n * k; }
};
/// Projections of 7- and 24-billion-parameter Mistrals.
inline const std::vector<extents>& shapes() {
  static const std::vector<extents> all{{4096, 4096}, {14336, 4096}, {32768, 5120}};
  return all;
}

/// Registers NAME/SHAPE/cold and, where one set fits the L2, NAME/SHAPE/warm. make(shape, seed) is a set of buffers, job.bytes() what a
/// launch has to move and job(stream) the launch. @param bytes those of a job of that shape.
template <class Make, class Bytes>
void add_streaming(const std::string& name, Make make, Bytes bytes) {
  for (const extents& shape : shapes())
    for (const bool cold : {true, false}) {
      const index_t moved = bytes(shape);
      if (!cold && moved > device().properties.l2CacheSize) continue;
      add(name + "/" + shape.name() + (cold ? "/cold" : "/warm"), [=](benchmark::State& state) {
        const index_t sets = cold ? cold_sets(moved) : 1;
        std::vector<decltype(make(shape, 0u))> jobs;
        for (index_t set = 0; set < sets; ++set) jobs.push_back(make(shape, static_cast<unsigned>(set)));
        const replay ours(launches_over(sets),
                          [&](index_t i, cudaStream_t stream) { return jobs[static_cast<size_t>(i % sets)](stream); });
        beside_copy(state, moved, cold, ours);
      });
    }
}

/// Where and on what this was measured, for the JSON.
inline void add_context() {
  const cudaDeviceProp& p = device().properties;
  const auto attribute = [](cudaDeviceAttr which) {
    return std::to_string(nibble::detail::device_attribute(which, 0));
  };
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  int runtime = 0, driver = 0;
  need(cudaRuntimeGetVersion(&runtime), "the runtime's version");
  need(cudaDriverGetVersion(&driver), "the driver's version");
  std::string release;
  std::getline(std::ifstream("/sys/module/nvidia/version"), release);
  benchmark::AddCustomContext("gpu", p.name);
  benchmark::AddCustomContext("compute_capability", std::to_string(p.major) + "." + std::to_string(p.minor));
  benchmark::AddCustomContext("multiprocessors", std::to_string(p.multiProcessorCount));
  benchmark::AddCustomContext("l2_bytes", std::to_string(p.l2CacheSize));
  benchmark::AddCustomContext("memory_bytes", std::to_string(p.totalGlobalMem));
  benchmark::AddCustomContext("clock_mhz", std::to_string(static_cast<int>(clock_rate() / 1e6)));
  benchmark::AddCustomContext("most_clock_khz", attribute(cudaDevAttrClockRate));
  benchmark::AddCustomContext("most_memory_clock_khz", attribute(cudaDevAttrMemoryClockRate));
  benchmark::AddCustomContext("driver", release.empty() ? "of CUDA " + version(driver) : release);
  benchmark::AddCustomContext("runtime", version(runtime));
  benchmark::AddCustomContext("commit", std::string(build_commit) + (build_changed ? ", changed" : ""));
}

/// The main of a bench. @returns 77 where there is no GPU to measure on, 1 when something failed.
inline int run(int count, char** arguments, void (*add_all)()) {
  const std::string name = std::string(arguments[0]).substr(std::string(arguments[0]).rfind('/') + 1);
  int devices = 0;
  const cudaError_t asked = cudaGetDeviceCount(&devices);
  if (asked != cudaSuccess || devices == 0) {
    std::cerr << name << ": there is no GPU to measure on (" << cudaGetErrorString(asked) << ")\n";
    return 77;
  }
  if (nibble::sm_version() < 80) {
    std::cerr << name << ": the kernels need a GPU of compute capability 8.0 or later\n";
    return 77;
  }
  try {
    add_context();
    add_all();
  } catch (const std::exception& error) {
    std::cerr << name << ": " << error.what() << "\n";
    return 1;
  }
  benchmark::Initialize(&count, arguments);
  if (benchmark::ReportUnrecognizedArguments(count, arguments)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return failed() ? 1 : 0;
}

}  // namespace bench

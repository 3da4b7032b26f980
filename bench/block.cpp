// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's blocks made of 256 × 4096 weights on one thread, and made without a search or read back of 4096 × 4096, which no cache keeps,
/// beside two copies: bench_block. `copy` is the rate over that of memcpy, `streamed_copy` over that of a copy past the caches. Where NIBBLE_GGML names a shared
/// library of ggml (with ggml_quantize_chunk: libggml-base.so), its encoder takes turns with ours on the same weights; `ggml` is how
/// many times as long it takes, fastest to fastest in processor time, and `same` whether the bytes are the same.
#include <dlfcn.h>
#include <time.h>

#include <cctype>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <random>
#include <string>

#include "nibble/host/block.hpp"
#include "support/copy.hpp"

using namespace nibble;

namespace {

constexpr index_t few_rows = 256, many_rows = 4096, k = 4096;

using chunk_function = std::size_t (*)(int, const float*, void*, int64_t, int64_t, int64_t, const float*);
using row_function = void (*)(const void*, float*, int64_t);

/// What the library calls `name`, or null where there is none.
void* of_ggml(const std::string& name) {
  static void* const library = [] {
    const char* const path = std::getenv("NIBBLE_GGML");
    void* const opened = path != nullptr ? dlopen(path, RTLD_NOW) : nullptr;
    if (path != nullptr && opened == nullptr) std::cerr << "NIBBLE_GGML: " << dlerror() << '\n';
    return opened;
  }();
  return library != nullptr ? dlsym(library, name.c_str()) : nullptr;
}

std::vector<float> normal(index_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> distribution(0.0f, 0.02f);
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& each : x) each = distribution(engine);
  return x;
}

struct job {
  block_type type;
  index_t n;
  std::vector<float> weights = normal(n * k, 1), back = weights, importance = normal(k, 2);
  index_t width = k / block_weights(type) * block_bytes(type);
  std::vector<uint8_t> blocks = std::vector<uint8_t>(static_cast<std::size_t>(n * width)), theirs = blocks;

  job(block_type t, index_t rows) : type(t), n(rows) {
    for (float& q : importance) q *= q;
  }
  matrix<const float> w() const { return {weights.data(), n, k}; }
  matrix<uint8_t> made() { return {blocks.data(), n, width}; }
  index_t bytes() const { return n * (k * index_t(sizeof(float)) + width); }
};

/// Processor time of one call on this thread, which other programs of the machine lengthen less.
template <class F>
double processor_seconds(F&& f) {
  const auto now = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double start = now();
  f();
  return now() - start;
}

/// Times ours by turns with a copy, then, where they are there, with theirs. @param theirs a call, or nothing.
template <class Ours>
void by_turns(benchmark::State& state, const job& j, Ours ours, const std::function<void()>& theirs) {
  double best = 1e9, their_best = 1e9, streamed = 1e9;
  const auto bytes = static_cast<double>(j.bytes());
  bench::beside_copy(state, j.bytes(), [&] { best = std::min(best, processor_seconds(ours)); });
  for (int turn = 0; turn < 5 && theirs; ++turn) {
    their_best = std::min(their_best, processor_seconds(theirs));
    best = std::min(best, processor_seconds(ours));
  }
  for (int turn = 0; turn < 5; ++turn) {
    streamed = std::min(streamed, processor_seconds(bench::streamed_copy));
    best = std::min(best, processor_seconds(ours));
  }
  state.counters["streamed_copy"] = bytes / best / (2.0 * static_cast<double>(bench::copied_bytes) / streamed);
  state.counters["Mweights/s"] = static_cast<double>(j.n * k) / best / 1e6;
  if (theirs) state.counters["ggml"] = their_best / best;
}

bool without_search(block_type type, bool important) {
  bool along = false;
  with_block(type, [&](auto tag) { along = host::detail::goes_along<typename decltype(tag)::type>(important); });
  return along;
}

void encode(benchmark::State& state, block_type type, bool important) {
  const bool searches = !without_search(type, important);
  job j(type, searches ? few_rows : many_rows);
  const float* const importance = important ? j.importance.data() : nullptr;
  const auto chunk = reinterpret_cast<chunk_function>(of_ggml("ggml_quantize_chunk"));
  std::function<void()> theirs;
  if (chunk != nullptr)
    theirs = [&] { chunk(static_cast<int>(type), j.weights.data(), j.theirs.data(), 0, j.n, k, importance); };
  by_turns(
      state, j, [&] { host::quantize_blocks(j.w(), j.made(), type, importance); }, theirs);
  if (chunk != nullptr) state.counters["same"] = j.blocks == j.theirs ? 1 : 0;
}

void decode(benchmark::State& state, block_type type) {
  job j(type, many_rows);
  host::quantize_blocks(j.w(), j.made(), type);
  std::string name = block_name(type);
  for (char& c : name)
    if (c != 'K') c = static_cast<char>(std::tolower(c));
  const auto row = reinterpret_cast<row_function>(of_ggml("dequantize_row_" + name));
  std::vector<float> their_back = j.back;
  std::function<void()> theirs;
  if (row != nullptr) theirs = [&] { row(j.blocks.data(), their_back.data(), j.n * k); };
  by_turns(
      state, j,
      [&] {
        host::dequantize_blocks(matrix<const uint8_t>(j.blocks.data(), j.n, j.width),
                                matrix<float>(j.back.data(), j.n, k), type);
      },
      theirs);
  if (row != nullptr) state.counters["same"] = j.back == their_back ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  for (const block_type type : block_types) {
    const std::string name = block_name(type);
    const auto add = [](const std::string& title, auto f) {
      benchmark::RegisterBenchmark(title.c_str(), f)
          ->Arg(1)
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond)
          ->MinTime(0.2);
    };
    add("quantize/" + name, [type](benchmark::State& state) { encode(state, type, false); });
    add("quantize/" + name + "/importance", [type](benchmark::State& state) { encode(state, type, true); });
    add("dequantize/" + name, [type](benchmark::State& state) { decode(state, type); });
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}

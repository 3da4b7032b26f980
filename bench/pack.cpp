// SPDX-License-Identifier: Apache-2.0
/// @file
/// Packing and unpacking a 4096 × 14336 matrix beside a copy of the same number of bytes. Bytes per second count what is
/// read and what is written, as they do for the copy; `copy` is the share of the copy's rate measured in the same run,
/// fastest round against fastest round, since other work on the machine only ever slows a round down.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "nibble/host/pack.hpp"

using namespace nibble;

namespace {

constexpr index_t n = 4096, k = 14336;

/// Copies `bytes` on all threads, in the pieces the packers work in.
void copy(unsigned char* to, const unsigned char* from, index_t bytes) {
  constexpr index_t piece = index_t(1) << 20;
  host::parallel_for(ceil_div(bytes, piece), [&](index_t tile) {
    const index_t first = tile * piece;
    std::memcpy(to + first, from + first, static_cast<size_t>(std::min(piece, bytes - first)));
  });
}

struct buffers {
  std::vector<uint8_t> codes, back;
  std::vector<uint32_t> words;
  explicit buffers(int bits) : codes(static_cast<size_t>(n * k)), back(codes.size()), words(codes.size() / 4 + 4096) {
    std::mt19937_64 engine(7);
    for (size_t at = 0; at < codes.size(); at += 8) {
      const uint64_t random = engine() & (0x0101010101010101u * ((1u << bits) - 1));
      std::memcpy(&codes[at], &random, 8);
    }
  }
};

/// Seconds of `f`, the fastest of three.
template <class F>
double seconds(F&& f) {
  double best = 1e9;
  for (int run = 0; run < 3; ++run) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// Runs `f` and the copy by turns, so that both see the same machine.
template <class F>
void beside_copy(benchmark::State& state, buffers& b, index_t bytes, F&& f) {
  host::set_threads(static_cast<int>(state.range(0)));
  auto copied = [&] { copy(b.back.data(), b.codes.data(), n * k); };
  f();
  copied();
  double ours = 1e9, theirs = 1e9;
  for (auto _ : state) {
    const double time = seconds(f);
    ours = std::min(ours, time);
    theirs = std::min(theirs, seconds(copied));
    state.SetIterationTime(time);
  }
  const double rate = static_cast<double>(bytes) / ours, copy_rate = static_cast<double>(2 * n * k) / theirs;
  state.SetBytesProcessed(bytes * static_cast<index_t>(state.iterations()));
  state.counters["copy_GB/s"] = copy_rate / 1e9;
  state.counters["copy"] = rate / copy_rate;
}

template <class Layout>
void add(const std::string& name, Layout l) {
  for (const bool packs : {true, false})
    benchmark::RegisterBenchmark(
        (std::string(packs ? "pack/" : "unpack/") + name).c_str(),
        [l, packs](benchmark::State& state) {
          buffers b(l.bits);
          const layout::extents shape = l.packed(n, k);
          using word = typename Layout::word;
          const matrix<word> words(reinterpret_cast<word*>(b.words.data()), shape.rows, shape.cols);
          const matrix<const uint8_t> codes(b.codes.data(), n, k);
          host::pack(l, codes, words);
          const index_t bytes = n * k + shape.rows * shape.cols * static_cast<index_t>(sizeof(word));
          if (packs) {
            beside_copy(state, b, bytes, [&] { host::pack(l, codes, words); });
          } else {
            beside_copy(state, b, bytes,
                        [&] { host::unpack(l, matrix<const word>(words), matrix<uint8_t>(b.back.data(), n, k)); });
          }
        })
        ->Arg(2)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond)
        ->MinTime(0.5);
}

}  // namespace

int main(int argc, char** argv) {
  for (const int bits : {2, 3, 4, 8}) {
    const std::string width = std::to_string(bits) + " bits";
    add("compressed_tensors/" + width, layout::compressed_tensors{bits});
    add("compressed_tensors_zeros/" + width, layout::compressed_tensors{bits}.zeros());
  }
  add("awq_gemm", layout::awq_gemm{});
  add("awq_gemv", layout::awq_gemv{});
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}

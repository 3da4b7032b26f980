// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a run will take, before it takes it: time, memory, disk. --dry-run shows it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pass/job.hpp"

namespace nibble::mistral {

/// Linears of one shape that are treated alike.
struct plan_row {
  std::string name;    ///< "self_attn.q_proj"
  std::string layers;  ///< "0-31", "0, 2-5"
  index_t outputs = 0, inputs = 0, count = 0;
  std::string how;          ///< "4 bits, asymmetric, groups of 128", or "stays BF16"
  std::uint64_t bytes = 0;  ///< of all of them, as they will be written
};

struct plan {
  std::vector<plan_row> rows;
  std::uint64_t original_bytes = 0, output_bytes = 0;  ///< of the weights
  std::uint64_t disk_bytes = 0;                        ///< needed at most, beside what an interrupted run left
  std::uint64_t free_bytes = 0;                        ///< where the output goes
  std::uint64_t memory_bytes = 0;                      ///< resident, at most
  std::uint64_t machine_bytes = 0;                     ///< memory that programs can have now
  std::uint64_t gpu_bytes = 0;                         ///< of the GPU's memory; 0 without one
  double quantization_seconds = 0, evaluation_seconds = 0;
};

/// Plans a run. Takes about a tenth of a second, to measure how fast this machine multiplies matrices.
plan plan_run(const job& j);

/// @throws error when the disk has too little room.
void check_room(const plan& p, const job& j);

/// The lines that --dry-run prints.
std::string to_text(const plan& p, const job& j);

}  // namespace nibble::mistral

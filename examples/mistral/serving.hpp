// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whether an engine can load a quantized checkpoint, and over how many ranks it splits.
/// Source: vLLM 0.32, what it checks when it loads: model_executor/models/llama.py (heads), layers/quantization/
/// compressed_tensors, auto_awq and auto_gptq (groups and packed words a rank), kernels/linear/mixed_precision, distributed/utils.py.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "config.hpp"
#include "forward.hpp"
#include "quantization.hpp"

namespace nibble::mistral {

/// How a linear is packed, by its name; empty where it is left as it was.
using packing_lookup = std::function<std::optional<packing>(const std::string&)>;

/// Why vLLM refuses the checkpoint over `ranks` tensor-parallel ranks, in one sentence without its full stop; empty when
/// it does not.
std::string refused_over_ranks(const config& c, const packing_lookup& of, index_t ranks);

/// "serving" of --json: "vllm" with "loads" and, where it does not, "why", or where it loads on some machines only,
/// "needs"; "tensor_parallel" for 2, 4 and 8 ranks.
nlohmann::ordered_json serving_json(const config& c, const packing_lookup& of);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a pass would write with --json, made up: for pages and cards, however many layers.
#pragma once

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

namespace nibble::test {

using run_json = nlohmann::ordered_json;

inline run_json made_up_linear(int layer, int which) {
  run_json before = run_json::array(), after = run_json::array();
  for (int i = 0; i < 64; ++i) {
    before.push_back(1000 - 30 * std::abs(i - 32));
    after.push_back(i % 4 == 0 ? 4000 - 120 * std::abs(i - 32) : 0);
  }
  return {{"round_to_nearest_loss", 0.01 * (layer + 1) * (which + 1)},
          {"loss", 0.007 * (layer + 1) * (which + 1)},
          {"range_kept",
           {{"mean", 0.93}, {"quantiles", {{"5%", 0.8}, {"25%", 0.9}, {"50%", 0.94}, {"75%", 0.97}, {"95%", 1.0}}}}},
          {"weights",
           {{"root_mean_square", 0.02},
            {"weights_counted", 65536},
            {"first_bin", -4.0},
            {"bin_width", 0.125},
            {"before", before},
            {"after", after}}}};
}

inline run_json made_up_layer(int layer) {
  run_json out;
  for (const char* input : {"attention", "mlp", "down"})
    out["scales"][input] = {
        {"ratio", layer % 10 / 9.0}, {"duo", layer % 2 == 0}, {"unscaled_loss", 2.0}, {"loss", 1.5}};
  int which = 0;
  for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
    out["linears"][name] = made_up_linear(layer, which++);
  for (const char* input : {"attention", "o", "mlp", "down"})
    out["activations"][input] = {{"median_magnitude", 0.5},
                                 {"magnitude_by_rank", {{1, 30.0 + layer}, {2, 4.0}, {16, 0.7}, {256, 0.01}}},
                                 {"salient",
                                  {{{"channel", 42 + layer},
                                    {"mean_magnitude", 30.0 + layer},
                                    {"share", 0.11},
                                    {"times_median", 60.0 + 2 * layer}}}}};
  return out;
}

inline run_json made_up_model(const char* name, double increase) {
  run_json parts = run_json::array();
  for (int i = 0; i < 16; ++i)
    parts.push_back({{"first", 32 * i},
                     {"last", 32 * i + 32},
                     {"tokens", 999},
                     {"kl_divergence", 0.03 - 0.001 * i},
                     {"kl_divergence_99", 0.3 - 0.01 * i},
                     {"top_token_agreement", 0.9 + 0.001 * i}});
  return {{"name", name},
          {"bytes", 3749960},
          {"bits_per_weight", 4.15625},
          {"seconds", 12.345},
          {"perplexity", 35.11512345 + increase},
          {"standard_error", 0.51},
          {"increase", increase},
          {"increase_standard_error", 0.0203},
          {"kl_divergence", 0.012345},
          {"kl_divergence_99", 0.12345},
          {"top_token_agreement", 0.9178},
          {"kl_by_position", parts}};
}

inline run_json made_up_run(int layers) {
  run_json all = run_json::array();
  for (int layer = 0; layer < layers; ++layer) all.push_back(made_up_layer(layer));
  return {
      {"nibble", "0.1.0"},
      {"made",
       {{"program", "awq_mistral"},
        {"commit", "0123456789abcdef"},
        {"commit_changed", false},
        {"compiler", "g++ 12"},
        {"finished", "2026-01-02T03:04:05Z"},
        {"machine",
         {{"processor", "a processor"},
          {"logical_processors", 2},
          {"threads", 2},
          {"memory_bytes", 25000000000},
          {"system", "Linux"}}}}},
      {"source",
       {{"name", "small"}, {"license", "apache-2.0"}, {"base_model", "org/small"}, {"language", {"en", "fr"}}}},
      {"packing", "W4A16_ASYM, groups of 128"},
      {"options",
       {{"model", "/somewhere/small"},
        {"output", "/elsewhere/small-W4"},
        {"method", "awq"},
        {"format", "compressed-tensors"},
        {"ignore", {"lm_head"}},
        {"scheme", "W4A16_ASYM"},
        {"group_size", 128},
        {"calibration", "/texts/calibration.txt"},
        {"shrinkage", 0.5}}},
      {"calibration",
       {{"file", "/texts/calibration.txt"}, {"sha256", std::string(64, 'a')}, {"sequences", 256}, {"tokens", 131072}}},
      {"seconds",
       {{"read", 1.5}, {"forward", 20.0}, {"search", 30.0}, {"write", 0.5}, {"quantization", 52.0}, {"evaluate", 9.0}}},
      {"peak_resident_bytes", 123456789},
      {"models",
       {{{"name", "original"}, {"bytes", 8393216}, {"perplexity", 35.11512345}, {"standard_error", 0.5}},
        made_up_model("round to nearest", 0.668901),
        made_up_model("AWQ", 0.180234)}},
      {"evaluation",
       {{"text", "/texts/heldout.txt"}, {"tokens", 105351}, {"windows", 206}, {"window", 512}, {"stride", 512}}},
      {"serving",
       {{"vllm", {{"loads", true}}},
        {"tensor_parallel",
         {{{"ranks", 2}, {"works", true}},
          {{"ranks", 4}, {"works", false}, {"why", "of a reason"}},
          {{"ranks", 8}, {"works", false}, {"why", "of another"}}}}}},
      {"layers", all}};
}

}  // namespace nibble::test

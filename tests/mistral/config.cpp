// SPDX-License-Identifier: Apache-2.0
#include "mistral/config.hpp"

#include <catch2/catch.hpp>

#include "support/files.hpp"

namespace config_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;

namespace {

/// Mistral-7B-Instruct-v0.3's file, as transformers 4 wrote it.
json mistral_7b() {
  return json::parse(R"({"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
    "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32768})");
}

config read(const json& file) {
  const test::temporary_directory model;
  test::write_bytes(model / "config.json", file.dump());
  return read_config(model.path());
}

config with(const std::string& key, const json& value) {
  json file = mistral_7b();
  file[key] = value;
  return read(file);
}

config without(const std::string& key) {
  json file = mistral_7b();
  file.erase(key);
  return read(file);
}

std::string refused_with(const std::string& key, const json& value) {
  const std::string what = test::refusal([&] { with(key, value); });
  CHECK_THAT(what, Contains("config.json"));
  return what;
}

}  // namespace

TEST_CASE("the config of Mistral-7B reads as it is") {
  const config c = read(mistral_7b());
  CHECK(c.hidden == 4096);
  CHECK(c.intermediate == 14336);
  CHECK(c.layers == 32);
  CHECK(c.heads == 32);
  CHECK(c.kv_heads == 8);
  CHECK(c.head_dim == 128);
  CHECK(c.vocabulary == 32768);
  CHECK(c.context == 32768);
  CHECK(c.sliding_window == 0);
  CHECK(c.rms_norm_eps == 1e-5f);
  CHECK(c.rope_theta == 1e6);
  CHECK_FALSE(c.tied_embeddings);
  CHECK(c.bos == 1);
  CHECK(c.eos == 2);
  CHECK(c.dtype == "bfloat16");
  CHECK(c.json == mistral_7b());
}

TEST_CASE("a head_dim of its own sets the widths of queries and keys apart from hidden") {
  json file = mistral_7b();  // as Mistral-Small-24B: 32 heads of 128 in a hidden of 5120
  file["hidden_size"] = 5120;
  file["head_dim"] = 128;
  const config c = read(file);
  CHECK(c.q_width() == 4096);
  CHECK(c.kv_width() == 1024);
  file["head_dim"] = nullptr;
  CHECK(read(file).head_dim == 160);
}

TEST_CASE("keys that may be absent take the defaults of transformers") {
  CHECK(without("num_key_value_heads").kv_heads == 8);
  CHECK(with("num_key_value_heads", nullptr).kv_heads == 32);
  CHECK(without("rms_norm_eps").rms_norm_eps == 1e-6f);
  CHECK(without("rope_theta").rope_theta == 1e4);
  CHECK(without("max_position_embeddings").context == 131072);
  CHECK_FALSE(without("tie_word_embeddings").tied_embeddings);
  CHECK(without("architectures").hidden == 4096);  // model_type says it
  CHECK(without("sliding_window").sliding_window == 4096);
  CHECK(with("sliding_window", 1024).sliding_window == 1024);
}

TEST_CASE("a Llama has a key for each head and no sliding window unless told otherwise") {
  json file = mistral_7b();
  file["architectures"] = {"LlamaForCausalLM"};
  file["model_type"] = "llama";
  file["sliding_window"] = 17;
  file.erase("num_key_value_heads");
  file["tie_word_embeddings"] = true;
  const config c = read(file);
  CHECK(c.kv_heads == 32);
  CHECK(c.sliding_window == 0);
  CHECK(c.tied_embeddings);
}

TEST_CASE("the rotary base is found where transformers 4 and 5 write it") {
  CHECK(with("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5e5}}).rope_theta == 5e5);
  CHECK(with("rope_parameters", nullptr).rope_theta == 1e6);
  CHECK(with("rope_scaling", {{"type", "default"}}).rope_theta == 1e6);
  for (const char* key : {"rope_scaling", "rope_parameters"})
    for (const char* type : {"llama3", "yarn", "linear", "dynamic"}) {
      const std::string what = refused_with(key, {{"rope_type", type}, {"factor", 8.0}});
      CHECK_THAT(what, Contains(key) && Contains(type));
    }
  CHECK_THAT(refused_with("rope_scaling", {{"type", "linear"}, {"factor", 2.0}}), Contains("linear"));
  CHECK_THAT(refused_with("rope_parameters", 4), Contains("rope_parameters"));
  CHECK_THAT(refused_with("partial_rotary_factor", 0.5), Contains("partial_rotary_factor"));
}

TEST_CASE("token ids may be lists or null") {
  CHECK(with("eos_token_id", {7, 2}).eos == 7);
  CHECK(with("eos_token_id", json::array()).eos == -1);
  CHECK(with("bos_token_id", nullptr).bos == -1);
  CHECK(without("bos_token_id").bos == 1);
  for (const json& bad : {json(-1), json(32768), json("1"), json(1.5), json::array({1, "2"})})
    CHECK_THAT(refused_with("bos_token_id", bad), Contains("bos_token_id"));
}

TEST_CASE("an extent that makes no model is refused by its key") {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "sliding_window"})
    for (const json& bad : {json(0), json(-4), json(4.5), json("8"), json(true), json::array({8}), json(2147483648),
                            json(9223372036854775807), json(18446744073709551615u), json(1e300)})
      CHECK_THAT(refused_with(key, bad), Contains("\"" + std::string(key) + "\""));
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}) {
    CHECK_THAT(refused_with(key, nullptr), Contains(key) && Contains("missing"));
    CHECK_THAT(test::refusal([&] { without(key); }), Contains(key) && Contains("missing"));
  }
}

TEST_CASE("heads that do not fit each other are refused") {
  CHECK_THAT(refused_with("num_key_value_heads", 5), Contains("num_key_value_heads"));
  CHECK_THAT(refused_with("num_attention_heads", 24), Contains("num_attention_heads") && Contains("head_dim"));
  CHECK_THAT(refused_with("head_dim", 63), Contains("head_dim") && Contains("even"));
  CHECK_THAT(refused_with("head_dim", 2147483646), Contains("head_dim"));
}

TEST_CASE("numbers of the norm and the rotary base must be positive and finite") {
  for (const char* key : {"rms_norm_eps", "rope_theta"})
    for (const json& bad : {json(0), json(-1e-5), json("1e-5"), json(1e300), json(false), json::array()})
      CHECK_THAT(refused_with(key, bad), Contains(key));
  CHECK_THAT(refused_with("rms_norm_eps", 1e-300), Contains("rms_norm_eps"));
}

TEST_CASE("other architectures are refused by name") {
  for (const char* name :
       {"Mistral3ForConditionalGeneration", "MixtralForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel"})
    CHECK_THAT(refused_with("architectures", {name}), Contains(name) && Contains("MistralForCausalLM"));
  for (const json& bad :
       {json::array(), json::array({"MistralForCausalLM", "LlamaForCausalLM"}), json("x"), json::array({1})})
    CHECK_THAT(refused_with("architectures", bad), Contains("architectures"));
  CHECK_THAT(refused_with("model_type", "llama"), Contains("model_type"));
  json file = mistral_7b();
  file.erase("architectures");
  file.erase("model_type");
  CHECK_THAT(test::refusal([&] { read(file); }), Contains("architectures"));
}

TEST_CASE("what the forward pass lacks is refused") {
  CHECK_THAT(refused_with("attention_bias", true), Contains("attention_bias"));
  CHECK_THAT(refused_with("mlp_bias", true), Contains("mlp_bias"));
  CHECK_THAT(refused_with("hidden_act", "gelu"), Contains("hidden_act"));
  CHECK_THAT(refused_with("torch_dtype", "float8_e4m3fn"), Contains("torch_dtype"));
  CHECK_THAT(refused_with("dtype", 16), Contains("dtype"));
  CHECK_THAT(refused_with("tie_word_embeddings", 1), Contains("tie_word_embeddings"));
  CHECK_FALSE(with("attention_bias", false).tied_embeddings);
  CHECK(with("dtype", "float16").dtype == "float16");
}

TEST_CASE("a config that is absent, empty, no JSON or no object is refused") {
  const test::temporary_directory model;
  const auto refused = [&] { return test::refusal([&] { read_config(model.path()); }); };
  CHECK_THAT(refused(), Contains("config.json"));
  for (const char* text : {"", "{", "[1, 2]", "3", "null", "{\"hidden_size\": \xff}"}) {
    test::write_bytes(model / "config.json", text);
    CHECK_THAT(refused(), Contains("config.json"));
  }
  test::write_bytes(model / "config.json", std::string(100000, '['));
  CHECK_THAT(refused(), Contains("config.json"));
}

}  // namespace config_tests

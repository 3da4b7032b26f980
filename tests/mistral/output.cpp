// SPDX-License-Identifier: Apache-2.0
#include "mistral/output.hpp"

#include <catch2/catch.hpp>
#include <sstream>

#include "mistral/file.hpp"
#include "mistral/quantization.hpp"
#include "support/files.hpp"
#include "support/limits.hpp"

namespace output_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;

namespace {

/// A directory with a model in it and room beside it.
struct workplace {
  workplace() {
    test::fs::create_directory(model);
    test::write_bytes(model / "config.json", "{}");
  }
  std::string refused(const test::fs::path& name, bool overwrite = false) const {
    return test::refusal([&] { output_directory out(name, model, overwrite); });
  }

  test::temporary_directory root;
  test::fs::path model = root / "model", out = root / "out";
};

}  // namespace

TEST_CASE("an output takes its name only when committed, and vanishes otherwise") {
  const workplace w;
  {
    output_directory out(w.out, w.model, false);
    test::write_bytes(out.path() / "config.json", "1");
    CHECK(test::listing(w.root.path()) == "model out.partial");
  }
  CHECK(test::listing(w.root.path()) == "model");
  {
    output_directory out(w.out.string() + "/", w.model, false);
    test::write_bytes(out.path() / "config.json", "2");
    out.commit();
    CHECK(test::listing(w.root.path()) == "model out");
  }
  CHECK(test::listing(w.root.path()) == "model out");
  CHECK(test::read_bytes(w.out / "config.json") == "2");
}

TEST_CASE("an output that exists is left alone unless it is to be replaced, and replaced only whole") {
  const workplace w;
  test::fs::create_directory(w.out);
  test::write_bytes(w.out / "config.json", "old");
  test::write_bytes(w.out / "more", "old");
  CHECK_THAT(w.refused(w.out), Contains("out") && Contains("--overwrite"));
  {
    output_directory out(w.out, w.model, true);
    test::write_bytes(out.path() / "config.json", "new");
    CHECK(test::read_bytes(w.out / "config.json") == "old");
  }
  CHECK(test::listing(w.root.path()) == "model out");
  CHECK(test::read_bytes(w.out / "config.json") == "old");
  output_directory out(w.out, w.model, true);
  test::write_bytes(out.path() / "config.json", "new");
  out.commit();
  CHECK(test::listing(w.root.path()) == "model out");
  CHECK(test::listing(w.out) == "config.json");
  CHECK(test::read_bytes(w.out / "config.json") == "new");
}

TEST_CASE("what is no checkpoint is never replaced") {
  const workplace w;
  test::write_bytes(w.out, "a file");
  CHECK_THAT(w.refused(w.out, true), Contains("no checkpoint"));
  CHECK_THAT(w.refused(w.out), Contains("exists"));
  test::fs::remove(w.out);
  test::fs::create_directory(w.out);
  test::write_bytes(w.out / "thesis.tex", "years of work");
  CHECK_THAT(w.refused(w.out, true), Contains("no checkpoint"));
  test::fs::remove(w.out / "thesis.tex");
  output_directory out(w.out, w.model, true);  // an empty directory holds nothing to lose
  out.commit();
  CHECK(test::listing(w.root.path()) == "model out");
}

TEST_CASE("an output in, on or around the model is refused") {
  const workplace w;
  for (const auto& name : {w.model, w.model / "out", w.root.path(), w.root / "model/../model/out", w.root / "model/"})
    CHECK_THAT(w.refused(name, true), Contains("outside the model's directory"));
  test::fs::create_directory_symlink(w.model, w.root / "link");
  CHECK_THAT(w.refused(w.root / "link", true), Contains("outside the model's directory"));
  CHECK_THAT(w.refused(w.root / "link/out"), Contains("outside the model's directory"));
  output_directory similar(w.root / "model-w4", w.model,
                           false);  // a name that begins like the model's is no part of it
  similar.commit();
}

TEST_CASE("an output whose parent is not there or cannot be written is refused") {
  const workplace w;
  CHECK_THAT(w.refused(w.root / "absent/out"), Contains("absent"));
  CHECK_THAT(w.refused(w.model / "config.json/out"), Contains("config.json"));
  CHECK_THAT(w.refused("/proc/out"), Contains("/proc/out.partial"));
  CHECK_THAT(w.refused("/"), Contains("must lie outside") || Contains("root of the file system"));
}

TEST_CASE("two processes do not write to one output, and what a killed one left is cleared") {
  const workplace w;
  test::fs::create_directory(w.root / "out.partial");
  test::write_bytes(w.root / "out.partial/model.safetensors", "left behind");
  output_directory out(w.out, w.model, false);
  CHECK(test::listing(out.path()).empty());
  CHECK_THAT(w.refused(w.out), Contains("another process"));
  test::write_bytes(out.path() / "config.json", "1");
  out.commit();
  CHECK(test::listing(w.out) == "config.json");
}

TEST_CASE("a partial directory that is a link is not followed") {
  const workplace w;
  test::fs::create_directory_symlink(w.model, w.root / "out.partial");
  CHECK_THAT(w.refused(w.out), Contains("out.partial"));
  CHECK(test::listing(w.model) == "config.json");
}

TEST_CASE("the tokenizer, template and licence go along, other weights and other formats' files do not") {
  const workplace w;
  const std::string wanted =
      "LICENSE LICENSE.txt added_tokens.json chat_template.jinja chat_template.json "
      "generation_config.json special_tokens_map.json tekken.json tokenizer.json tokenizer.model "
      "tokenizer_config.json";
  std::istringstream names(wanted);
  std::uint64_t bytes = 0;
  for (std::string name; names >> name; bytes += name.size()) test::write_bytes(w.model / name, name);
  for (const char* name : {"params.json", "consolidated.safetensors", "consolidated.00.pth", "pytorch_model.bin",
                           "model.safetensors", "README.md", "model.safetensors.index.json", "tokenizer.model.v3"})
    test::write_bytes(w.model / name, name);
  test::fs::create_directory(w.model / "LICENSES");
  test::fs::create_directory(w.out);
  CHECK(copy_sidecars(w.model, w.out) == bytes);
  CHECK(test::listing(w.out) == wanted);
  CHECK(test::read_bytes(w.out / "tekken.json") == "tekken.json");
}

TEST_CASE("the config written is the model's, with its quantization and dtype") {
  const test::temporary_directory out;
  config model;
  model.json = {{"architectures", {"MistralForCausalLM"}}, {"torch_dtype", "bfloat16"}, {"unknown", {1, 2}}};
  const packing how{packed_format::compressed_tensors, 4, false, 128};
  write_config(out.path(), model, "float16", quantization_json(how, {"lm_head"}));
  const json read = json::parse(test::read_bytes(out / "config.json"));
  CHECK(read["torch_dtype"] == "float16");
  CHECK_FALSE(read.contains("dtype"));
  CHECK(read["unknown"] == json({1, 2}));
  CHECK(read["quantization_config"] == json::parse(R"({"config_groups": {"group_0": {"format": "pack-quantized",
    "input_activations": null, "output_activations": null, "targets": ["Linear"], "weights": {"actorder": null,
    "block_structure": null, "dynamic": false, "group_size": 128, "num_bits": 4, "observer": "memoryless_minmax",
    "observer_kwargs": {}, "strategy": "group", "symmetric": false, "type": "int"}}}, "format": "pack-quantized",
    "global_compression_ratio": null, "ignore": ["lm_head"], "kv_cache_scheme": null,
    "quant_method": "compressed-tensors", "quantization_status": "compressed"})"));
  model.json["dtype"] = "float32";
  model.json.erase("torch_dtype");
  write_config(out.path(), model, "bfloat16", quantization_json({packed_format::compressed_tensors, 3, true, -1}, {}));
  const json again = json::parse(test::read_bytes(out / "config.json"));
  CHECK(again["dtype"] == "bfloat16");
  CHECK_FALSE(again.contains("torch_dtype"));
  const json& weights = again["quantization_config"]["config_groups"]["group_0"]["weights"];
  CHECK(weights["strategy"] == "channel");
  CHECK(weights["group_size"].is_null());
  write_config(out.path(), model, "float16", quantization_json({packed_format::awq_gemm, 4, false, 128}, {"lm_head"}));
  CHECK(json::parse(test::read_bytes(out / "config.json"))["quantization_config"] ==
        json::parse(R"({"quant_method": "awq", "zero_point": true, "group_size": 128, "bits": 4, "version": "gemm",
                        "modules_to_not_convert": null})"));
}

TEST_CASE("a full disk stops every writer with a sentence, and no half file stays") {
  const workplace w;
  test::write_bytes(w.model / "tokenizer.json", std::string(1 << 20, 'x'));
  std::string copied, written;
  {
    output_directory out(w.out, w.model, false);
    {
      const test::file_size_limit limit(4096);
      copied = test::refusal([&] { copy_sidecars(w.model, out.path()); });
      written = test::refusal([&] { write_file(out.path() / "README.md", std::string(1 << 20, 'x')); });
    }
    CHECK(test::listing(out.path()).empty());
  }
  CHECK_THAT(copied, Contains("tokenizer.json") && Contains("File too large"));
  CHECK_THAT(written, Contains("README.md") && Contains("File too large"));
  CHECK(test::listing(w.root.path()) == "model");
}

}  // namespace output_tests

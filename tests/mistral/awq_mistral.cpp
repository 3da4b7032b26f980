// SPDX-License-Identifier: Apache-2.0
/// @file
/// awq_mistral as a user meets it when something is wrong: one sentence, an exit status, and nothing left behind.
#include <sys/prctl.h>
#include <sys/resource.h>

#include <linux/capability.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <limits>
#include <sstream>

#include "support/model.hpp"
#include "support/program.hpp"

namespace awq_mistral_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;
using test::words;
using test::operator+;

namespace {

/// Options and their values, the later of two that are alike.
words merged(const words& usual, const words& more) {
  words all;
  for (size_t i = 0; i < usual.size(); i += 2)
    if (std::find(more.begin(), more.end(), usual[i]) == more.end()) all = all + words{usual[i], usual[i + 1]};
  return all + more;
}

/// A directory with a very small model and room beside it.
struct workplace {
  test::temporary_directory root;
  test::fs::path model = root / "model", out = root / "out";
  words usual = {"--model",
                 model.string(),
                 "--output",
                 out.string(),
                 "--num-calibration-samples",
                 "2",
                 "--n-grid",
                 "4",
                 "--max-seq-length",
                 "64",
                 "--group-size",
                 "32"};

  explicit workplace(const test::model_spec& spec = {}, const test::tensor_change& change = nullptr) {
    test::write_model(spec, model, change);
  }
  std::string name_of(const std::string& file) const { return (root / file).string(); }

  /// The pass refuses: this status, one sentence after the notes and the progress, nothing new beside the model.
  std::string refused(int status, const words& more, const std::function<void()>& prepare = nullptr) const {
    const std::string before = test::listing(root.path());
    const auto result = test::run_program("awq_mistral", merged(usual, more), root.path(), prepare);
    CHECK(result.status == status);
    CHECK(result.out.empty());
    CHECK(test::listing(root.path()) == before);
    std::istringstream lines(result.err);
    std::string sentence;
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind("awq_mistral: note: ", 0) == 0) continue;
      if (line.rfind("quantizing: layer ", 0) == 0 || line.rfind("evaluating: layer ", 0) == 0) continue;
      CHECK(sentence.empty());
      sentence = line;
    }
    CHECK(sentence.rfind("awq_mistral: ", 0) == 0);
    return sentence;
  }
};

/// A change that sets one element of a tensor.
test::tensor_change planted(const std::string& name, float value, size_t at = 7) {
  return [=](test::made_tensor& t) {
    if (t.name == name) t.values[at] = value;
  };
}

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST_CASE("a wrong option ends with status 2 and a sentence that names it and what would be right") {
  const workplace w;
  struct wrong {
    words arguments;
    std::vector<std::string> named;
  };
  const std::vector<wrong> all = {
      {{"--nonsense"}, {"--nonsense"}},
      {{"stray"}, {"stray"}},
      {{"--scheme", "W5A16"}, {"--scheme", "W5A16", "W4A16_ASYM", "W2A16_ASYM"}},
      {{"--group-size", "16"}, {"--group-size", "16", "128", "-1"}},
      {{"--group-size", "many"}, {"--group-size", "many"}},
      {{"--format", "gguf"}, {"--format", "gguf", "awq-gemm"}},
      {{"--method", "gptq"}, {"--method", "gptq", "rtn"}},
      {{"--loss", "l2"}, {"--loss", "l2", "gram"}},
      {{"--duo-scaling", "yes"}, {"--duo-scaling", "yes", "both"}},
      {{"--clip", "max"}, {"--clip", "max", "mse"}},
      {{"--propagate", "none"}, {"--propagate", "none", "quantized"}},
      {{"--backend", "tpu"}, {"--backend", "tpu", "cpu"}},
      {{"--backend", "cuda"}, {"--backend cuda", "cpu"}},
      {{"--n-grid", "0"}, {"--n-grid", "0"}},
      {{"--n-grid", "3"}, {"--n-grid", "3", "4"}},
      {{"--n-grid", "1001"}, {"--n-grid", "1001", "1000"}},
      {{"--sweeps", "-1"}, {"--sweeps", "-1"}},
      {{"--shrinkage", "1.5"}, {"--shrinkage", "1.5"}},
      {{"--shrinkage", "nan"}, {"--shrinkage", "nan"}},
      {{"--num-calibration-samples", "0"}, {"--num-calibration-samples", "0"}},
      {{"--num-calibration-samples", "2.5"}, {"--num-calibration-samples", "2.5"}},
      {{"--max-seq-length", "0"}, {"--max-seq-length", "0"}},
      {{"--seed", "-1"}, {"--seed", "-1"}},
      {{"--seed", "x"}, {"--seed", "x"}},
      {{"--threads", "0"}, {"--threads", "0"}},
      {{"--threads", "two"}, {"--threads", "two"}},
      {{"--max-shard-size", "0"}, {"--max-shard-size", "0", "5GB"}},
      {{"--max-shard-size", "5XB"}, {"--max-shard-size", "5XB"}},
      {{"--max-shard-size", "-5GB"}, {"--max-shard-size", "-5GB"}},
      {{"--max-regression", "0.1"}, {"--max-regression", "--evaluate"}},
      {{"--max-regression", "-1"}, {"--max-regression", "-1"}},
      {{"--max-regression", "nan"}, {"--max-regression", "nan"}},
      {{"--json"}, {"--json"}},
      {{"--ignore", "mlp.down_proj"}, {"--ignore", "lm_head"}},
      {{"--format", "awq-gemm", "--scheme", "W4A16"}, {"--format awq-gemm", "W4A16_ASYM"}},
      {{"--format", "awq-gemv", "--scheme", "W3A16_ASYM"}, {"--format awq-gemv", "W4A16_ASYM"}},
      {{"--format", "awq-gemm", "--ignore", "lm_head,re:.*down_proj"}, {"re:.*down_proj"}},
      {{"--group-size", "128"}, {"model.layers.0.self_attn.q_proj", "--group-size 128", "64"}},
  };
  for (const wrong& each : all) {
    CAPTURE(each.arguments);
    const std::string sentence = w.refused(2, each.arguments);
    for (const std::string& part : each.named) CHECK_THAT(sentence, Contains(part));
    CHECK_THAT(sentence, Contains("--help"));
  }
  const auto without_output = test::refused_by("awq_mistral", {"--model", w.model.string()}, 2);
  CHECK_THAT(without_output, Contains("--output"));
}

TEST_CASE("help lists every option with what it is unless given, and the exit statuses") {
  const auto help = test::run_program("awq_mistral", {"--help"});
  CHECK(help.status == 0);
  CHECK(help.err.empty());
  for (const char* option : {"--model DIR",
                             "--output DIR",
                             "--calibration FILE",
                             "--num-calibration-samples N",
                             "[256]",
                             "--max-seq-length N",
                             "[512]",
                             "--scheme",
                             "[W4A16_ASYM]",
                             "--group-size N",
                             "[128]",
                             "--ignore",
                             "lm_head",
                             "--loss block|gram",
                             "--duo-scaling true|false|both",
                             "--clip mse|gram|none",
                             "--propagate original|quantized",
                             "--format compressed-tensors|awq-gemm|awq-gemv|awq-gemv-fast|marlin|gptq|gptq-v2",
                             "[compressed-tensors]",
                             "--method awq|rtn",
                             "--backend",
                             "--threads N",
                             "--seed N",
                             "[42]",
                             "--evaluate FILE",
                             "--json FILE",
                             "--baseline-results FILE.json",
                             "--allow-overlap",
                             "--max-regression",
                             "--max-shard-size SIZE",
                             "[5GB]",
                             "--overwrite",
                             "Exit status"})
    CHECK_THAT(help.out, Contains(option));
}

TEST_CASE("an output that exists is refused, and replaced whole with --overwrite") {
  const workplace w;
  test::fs::create_directory(w.out);
  test::write_bytes(w.out / "config.json", "{}");
  test::write_bytes(w.out / "stale", "old");
  CHECK_THAT(w.refused(1, {}), Contains(w.out.string()) && Contains("--overwrite"));
  CHECK_THAT(w.refused(1, {"--calibration", "/nowhere.txt"}), Contains("--overwrite"));  // before calibration is read
  CHECK(test::listing(w.out) == "config.json stale");
  const auto result = test::run_program("awq_mistral", w.usual + words{"--overwrite", "--method", "rtn"});
  CHECK(result.status == 0);
  CHECK_FALSE(test::fs::exists(w.out / "stale"));
  CHECK(test::fs::exists(w.out / "model.safetensors"));
  CHECK(test::listing(w.root.path()) == "model out");
}

TEST_CASE("an output in the model, around it, in no directory, or in one that is read only is refused by name") {
  const workplace w;
  const auto refused = [&](const std::string& output) { return w.refused(1, {"--output", output}); };
  CHECK_THAT(refused(w.model.string()), Contains(w.model.string()) && Contains("outside"));
  CHECK_THAT(refused((w.model / "out").string()), Contains((w.model / "out").string()) && Contains("outside"));
  CHECK_THAT(refused(w.root.path().string()), Contains("outside"));
  CHECK_THAT(refused(w.name_of("no/out")), Contains(w.name_of("no")));
  CHECK_THAT(refused(w.name_of("model/config.json/out")), Contains(w.name_of("model/config.json")));
  test::fs::create_directory(w.root / "locked");
  test::fs::permissions(w.root / "locked", test::fs::perms::owner_read | test::fs::perms::owner_exec);
  // Even root may not write there without this capability.
  const auto plainly = [] { ::prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0); };
  CHECK_THAT(w.refused(1, {"--output", w.name_of("locked/out")}, plainly),
             Contains(w.name_of("locked/out")) && Contains("Permission denied"));
  CHECK(test::listing(w.root / "locked").empty());
  CHECK_THAT(w.refused(1, {"--json", w.name_of("locked/figures.json")}, plainly),
             Contains(w.name_of("locked/figures.json")));
}

TEST_CASE("a model that is missing, incomplete or quantized already is refused by the file at fault") {
  const workplace w;
  CHECK_THAT(w.refused(1, {"--model", w.name_of("nowhere")}), Contains(w.name_of("nowhere")));
  const auto without = [&](const char* file) {
    const std::string bytes = test::read_bytes(w.model / file);
    test::fs::remove(w.model / file);
    const std::string sentence = w.refused(1, {});
    test::write_bytes(w.model / file, bytes);
    return sentence;
  };
  CHECK_THAT(without("config.json"), Contains((w.model / "config.json").string()));
  CHECK_THAT(without("model.safetensors"), Contains(w.model.string()) && Contains("model.safetensors"));
  const auto with_config = [&](const char* key, const json& value) {
    const std::string bytes = test::read_bytes(w.model / "config.json");
    auto changed = json::parse(bytes);
    changed[key] = value;
    test::write_bytes(w.model / "config.json", changed.dump());
    const std::string sentence = w.refused(1, {});
    test::write_bytes(w.model / "config.json", bytes);
    return sentence;
  };
  CHECK_THAT(with_config("architectures", {"Qwen2ForCausalLM"}), Contains("Qwen2ForCausalLM"));
  CHECK_THAT(with_config("rope_scaling", {{"rope_type", "yarn"}}), Contains("yarn"));
  CHECK_THAT(with_config("num_hidden_layers", 3), Contains("model.layers.2."));
  CHECK_THAT(with_config("vocab_size", 2049), Contains("model.embed_tokens.weight") && Contains("2049"));
  CHECK_THAT(with_config("intermediate_size", 160), Contains("model.layers.0.mlp.gate_proj.weight"));
  CHECK_THAT(with_config("quantization_config", {{"quant_method", "compressed-tensors"}}),
             Contains("config.json") && Contains("quantized already"));
  for (const char* file : {"tokenizer.json", "tokenizer.model"}) test::fs::remove(w.model / file);
  CHECK_THAT(w.refused(1, {}), Contains(w.model.string()) && Contains("tokenizer"));
}

TEST_CASE("its own output is refused as a model") {
  const workplace w;
  REQUIRE(test::run_program("awq_mistral", w.usual + words{"--method", "rtn"}).status == 0);
  CHECK_THAT(w.refused(1, {"--model", w.out.string(), "--output", w.name_of("again")}),
             Contains(w.out.string()) && Contains("quantized already"));
}

TEST_CASE("a damaged weight file is refused by name before anything is written") {
  const workplace w;
  const test::fs::path file = w.model / "model.safetensors";
  const std::string whole = test::read_bytes(file);
  for (const size_t size : {size_t{0}, size_t{5}, size_t{40}, whole.size() / 2, whole.size() - 1}) {
    test::write_bytes(file, whole.substr(0, size));
    CHECK_THAT(w.refused(1, {}), Contains(file.string()));
  }
  std::string longer = whole;
  longer[6] = 1;  // header of 2^48 bytes
  test::write_bytes(file, longer);
  CHECK_THAT(w.refused(1, {}), Contains(file.string()) && Contains("header"));
}

TEST_CASE("a tensor that is missing or has a wrong shape is refused by name, wherever it is") {
  for (const char* name :
       {"model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.post_attention_layernorm.weight", "model.norm.weight", "lm_head.weight"}) {
    CAPTURE(name);
    const workplace missing({}, [&](test::made_tensor& t) {
      if (t.name == name) t.shape.clear();
    });
    CHECK_THAT(missing.refused(1, {}), Contains(name));
    CHECK_THAT(missing.refused(1, {"--method", "rtn"}), Contains(name));
    const workplace wider({}, [&](test::made_tensor& t) {
      if (t.name != name) return;
      t.shape.back() += 2;
      t.values.resize(t.values.size() / static_cast<size_t>(t.shape.back() - 2) * static_cast<size_t>(t.shape.back()));
    });
    CHECK_THAT(wider.refused(1, {"--method", "rtn"}), Contains(name) && Contains("shape"));
  }
}

TEST_CASE("weights of a dtype that is not a float are refused by name") {
  const workplace w;
  std::string bytes = test::read_bytes(w.model / "model.safetensors");
  const std::string entry = "\"model.layers.1.mlp.up_proj.weight\":{\"data_offsets\"";
  const size_t at = bytes.find("\"BF16\"", bytes.find(entry));
  REQUIRE(at != bytes.npos);
  bytes.replace(at, 6, "\"I16\" ");
  test::write_bytes(w.model / "model.safetensors", bytes);
  CHECK_THAT(w.refused(1, {}), Contains("model.layers.1.mlp.up_proj.weight") && Contains("I16"));
}

TEST_CASE("NaN and infinity in any tensor are refused by name, whether the method looks at it or not") {
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight",
        "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight"})
    for (const float value : {not_a_number, -std::numeric_limits<float>::infinity()}) {
      CAPTURE(name, value);
      const workplace w({}, planted(name, value));
      CHECK_THAT(w.refused(1, {"--method", "rtn"}), Contains(name) && Contains("NaN"));
    }
  const workplace w({}, planted("model.layers.1.self_attn.v_proj.weight", not_a_number));
  CHECK_THAT(w.refused(1, {}), Contains("model.layers.1.self_attn.v_proj.weight") && Contains("NaN"));
  const workplace kept({}, planted("model.layers.1.self_attn.v_proj.weight", not_a_number));
  CHECK_THAT(kept.refused(1, {"--method", "rtn", "--ignore", "lm_head,re:.*v_proj"}), Contains("v_proj"));
}

TEST_CASE("NaN in what belongs to no layer is refused before the first layer, and by a dry run") {
  for (const char* name : {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}) {
    const workplace w({}, planted(name, not_a_number));
    const auto result = test::run_program("awq_mistral", merged(w.usual, {"--method", "rtn"}));
    CHECK(result.status == 1);
    CHECK_THAT(result.err, Contains(name) && !Contains("quantizing"));
    CHECK_THAT(w.refused(1, {"--dry-run"}), Contains(name));
  }
}

TEST_CASE("a tensor outside the layers that is no weight stays as it is") {
  const workplace w;
  const std::string file = (w.model / "model.safetensors").string(), bytes = test::read_bytes(file);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  json header = json::parse(bytes.substr(8, length));
  const std::uint64_t end = bytes.size() - 8 - length;
  header["model.position_ids"] = {{"dtype", "I64"}, {"shape", {2}}, {"data_offsets", {end, end + 16}}};
  const std::string text = header.dump(), data = "0123456789abcdef";
  length = text.size();
  test::write_bytes(
      file, std::string(reinterpret_cast<const char*>(&length), 8) + text + bytes.substr(bytes.size() - end) + data);
  REQUIRE(test::run_program("awq_mistral", merged(w.usual, {"--method", "rtn"})).status == 0);
  const mistral::checkpoint made(w.out);
  const auto& kept = made.at("model.position_ids", {2});
  CHECK(kept.dtype == "I64");
  CHECK(std::string(reinterpret_cast<const char*>(kept.data), static_cast<size_t>(kept.bytes)) == data);
}

TEST_CASE("a model whose activations overflow is refused, and the layer named") {
  test::model_spec spec;
  spec.stored = dtype::f32;
  for (const char* loss : {"gram", "block"}) {
    const workplace w(spec, [](test::made_tensor& t) {
      if (t.name == "model.layers.1.mlp.up_proj.weight" || t.name == "model.layers.1.mlp.gate_proj.weight")
        for (float& x : t.values) x *= 1e25f;
    });
    CHECK_THAT(w.refused(1, {"--loss", loss}), Contains(w.model.string()) && Contains("layer 1") && Contains("NaN"));
  }
}

TEST_CASE("a value that fp16 cannot hold is refused by tensor where the format stores fp16, and kept elsewhere") {
  const workplace w({}, planted("model.embed_tokens.weight", 1e6f, 2047 * 64));
  CHECK_THAT(w.refused(1, {"--format", "awq-gemm"}),
             Contains("model.embed_tokens.weight") && Contains("compressed-tensors"));
  CHECK(test::run_program("awq_mistral", w.usual).status == 0);
}

TEST_CASE("a calibration or evaluation text that is missing, empty, of another kind or no text is refused by name") {
  const workplace w;
  const auto refused = [&](const char* option, const std::string& file, const std::string& bytes, int status = 1) {
    test::write_bytes(w.root / file, bytes);
    const std::string sentence = w.refused(status, {option, w.name_of(file)});
    CHECK_THAT(sentence, Contains(w.name_of(file)));
    return sentence;
  };
  CHECK_THAT(w.refused(1, {"--calibration", w.name_of("no.txt")}), Contains(w.name_of("no.txt")));
  CHECK_THAT(w.refused(1, {"--calibration", w.root.path().string()}), Contains(w.root.path().string()));
  refused("--calibration", "empty.txt", "");
  CHECK_THAT(refused("--calibration", "table.csv", "a,b\n"), Contains(".txt") && Contains(".jsonl"));
  CHECK_THAT(refused("--calibration", "latin.txt", "caf\xe9"), Contains("UTF-8") && Contains("byte 3"));
  refused("--calibration", "empty.jsonl", "\n\n");
  CHECK_THAT(refused("--calibration", "broken.jsonl", "{\"text\": \"a\"}\n{\"text\": "), Contains("line 2"));
  CHECK_THAT(refused("--calibration", "other.jsonl", "{\"prompt\": \"a\"}\n"), Contains("line 1") && Contains("text"));
  CHECK_THAT(refused("--calibration", "wrong.jsonl", "{\"text\": 3}\n"), Contains("line 1") && Contains("text"));
  CHECK_THAT(w.refused(1, {"--evaluate", w.name_of("no.txt")}), Contains(w.name_of("no.txt")));
  refused("--evaluate", "empty.txt", "");
  CHECK_THAT(refused("--evaluate", "latin.txt", "caf\xe9"), Contains("UTF-8"));
}

TEST_CASE("a disk that fills up at any point ends with the file's name, and leaves nothing that looks whole") {
  const workplace w;
  const auto limited = [&](rlim_t bytes) {
    const auto result = test::run_program("awq_mistral", w.usual, w.root.path(), [=] {
      const struct rlimit limit = {bytes, bytes};
      ::setrlimit(RLIMIT_FSIZE, &limit);
    });
    CHECK(result.status == 1);
    CHECK(result.out.empty());
    CHECK(!test::fs::exists(w.out));
    test::fs::remove_all(w.root / "out.partial");
    return result.err;
  };
  REQUIRE(test::run_program("awq_mistral", w.usual).status == 0);
  const auto size = test::fs::file_size(w.out / "model.safetensors");
  test::fs::remove_all(w.out);
  for (const rlim_t bytes :
       {rlim_t{1000}, rlim_t{270000}, static_cast<rlim_t>(size / 2), static_cast<rlim_t>(size - 1)})
    CHECK_THAT(limited(bytes), Contains(w.out.string()) && Contains("File too large"));
}

TEST_CASE("what cannot be written ends before the work: figures in no directory") {
  const workplace w;
  CHECK_THAT(w.refused(1, {"--json", w.name_of("no/figures.json")}), Contains(w.name_of("no/figures.json")));
  CHECK_THAT(w.refused(1, {"--json", w.name_of("no/figures.json")}), !Contains("quantizing"));
}

TEST_CASE(
    "option --max-regression ends with 3 when perplexity rises by more and with 0 otherwise, and the output stays") {
  const test::temporary_directory root;
  const test::fs::path out = root / "out", figures = root / "figures.json";
  test::write_bytes(root / "text.txt", test::read_bytes(test::embedded("text/heldout-persuasion.txt")).substr(0, 4000));
  const words usual = {"--output", out.string(),    "--overwrite", "--evaluate", (root / "text.txt").string(),
                       "--json",   figures.string()};
  const auto rise = [&] {
    const auto models = json::parse(test::read_bytes(figures)).at("models");
    return models.back().at("increase").get<double>() / models.front().at("perplexity").get<double>();
  };
  const words coarse = {"--scheme", "W2A16_ASYM", "--method", "rtn"};
  const auto unlimited = test::run_program("awq_mistral", usual + coarse);
  CHECK(unlimited.status == 0);
  const double measured = rise();
  CHECK(measured > 0.1);
  char above[32], below[32];
  std::snprintf(above, sizeof(above), "%.9f", measured + 1e-6);
  std::snprintf(below, sizeof(below), "%.9f", measured - 1e-6);
  const auto within = test::run_program("awq_mistral", usual + coarse + words{"--max-regression", above});
  CHECK(within.status == 0);
  CHECK_THAT(within.err, !Contains("--max-regression"));
  test::fs::remove_all(out);
  test::fs::remove(figures);
  const auto beyond = test::run_program("awq_mistral", usual + coarse + words{"--max-regression", below});
  CHECK(beyond.status == 3);
  CHECK_THAT(beyond.err, Contains("awq_mistral: perplexity rose by") && Contains("--max-regression"));
  CHECK_THAT(beyond.out, Contains(out.string()));
  CHECK(test::fs::exists(out / "model.safetensors"));
  CHECK(rise() == measured);
  const words fine = {"--scheme", "W8A16", "--method", "rtn", "--max-regression", "0.01"};
  CHECK(test::run_program("awq_mistral", usual + fine).status == 0);
}

}  // namespace awq_mistral_tests

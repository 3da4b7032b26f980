// SPDX-License-Identifier: Apache-2.0
/// @file
/// Every program given a model that is damaged, or made to do harm: it ends within seconds with one sentence that names
/// the file or the tensor, and leaves nothing behind.
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <functional>
#include <limits>

#include "support/places.hpp"
#include "support/victim.hpp"

namespace hostile_tests {

using namespace nibble;
using json = nlohmann::ordered_json;
using test::victim;
using test::words;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity();

/// Bytes of a safetensors file with another header and the data that it had.
std::string with_header(const std::string& file, const std::function<void(json&)>& change) {
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  json header = json::parse(file.substr(8, length));
  change(header);
  const std::string text = header.dump();
  const std::uint64_t now = text.size();
  std::string bytes(sizeof(now), '\0');
  std::memcpy(bytes.data(), &now, sizeof(now));
  return bytes + text + file.substr(8 + length);
}

/// `depth` arrays in each other.
std::string nested(size_t depth) {
  return std::string(depth, '[') + std::string(depth, ']');
}

std::vector<std::string> tensor_names() {
  std::vector<std::string> names;
  const victim all([&](test::made_tensor& t) { names.push_back(t.name); });
  return names;
}

}  // namespace

TEST_CASE("every program refuses a config whose extents make no model, by the key") {
  const victim v;
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"}) {
    const bool optional = std::string(key) == "num_key_value_heads" || std::string(key) == "head_dim" ||
                          std::string(key) == "max_position_embeddings";
    for (const json& bad : {json(0), json(-4), json(4.5), json("8"), json(true), json::array({8}), json(1e300),
                            json(18446744073709551615u), json(nullptr)})
      if (!bad.is_null() || !optional) v.refused_with_config(key, bad, {"\"" + std::string(key) + "\""});
  }
}

TEST_CASE("every program refuses a config that does not fit the weights or itself, however large the model it names") {
  const victim v;
  const auto refused = [&](const char* key, const json& value, const words& named) {
    v.refused_with_config(key, value, named);
  };
  for (const index_t layers : {index_t{3}, index_t{1'000'000'000}, index_t{2'147'483'647}})
    v.refused_with_tensor_missing("num_hidden_layers", layers, "model.layers.2.");
  for (const index_t hidden : {index_t{32}, index_t{128}, index_t{2'147'483'644}})
    v.refused_with_tensor_missing("hidden_size", hidden, "model.embed_tokens.weight");
  for (const index_t vocabulary : {index_t{1024}, index_t{2047}, index_t{2049}, index_t{2'147'483'647}})
    v.refused_with_tensor_missing("vocab_size", vocabulary, "model.embed_tokens.weight");
  for (const index_t intermediate : {index_t{64}, index_t{2'147'483'647}})
    v.refused_with_tensor_missing("intermediate_size", intermediate, "model.layers.0.mlp.");
  v.refused_with_tensor_missing("num_key_value_heads", 4, "model.layers.0.self_attn.k_proj.weight");
  v.refused_with_tensor_missing("head_dim", 1'000'000, "model.layers.0.self_attn.");
  refused("head_dim", 15, {"\"head_dim\"", "even"});
  refused("head_dim", 2'147'483'646, {"\"head_dim\""});
  refused("num_key_value_heads", 3, {"\"num_key_value_heads\""});
  refused("num_key_value_heads", 8, {"\"num_key_value_heads\""});
  refused("architectures", {"Qwen2ForCausalLM"}, {"Qwen2ForCausalLM", "MistralForCausalLM"});
  refused("architectures", {"Mistral3ForConditionalGeneration"}, {"Mistral3ForConditionalGeneration"});
  refused("model_type", "mixtral", {"model_type"});
  refused("hidden_act", "gelu", {"\"hidden_act\""});
  refused("rope_theta", -1, {"\"rope_theta\""});
  refused("rms_norm_eps", "1e-5", {"\"rms_norm_eps\""});
  refused("sliding_window", -1, {"\"sliding_window\""});
  refused("bos_token_id", 1e300, {"\"bos_token_id\""});
  refused("eos_token_id", "2", {"\"eos_token_id\""});
  refused("torch_dtype", "float8_e4m3fn", {"\"torch_dtype\""});
}

TEST_CASE("every program takes a config that says more than it needs, and a context of any length") {
  const victim v;
  v.accepted_with_config("max_position_embeddings", 2'147'483'647);
  v.accepted_with_config("anything", "else");
}

TEST_CASE("every program refuses JSON that is nested without end, cut, no object, or has a key twice, by file") {
  const victim v;
  for (const char* file : {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
    const std::string whole = test::read_bytes(v.model / file);
    v.refused_with(file, nested(100'000), {"nested"});
    v.refused_with(file, "{\"a\":" + nested(100'000) + "}", {"nested"});
    v.refused_with(file, std::string(100'000, '['), {"nested"});
    v.refused_with(file, whole.substr(0, whole.size() / 2), {"not valid JSON"});
    v.refused_with(file, "", {"not valid JSON"});
    v.refused_with(file, "[]", {});
    v.refused_with(file, "{\"a\": 1, \"a\": 2, " + whole.substr(whole.find('{') + 1), {"\"a\"", "twice"});
    v.refused_with(file, "{\"caf\xe9\": 1}", {"not valid JSON"});
  }
  const std::string weights = "model.safetensors";
  const std::string deep = "{\"a\":" + nested(100'000) + "}", whole = test::read_bytes(v.model / weights);
  std::string length(8, '\0');
  const std::uint64_t size = deep.size();
  std::memcpy(length.data(), &size, sizeof(size));
  v.refused_with(weights, length + deep + whole, {"\"a\""});
  test::fs::rename(v.model / weights, v.model / "kept");
  v.refused_with("model.safetensors.index.json", deep, {"nested"});
}

TEST_CASE("every program refuses offsets and shapes that overflow or lie outside their file, by tensor") {
  const victim v;
  const std::string file = "model.safetensors", name = "model.layers.0.mlp.up_proj.weight";
  const std::string whole = test::read_bytes(v.model / file);
  const auto refused = [&](const char* key, const json& value) {
    CAPTURE(key, value.dump());
    v.refused_with(file, with_header(whole, [&](json& header) { header[name][key] = value; }), {name});
  };
  const std::uint64_t most = ~std::uint64_t{0}, half = std::uint64_t{1} << 63;
  for (const json& shape : {json::array({half, 2}), json::array({std::uint64_t{1} << 32, std::uint64_t{1} << 32}),
                            json::array({most, most}), json::array({-1, 64}), json::array({1.5, 64}), json("x"),
                            json(nullptr), json::array({1e300}), json::array({half / 2, 4}), json::array({0, 64})})
    refused("shape", shape);
  for (const json& offsets : {json::array({most, most}), json::array({most - 1, 1}), json::array({half, half + 16384}),
                              json::array({0, most}), json::array({16, 0}), json::array({-16384, 0}), json::array({0}),
                              json::array({0.0, 16384.0}), json("0"), json(nullptr)})
    refused("data_offsets", offsets);
  for (const json& type : {json("F4096"), json(""), json(7), json(nullptr)}) refused("dtype", type);
  for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{whole.size()}, half, most}) {
    std::string bytes = whole;
    std::memcpy(bytes.data(), &length, sizeof(length));
    v.refused_with(file, bytes, {});
  }
}

TEST_CASE("every program refuses NaN and infinity in any tensor, by its name") {
  const float values[] = {std::numeric_limits<float>::quiet_NaN(), infinite, -infinite};
  const std::vector<std::string> names = tensor_names();
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i];
    const float value =
        values[(i + i / 10) % std::size(values)];  // nine tensors a layer: another one in the next layer
    CAPTURE(name, value);
    // Element 71 of the embedding belongs to BOS, which every text begins with.
    const victim v([&](test::made_tensor& t) {
      if (t.name == name) t.values[t.values.size() > 71 ? 71 : 7] = value;
    });
    v.refused({name, "NaN", "check the checkpoint"});
  }
}

TEST_CASE("every program refuses a tokenizer whose merges name no tokens, or that has more tokens than the model") {
  const victim v;
  const std::string file = "tokenizer.json";
  const json whole = json::parse(test::read_bytes(v.model / file));
  const auto refused = [&](const char* at, const json& value, const words& named) {
    json changed = whole;
    changed[json::json_pointer(at)] = value;
    CAPTURE(at, value.dump());
    v.refused_with(file, changed.dump(), named);
  };
  refused("/model/merges/0", json::array({"a", "nowhere"}), {"merge 0", "nowhere"});
  refused("/model/merges/3", "no where", {"merge 3"});
  refused("/model/merges/0", json::array({"a"}), {"no merge"});
  refused("/model/vocab/stronger", 1e18, {});
  refused("/model/vocab/stronger", -7, {});
  refused("/model/unk_token", "<nowhere>", {"<nowhere>"});
  refused("/added_tokens/0/id", 2'147'483'647, {});
  test::model_spec small;
  small.vocabulary = 256;  // the tokenizer has 2048 tokens, the text one beyond this
  victim(nullptr, small).refused({"the tokenizer gives the id", "256"});
}

TEST_CASE("every program refuses a pipe, a device or a directory where a file belongs, and waits for none") {
  const victim v;
  for (const char* file : {"config.json", "tokenizer.json", "model.safetensors"}) {
    const test::fs::path path = v.model / file, kept = v.root / "kept";
    test::fs::rename(path, kept);
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    v.refused({file});
    test::fs::remove(path);
    test::fs::create_directory(path);
    v.refused({file});
    test::fs::remove(path);
    test::fs::create_symlink(path, path);
    v.refused({file});
    test::fs::remove(path);
    test::fs::create_symlink("/dev/zero", path);
    v.refused({file});
    test::fs::remove(path);
    test::fs::rename(kept, path);
  }
  const test::fs::path text = v.text;
  test::fs::remove(text);
  REQUIRE(::mkfifo(text.c_str(), 0600) == 0);
  for (const auto& [program, arguments] : v.programs)
    if (program != "generate" && program != "gguf_mistral")  // which read no text
      v.refused_by(program, arguments, {"text.txt"});
}

TEST_CASE("a regular expression or a chat template that would never end is cut off by file") {
  const victim v;
  json file = json::parse(test::read_bytes(test::fs::path(test::golden_directory) / "tokenizer/byte-level.json"));
  file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = R"(((\w|\s)+)+[=#])";
  const std::string tokenizer = test::read_bytes(v.model / "tokenizer.json");
  test::write_bytes(v.model / "tokenizer.json", file.dump());
  for (const auto& [program, arguments] : v.programs)
    if (program != "generate") v.refused_by(program, arguments, {"tokenizer.json", "regular expression"});
  test::write_bytes(v.model / "tokenizer.json", tokenizer);
  test::write_bytes(
      v.model / "chat_template.jinja",
      "{% for i in range(100000) %}{% for j in range(100000) %}{{ messages[0].content }}{% endfor %}{% endfor %}");
  const std::string dialogue = (v.root / "dialogue.jsonl").string();
  test::write_bytes(dialogue, R"({"messages": [{"role": "user", "content": "hello"}]})");
  v.refused_by("generate", {"--model", v.model.string(), "--chat", dialogue}, {"chat_template.jinja", "steps"});
  v.refused_by("awq_mistral",
               {"--model", v.model.string(), "--output", (v.root / "out").string(), "--group-size", "32",
                "--calibration", dialogue},
               {"chat_template.jinja", "steps"});
}

TEST_CASE("texts and recipes that are nested without end, endless or no text are refused by file") {
  const victim v;
  const std::string deep = nested(100'000), out = (v.root / "out").string();
  const auto refused = [&](const std::string& file, const std::string& bytes, const words& named) {
    const std::string path = (v.root / file).string();
    test::write_bytes(path, bytes);
    words all = {file};
    all.insert(all.end(), named.begin(), named.end());
    const words awq = {"--model", v.model.string(), "--output", out, "--group-size", "32"};
    const auto with = [&](const char* option) {
      words arguments = awq;
      arguments.insert(arguments.end(), {option, path});
      return arguments;
    };
    if (file == "recipe.yaml")
      return v.refused_by("awq_mistral", {"--model", v.model.string(), "--output", out, "--recipe", path}, all);
    v.refused_by("awq_mistral", with("--calibration"), all);
    v.refused_by("awq_mistral", with("--evaluate"), all);
    v.refused_by("perplexity", {"--model", v.model.string(), "--text", path}, all);
  };
  refused("deep.jsonl", "{\"text\": " + deep + "}\n", {"line 1", "nested"});
  refused("late.jsonl", "{\"text\": \"a\"}\n" + deep + "\n", {"line 2", "nested"});
  refused("bytes.jsonl", "{\"text\": \"\xff\"}\n", {"UTF-8", "byte 10"});
  refused("number.jsonl", "{\"text\": 1e999}\n", {"line 1"});
  refused("twice.jsonl", "{\"text\": \"a\", \"text\": \"b\"}\n", {"line 1", "twice"});
  refused("bytes.txt", "a\xc0\xaf", {"UTF-8"});
  refused("recipe.yaml", deep, {"64"});
  refused("recipe.yaml",
          "a: &a [1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
          "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"
          "f: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
          {"100000"});
}

}  // namespace hostile_tests

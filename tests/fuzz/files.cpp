// SPDX-License-Identifier: Apache-2.0
/// @file
/// Targets that read a model's description and weights.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "gguf/importance.hpp"
#include "mistral/config.hpp"
#include "mistral/gguf.hpp"
#include "mistral/gguf_model.hpp"
#include "mistral/gguf_writer.hpp"
#include "mistral/json.hpp"
#include "mistral/quantization.hpp"
#include "mistral/recipe.hpp"
#include "mistral/safetensors.hpp"
#include "mistral/tokenizer.hpp"
#include "mistral/weights.hpp"
#include "support.hpp"
#include "targets.hpp"

namespace nibble::fuzz {
namespace {

/// Bytes and shape agree, and every element can be read: under a sanitizer, that none lies outside the map.
void check_tensors(const mistral::checkpoint& files) {
  for (const auto& [name, t] : files.tensors()) {
    promise(name == t.name && &files.at(name) == &t, "a tensor is not found under its name");
    promise(t.bytes >= 0 && t.size() >= 0, "a tensor has a negative size");
    if (!mistral::is_gguf(t.file))
      promise(mistral::stored_bytes(name, t.dtype, t.shape) == static_cast<std::uint64_t>(t.bytes),
              "a tensor's bytes do not fit its shape");
    unsigned sum = 0;
    for (index_t i = 0; i < t.bytes; ++i) sum += std::to_integer<unsigned>(t.data[i]);
    promise(sum <= 255 * static_cast<std::uint64_t>(t.bytes), "a sum of bytes is too large");
    std::vector<float> values(static_cast<size_t>(std::min<index_t>(t.size(), 1000)));
    const auto count = static_cast<index_t>(values.size());
    accepts([&, &t = t] { mistral::read_floats(t, t.size() - count, count, values.data()); });
    files.release(t);
  }
}

/// What was read can be written, and is the same then.
void check_gguf(const mistral::gguf_file& file) {
  static const scratch_directory work;
  mistral::gguf_metadata keys;
  for (const auto& each : file.metadata())
    if (each.first != "general.alignment") keys.push_back(each);
  std::vector<mistral::gguf_tensor_info> infos(file.tensors().begin(), file.tensors().end());
  fs::remove(work.path() / "again.gguf");
  mistral::gguf_writer out(work.path() / "again.gguf", keys, infos);
  for (const mistral::gguf_tensor& t : file.tensors()) out.append(t.data, t.size);
  out.finish();
  const mistral::gguf_file again(work.path() / "again.gguf");
  promise(again.metadata().size() == keys.size(), "a key gets lost");
  for (size_t i = 0; i < keys.size(); ++i) {
    promise(again.metadata()[i].first == keys[i].first, "a key changes its place");
    promise(again.metadata()[i].second.index() == keys[i].second.index(), "a value changes its type");
  }
  for (size_t i = 0; i < infos.size(); ++i) {
    const mistral::gguf_tensor &a = file.tensors()[i], &b = again.tensors()[i];
    promise(a.name == b.name && a.dims == b.dims && a.type == b.type && a.size == b.size, "a tensor changes");
    promise(std::memcmp(a.data, b.data, a.size) == 0, "a tensor's bytes change");
    promise(again.find_tensor(a.name) == &b, "a tensor is not found under its name");
  }
}

/// A file of one F32 tensor of two elements.
std::string small_safetensors(const std::string& name) {
  const std::string header = R"({")" + name + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  return bytes + header + std::string(8, '\0');
}

template <class Json>
void check_json(std::string_view bytes) {
  Json value;
  if (!accepts([&] { value = mistral::parse_json<Json>(bytes, "FILE"); })) return;
  promise(mistral::parse_json<Json>(value.dump(), "FILE") == value, "JSON does not survive being written");
  promise(mistral::excerpt(value).size() <= 60, "an excerpt is long");
  accepts([&] { mistral::json_get<int>(value, "a", "FILE"); });
  accepts([&] { mistral::json_get<std::uint64_t>(value, "a", "FILE", 0); });
  accepts([&] { mistral::json_get<double>(value, "a", "FILE"); });
  accepts([&] { mistral::json_get<bool>(value, "a", "FILE", true); });
  accepts([&] { mistral::json_get<std::string>(value, "a", "FILE"); });
}

}  // namespace

void read_json_text(std::string_view bytes) {
  check_json<nlohmann::ordered_json>(bytes);
  check_json<nlohmann::json>(bytes);
}

void read_config_file(std::string_view bytes) {
  static const scratch_directory model;
  model.write("config.json", bytes);
  accepts([] {
    const mistral::config c = mistral::read_config(model.path());
    for (const index_t extent :
         {c.hidden, c.intermediate, c.layers, c.heads, c.kv_heads, c.head_dim, c.vocabulary, c.context})
      promise(extent >= 1 && extent <= 2147483647, "an extent makes no model");
    promise(c.heads % c.kv_heads == 0 && c.head_dim % 2 == 0 && c.sliding_window >= 0, "heads do not fit");
    promise(c.rms_norm_eps > 0 && c.rms_norm_eps <= 1 && c.rope_theta > 0 && c.rope_theta <= 1e15,
            "a number is absurd");
    promise(c.bos >= -1 && c.bos < c.vocabulary && c.eos >= -1 && c.eos < c.vocabulary, "a token is outside");
    mistral::quantization::read(c, "FILE");
  });
}

void read_quantization(std::string_view bytes) {
  accepts([&] {
    mistral::config c;
    c.json["quantization_config"] = mistral::parse_json(bytes, "FILE");
    const auto read = mistral::quantization::read(c, "FILE");
    if (!read) return;
    for (const char* name :
         {"model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head", "model.embed_tokens", ""}) {
      std::optional<mistral::packing> how;
      if (!accepts([&] { how = read->of(name); }) || !how) continue;
      promise(how->bits >= 1 && how->bits <= 8 && (how->group == -1 || how->group >= 1), "a packing makes no sense");
    }
  });
}

void read_safetensors(std::string_view bytes) {
  static const scratch_directory model;
  model.write("model.safetensors", bytes);
  accepts([] { check_tensors(mistral::checkpoint(model.path())); });
}

void read_index(std::string_view bytes) {
  static const scratch_directory model;
  static const bool written = [] {
    model.write("a.safetensors", small_safetensors("x"));
    model.write("b.safetensors", small_safetensors("y"));
    model.write("broken.safetensors", "");
    fs::create_directory(model.path() / "folder");
    return true;
  }();
  promise(written, "shards are not written");
  model.write("model.safetensors.index.json", bytes);
  accepts([] { check_tensors(mistral::checkpoint(model.path())); });
}

void read_packed_linear(std::string_view bytes) {
  static const scratch_directory model;
  const auto [description, weights] = parted(bytes);
  model.write("model.safetensors", weights);
  accepts([&, description = description] {
    mistral::config c;
    c.json["quantization_config"] = mistral::parse_json(description, "FILE");
    const mistral::checkpoint files(model.path());
    struct opened {
      const char* name;
      index_t n, k;
    };
    // AutoAWQ and GPTQModel pack what lies in layers.
    for (const auto& [name, n, k] :
         {opened{"l", 8, 32}, {"l", 3, 40}, {"model.layers.l", 8, 32}, {"model.layers.l", 64, 128}})
      accepts([&, name = name, n = n, k = k] {
        const auto w = mistral::open_linear(files, c, name, n, k);
        promise(w->outputs() == n && w->inputs() == k, "a linear has another shape than it was opened with");
        std::vector<float> whole(static_cast<size_t>(n * k)), last(static_cast<size_t>(k));
        w->rows(0, n, whole.data());
        w->rows(n - 1, 1, last.data());
        promise(std::memcmp(last.data(), whole.data() + (n - 1) * k, sizeof(float) * last.size()) == 0,
                "a row depends on which rows are read with it");
        promise(w->resident().bytes() > 0, "a linear in memory takes none");
      });
  });
}

void read_gguf(std::string_view bytes) {
  static const scratch_directory work;
  work.write("model.gguf", bytes);
  const fs::path file = work.path() / "model.gguf";
  if (!accepts([&] { check_gguf(mistral::gguf_file(file)); })) return;
  accepts([&] { check_tensors(mistral::checkpoint(file)); });
  accepts([&] {
    const auto tok = mistral::open_tokenizer(file);
    const auto ids = tok->encode_framed("The \xc3\xa9tat, c'est [INST]\xf0\x9f\x98\x80");
    for (const std::int32_t id : ids) promise(id >= 0 && id < tok->vocabulary(), "an id is outside the vocabulary");
    tok->decode(ids, true);
  });
  accepts([&] { mistral::read_gguf_chat_template(mistral::gguf_file(file)); });
  accepts([&] {
    for (const auto& [name, weights] : mistral::read_importance(file).weights)
      for (const float w : weights) promise(w >= 0.0f && std::isfinite(w), "an importance is no weight");
  });
}

void read_recipe_file(std::string_view bytes) {
  static const scratch_directory work;
  work.write("given.yaml", bytes);
  accepts([] {
    const mistral::recipe given = mistral::read_recipe(work.path() / "given.yaml");
    promise(!given.groups.empty() && given.grid >= 1 && given.grid <= 1000, "a recipe says nothing");
    mistral::write_recipe(work.path(), given);
    const mistral::recipe again = mistral::read_recipe(work.path() / "recipe.yaml");
    promise(again.awq == given.awq && again.ignore == given.ignore, "a recipe does not survive being written");
    promise(again.groups.size() == given.groups.size(), "a group does not survive being written");
    for (size_t i = 0; i < given.groups.size(); ++i)
      promise(again.groups[i].how == given.groups[i].how && again.groups[i].targets == given.groups[i].targets,
              "a group changes when it is written");
  });
}

}  // namespace nibble::fuzz

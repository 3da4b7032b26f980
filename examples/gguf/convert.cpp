// SPDX-License-Identifier: Apache-2.0
#include "gguf/convert.hpp"

#include <algorithm>
#include <cmath>

#include "gguf/carry.hpp"
#include "mistral/error.hpp"
#include "mistral/forward.hpp"
#include "mistral/gguf_blocks.hpp"
#include "mistral/gguf_model.hpp"
#include "mistral/gguf_tokenizer.hpp"
#include "mistral/gguf_writer.hpp"
#include "nibble/host/parallel.hpp"

namespace nibble::mistral {
namespace {

/// Floats that are held at once, and rows that a thread encodes.
constexpr index_t floats_at_once = index_t(1) << 24, converted_at_once = 32;

void add_architecture(gguf_metadata& out, const config& c, const mix& m, const std::string& name) {
  const auto number = [](index_t value) { return static_cast<std::uint32_t>(value); };
  out.emplace_back("general.architecture", "llama");
  out.emplace_back("general.type", "model");
  out.emplace_back("general.name", name);
  out.emplace_back("general.file_type", m.number);
  out.emplace_back("general.quantization_version", std::uint32_t{2});
  out.emplace_back("llama.vocab_size", number(c.vocabulary));
  out.emplace_back("llama.context_length", number(c.context));
  out.emplace_back("llama.embedding_length", number(c.hidden));
  out.emplace_back("llama.block_count", number(c.layers));
  out.emplace_back("llama.feed_forward_length", number(c.intermediate));
  out.emplace_back("llama.attention.head_count", number(c.heads));
  out.emplace_back("llama.attention.head_count_kv", number(c.kv_heads));
  out.emplace_back("llama.attention.key_length", number(c.head_dim));
  out.emplace_back("llama.attention.value_length", number(c.head_dim));
  out.emplace_back("llama.attention.layer_norm_rms_epsilon", c.rms_norm_eps);
  out.emplace_back("llama.rope.dimension_count", number(c.head_dim));
  out.emplace_back("llama.rope.freq_base", static_cast<float>(c.rope_theta));
}

class planner {
 public:
  planner(const checkpoint& files, const config& c, const mix& m, const importance_matrix* importance, gguf_plan& out)
      : files_(files), c_(c), m_(m), importance_(importance), out_(out), carrier_(&m == &exact_mix()) {
    model_ = {c.layers, c.heads / c.kv_heads, importance != nullptr, c.tied_embeddings};
  }

  void vector(const std::string& name) {
    planned_tensor t;
    t.direct = &files_.at(name + ".weight", {c_.hidden});
    t.columns = c_.hidden;
    name_and_type(name, t);
    add(std::move(t));
  }
  void embedding(const std::string& name) {
    planned_tensor t;
    t.direct = &files_.at(name + ".weight", {c_.vocabulary, c_.hidden});
    t.rows = c_.vocabulary, t.columns = c_.hidden;
    name_and_type(name, t);
    carrier_.settle(t, *t.direct);
    add(std::move(t));
  }
  void linear(const std::string& name, index_t n, index_t k) {
    planned_tensor t;
    t.linear = name;
    t.rows = n, t.columns = k;
    const auto checked = open_linear(files_, c_, name, n, k);
    rounded_ = rounded_ || checked->rounded().how != input_rounding::none;
    name_and_type(name, t);
    carrier_.settle(t, *checked);
    if (!checked->packed()) carrier_.settle(t, files_.at(name + ".weight"));
    add(std::move(t));
  }
  void finish();

 private:
  void name_and_type(const std::string& name, planned_tensor& t) const {
    t.info.name = gguf_name(name + ".weight");
    t.wanted = mixed_type(m_, model_, t.info.name);
    t.info.type = fitting_type(t.wanted, t.columns);
  }

  void add(planned_tensor t) {
    if (t.info.type != t.wanted) unfit_.push_back(out_.tensors.size());
    t.info.dims = {static_cast<std::uint64_t>(t.columns)};
    if (t.rows > 1 || !t.linear.empty()) t.info.dims.push_back(static_cast<std::uint64_t>(t.rows));
    if (rows_are_paired(t.info.name)) t.paired_heads = c_.head_dim;
    if (importance_ && is_block_type(info_of(t.info.type).name)) find_importance(t);
    out_.weights += t.rows * t.columns;
    out_.data_bytes += t.info.bytes(files_.directory().string());
    out_.tensors.push_back(std::move(t));
  }

  void find_importance(planned_tensor& t) {
    const auto found = importance_->weights.find(t.info.name);
    if (found == importance_->weights.end()) {
      if (!importance_->file.empty()) without_.push_back(t.info.name);  // else only what no linear reads
      return;
    }
    if (static_cast<index_t>(found->second.size()) != t.columns)
      throw error(importance_->file.string() + ": the importance of \"" + t.info.name + "\" is of " +
                  std::to_string(found->second.size()) + " columns, but the model's tensor has " +
                  std::to_string(t.columns));
    t.importance = &found->second;
  }

  const checkpoint& files_;
  const config& c_;
  const mix& m_;
  const importance_matrix* importance_;
  gguf_plan& out_;
  carrier carrier_;
  mixed_model model_;
  bool rounded_ = false;
  std::vector<size_t> unfit_;
  std::vector<std::string> without_;
};

void planner::finish() {
  if (!unfit_.empty()) {
    const planned_tensor& first = out_.tensors[unfit_.front()];
    out_.notes.push_back(std::to_string(unfit_.size()) + " of " + std::to_string(out_.tensors.size()) +
                         " tensors have rows that are no whole blocks of their type and get another, such as \"" +
                         first.info.name + "\" of " + std::to_string(first.columns) + " columns: " +
                         info_of(first.info.type).name + " in the place of " + info_of(first.wanted).name);
  }
  if (!without_.empty())
    out_.notes.push_back(importance_->file.string() + " tells nothing of " + std::to_string(without_.size()) +
                         " tensors, such as \"" + without_.front() + "\", whose columns count alike");
  carrier_.finish(out_);
  if (rounded_)
    out_.notes.emplace_back("this checkpoint rounds the inputs of its linears too, which the GGUF file will not");
  if (c_.sliding_window > 0 && c_.sliding_window < c_.context)
    out_.notes.push_back("the model's attention sees " + std::to_string(c_.sliding_window) +
                         " tokens; llama.cpp's for this architecture sees all, so keep contexts within that");
}

/// AWQ's scales into rows [first, first + count) of a checkpoint's order.
void scale_rows(const planned_tensor& t, index_t first, index_t count, float* values) {
  if (t.times)
    for (index_t row = 0; row < count; ++row)
      for (index_t col = 0; col < t.columns; ++col)
        values[row * t.columns + col] *= (*t.times)[static_cast<size_t>(col)];
  if (!t.divided) return;
  const bool vector = t.info.dims.size() == 1;
  for (index_t i = 0; i < count * t.columns; ++i)
    values[i] /= (*t.divided)[static_cast<size_t>(vector ? i : first + i / t.columns)];
}

/// Rows [first, first + count) of the file's order.
void read_rows(const planned_tensor& t, const linear_weights* linear, index_t first, index_t count, float* out) {
  const auto read = [&](float* to) {
    if (linear)
      linear->rows(first, count, to);
    else
      read_floats(*t.direct, first * t.columns, count * t.columns, to);
    scale_rows(t, first, count, to);
  };
  if (t.paired_heads == 0) return read(out);
  std::vector<float> buffer(static_cast<size_t>(count * t.columns));
  read(buffer.data());
  for (index_t row = 0; row < count; ++row)
    std::copy_n(buffer.data() + row * t.columns, t.columns, out + paired_row(row, t.paired_heads) * t.columns);
}

/// Likewise the blocks that hold a linear's codes.
void carry_in_order(const planned_tensor& t, const linear_weights& linear, index_t first, index_t count,
                    index_t row_bytes, std::byte* out) {
  if (t.paired_heads == 0) return carry_rows(linear, t.info.type, first, count, out);
  std::vector<std::byte> buffer(static_cast<size_t>(count * row_bytes));
  carry_rows(linear, t.info.type, first, count, buffer.data());
  for (index_t row = 0; row < count; ++row)
    std::copy_n(buffer.data() + row * row_bytes, row_bytes, out + paired_row(row, t.paired_heads) * row_bytes);
}

/// fp16 rounds from here on to infinity, and blocks' scales are fp16.
constexpr float beyond_fp16 = 65520.0f;

}  // namespace

void check_values(const planned_tensor& t, const float* values, index_t count, const std::string& where) {
  const bool narrow = t.info.type != gguf_type::f32 && t.info.type != gguf_type::bf16;
  float largest = 0.0f;
  bool finite = true;
  for (index_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(values[i]);
    largest = std::max(largest, std::abs(values[i]));
  }
  const std::string name = t.direct ? t.direct->name : t.linear + ".weight";
  if (!finite)
    throw error(where + ": the tensor \"" + name + "\" holds a weight that is NaN or infinite; check the checkpoint");
  if (narrow && largest >= beyond_fp16)
    throw error(where + ": the tensor \"" + name + "\" holds a weight of " + std::to_string(largest) +
                ", beyond what " + info_of(t.info.type).name + " holds; --type BF16 does");
}

namespace {

void write_tensor(gguf_writer& out, const planned_tensor& t, block_search_kind search, const linear_weights* linear,
                  const std::string& where) {
  const gguf_type_info& stored = info_of(t.info.type);
  const auto row_bytes = static_cast<index_t>(static_cast<std::uint64_t>(t.columns) / stored.elements * stored.bytes);
  const index_t tile = t.paired_heads > 0 ? t.paired_heads : converted_at_once;
  const index_t together = round_up(max(floats_at_once / t.columns, index_t(1)), tile);
  std::vector<std::byte> bytes;
  for (index_t first = 0; first < t.rows; first += together) {
    const index_t count = min(together, t.rows - first);
    bytes.resize(static_cast<size_t>(count * row_bytes));
    std::vector<std::string> wrong(static_cast<size_t>(ceil_div(count, tile)));
    host::parallel_for(ceil_div(count, tile), [&](index_t i) {
      const index_t begin = i * tile, rows = min(tile, count - begin);
      std::byte* const to = bytes.data() + begin * row_bytes;
      if (t.carried) return carry_in_order(t, *linear, first + begin, rows, row_bytes, to);
      std::vector<float> values(static_cast<size_t>(rows * t.columns));
      read_rows(t, linear, first + begin, rows, values.data());
      try {
        check_values(t, values.data(), rows * t.columns, where);
      } catch (const error& refused) {
        wrong[static_cast<size_t>(i)] = refused.what();
        return;
      }
      encode_rows(t.info.type, {values.data(), rows, t.columns}, t.importance ? t.importance->data() : nullptr, to,
                  search);
    });
    for (const std::string& sentence : wrong)
      if (!sentence.empty()) throw error(sentence);
    out.append(bytes.data(), bytes.size());
  }
}

}  // namespace

gguf_plan plan_gguf(const checkpoint& files, const config& c, const mix& m, const importance_matrix* importance,
                    const std::string& name) {
  gguf_plan plan;
  add_architecture(plan.metadata, c, m, name);
  if (importance) {
    if (!importance->file.empty())
      plan.metadata.emplace_back("quantize.imatrix.file", importance->file.filename().string());
    if (!importance->dataset.empty()) plan.metadata.emplace_back("quantize.imatrix.dataset", importance->dataset);
    plan.metadata.emplace_back("quantize.imatrix.entries_count", static_cast<std::int32_t>(importance->weights.size()));
    if (importance->chunks > 0)
      plan.metadata.emplace_back("quantize.imatrix.chunks_count", static_cast<std::int32_t>(importance->chunks));
  }
  planner add(files, c, m, importance, plan);
  add.embedding("model.embed_tokens");
  for (index_t layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add.vector(prefix + "input_layernorm");
    for (const projection p : {projection::q, projection::k, projection::v, projection::o})
      add.linear(projection_name(layer, p), outputs(c, p), inputs(c, p));
    add.vector(prefix + "post_attention_layernorm");
    for (const projection p : {projection::gate, projection::up, projection::down})
      add.linear(projection_name(layer, p), outputs(c, p), inputs(c, p));
  }
  add.vector("model.norm");
  if (!c.tied_embeddings) add.linear("lm_head", c.vocabulary, c.hidden);
  add.finish();
  add_tokenizer(plan.metadata, files.directory(), c);  // now that the embedding is known to be as large
  return plan;
}

std::uint64_t write_gguf(const std::filesystem::path& path, const gguf_plan& plan, const checkpoint& files,
                         const config& c, const std::function<void(index_t)>& told) {
  std::vector<gguf_tensor_info> infos;
  for (const planned_tensor& t : plan.tensors) infos.push_back(t.info);
  gguf_writer out(path, plan.metadata, infos);
  index_t layers = 0;
  for (const planned_tensor& t : plan.tensors) {
    const auto linear = t.linear.empty() ? nullptr : open_linear(files, c, t.linear, t.rows, t.columns);
    write_tensor(out, t, plan.search, linear.get(), files.directory().string());
    if (linear) linear->release();
    if (t.direct) files.release(*t.direct);
    if (t.linear == projection_name(layers, projection::down)) told(++layers);
  }
  return out.finish();
}

}  // namespace nibble::mistral

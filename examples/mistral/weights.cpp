// SPDX-License-Identifier: Apache-2.0
/// @file
/// Dense weights come back as stored, packed ones as the fp32 product (code − zero) · scale: what transformers computes
/// when a model is loaded in fp32; loaded in bf16 or fp16 it rounds the product to that once more.
#include "weights.hpp"

#include <cmath>
#include <cstring>

#include "coded_linear.hpp"
#include "error.hpp"
#include "nibble/host/pack.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"
#include "quantization.hpp"

namespace nibble::mistral {
namespace {

/// Bytes a thread copies at a time, and rows it packs.
constexpr index_t copied_at_once = index_t(1) << 22, rows_at_once = 64;

dtype dtype_of_floating(const tensor& t) {
  return t.dtype == "F32" ? dtype::f32 : t.dtype == "F16" ? dtype::f16 : dtype::bf16;
}

resident_bytes copied(const std::byte* data, index_t bytes) {
  resident_bytes copy(bytes);
  host::parallel_for(ceil_div(bytes, copied_at_once), [&](index_t piece) {
    const index_t first = piece * copied_at_once;
    std::memcpy(copy.data() + first, data + first, static_cast<size_t>(min(copied_at_once, bytes - first)));
  });
  return copy;
}

const tensor& floating(const tensor& t) {
  if (t.dtype != "F32" && t.dtype != "F16" && t.dtype != "BF16")
    throw error(t.file.string() + ": the tensor \"" + t.name + "\" has dtype " + t.dtype +
                " where F32, F16 or BF16 is needed");
  return t;
}

const tensor& words_of(const checkpoint& from, const std::string& name, layout::extents extents) {
  const tensor& t = from.at(name, {extents.rows, extents.cols});
  if (t.dtype != "I32" && t.dtype != "U32")
    throw error(t.file.string() + ": the tensor \"" + name + "\" has dtype " + t.dtype + " where I32 is needed");
  return t;
}

/// Rows [first, first + rows), columns [col, col + cols) of a tensor of words, copied: a map may be unaligned.
std::vector<uint32_t> words_at(const tensor& t, index_t first, index_t rows, index_t col, index_t cols) {
  std::vector<uint32_t> words(static_cast<size_t>(rows * cols));
  for (index_t row = 0; row < rows; ++row)
    std::memcpy(words.data() + row * cols, t.data + 4 * ((first + row) * t.shape[1] + col),
                static_cast<size_t>(4 * cols));
  return words;
}

class dense_weights : public linear_weights {
 public:
  dense_weights(const checkpoint& from, const tensor& weight) : from_(from), weight_(floating(weight)) {}

  index_t outputs() const override { return weight_.shape[0]; }
  index_t inputs() const override { return weight_.shape[1]; }
  void rows(index_t first, index_t count, float* out) const override {
    read_floats(weight_, first * inputs(), count * inputs(), out);
  }
  resident_linear resident() const override {
    resident_linear w;
    w.n = outputs(), w.k = inputs();
    w.type = dtype_of_floating(weight_);
    w.weights = copied(weight_.data, weight_.bytes);
    return w;
  }
  void release() const override { from_.release(weight_); }

 private:
  const checkpoint& from_;
  const tensor& weight_;
};

/// Where a packed linear's tensors are: `Layout` packs its weights, zeros() its zero points, scales() its scales.
template <class Layout>
class packed_weights : public linear_weights {
 public:
  /// @param zeros null for a symmetric packing.
  packed_weights(const checkpoint& from, Layout layout, index_t n, index_t k, index_t group, const tensor& weight,
                 const tensor& scales, const tensor* zeros)
      : from_(from),
        layout_(layout),
        n_(n),
        k_(k),
        width_(group < 0 ? k : group),
        weight_(weight),
        scale_type_(dtype_of_floating(scales)),
        symmetric_(zeros == nullptr) {
    read_scales(scales);
    read_zeros(zeros);
    from.release(scales);
    if (zeros) from.release(*zeros);
  }

  index_t outputs() const override { return n_; }
  index_t inputs() const override { return k_; }
  void release() const override { from_.release(weight_); }

  resident_linear resident() const override {
    resident_linear w;
    w.n = n_, w.k = k_, w.bits = layout_.bits, w.group = width_ < k_ ? width_ : -1;
    w.type = scale_type_, w.symmetric = symmetric_;
    w.weights = transposed ? strings() : copied(weight_.data, weight_.bytes);
    w.set_params({params_.data(), n_, ceil_div(k_, width_)});
    return w;
  }

  void rows(index_t first, index_t count, float* out) const override {
    constexpr any_scheme exact{8, false, convention::compressed_tensors, dtype::f32, dtype::f32};
    const index_t unit = transposed ? 8 : 1;  // outputs that share a word
    const index_t begin = first / unit * unit, end = round_up(first + count, unit);
    std::vector<uint8_t> buffer(static_cast<size_t>((end - begin) * k_));
    const matrix<uint8_t> codes(buffer.data(), end - begin, k_);
    unpack(begin, end, codes);
    const index_t groups = ceil_div(k_, width_);
    for (index_t i = 0; i < count; ++i)
      for (index_t g = 0; g < groups; ++g) {
        const params p = params_[static_cast<size_t>((first + i) * groups + g)];
        const uint8_t* code = codes.row(first + i - begin);
        float* row = out + i * k_;
        for (index_t j = g * width_; j < min(k_, (g + 1) * width_); ++j) row[j] = dequantize(code[j], p, exact);
      }
  }

 private:
  static constexpr bool transposed = std::is_same_v<Layout, layout::awq_gemm>;

  /// The codes as a string of bits along each row.
  resident_bytes strings() const {
    const layout::compressed_tensors along{layout_.bits};
    const index_t words = along.packed(n_, k_).cols;
    resident_bytes packed(4 * n_ * words);
    host::parallel_for(ceil_div(n_, rows_at_once), [&](index_t tile) {
      const index_t first = tile * rows_at_once, count = min(rows_at_once, n_ - first);
      std::vector<uint8_t> buffer(static_cast<size_t>(count * k_));
      const matrix<uint8_t> codes(buffer.data(), count, k_);
      unpack(first, first + count, codes);
      host::pack(along, codes, {reinterpret_cast<uint32_t*>(packed.data()) + first * words, count, words});
    });
    return packed;
  }

  void unpack(index_t begin, index_t end, matrix<uint8_t> codes) const {
    const layout::extents extents = layout_.packed(end - begin, k_);
    const auto words = transposed ? words_at(weight_, 0, k_, begin / 8, extents.cols)
                                  : words_at(weight_, begin, end - begin, 0, extents.cols);
    host::unpack(layout_, matrix<const uint32_t>(words.data(), extents.rows, extents.cols), codes);
  }

  void read_scales(const tensor& t) {
    const index_t groups = ceil_div(k_, width_);
    std::vector<float> stored(static_cast<size_t>(t.size())), scales(static_cast<size_t>(n_ * groups));
    read_floats(t, 0, t.size(), stored.data());
    host::unpack_scales(layout_.scales(), matrix<const float>(stored.data(), t.shape[0], t.shape[1]),
                        matrix<float>(scales.data(), n_, groups));
    for (const float scale : scales) {
      if (!std::isfinite(scale))
        throw error(t.file.string() + ": the tensor \"" + t.name + "\" holds a scale that is NaN or infinite");
      params_.push_back({scale, 0});
    }
  }

  void read_zeros(const tensor* t) {
    const int32_t middle = 1 << (layout_.bits - 1);
    if (!t)
      for (params& p : params_) p.zero = middle;
    if (!t) return;
    const auto words = words_at(*t, 0, t->shape[0], 0, t->shape[1]);
    std::vector<uint8_t> zeros(params_.size());
    host::unpack(layout_.zeros(), matrix<const uint32_t>(words.data(), t->shape[0], t->shape[1]),
                 matrix<uint8_t>(zeros.data(), n_, ceil_div(k_, width_)));
    for (size_t i = 0; i < zeros.size(); ++i) params_[i].zero = zeros[i];
  }

  const checkpoint& from_;
  Layout layout_;
  index_t n_, k_, width_;
  const tensor& weight_;
  dtype scale_type_;
  bool symmetric_;
  std::vector<params> params_;  ///< (n, groups)
};

/// @throws error unless weight_shape, two integers, says (n, k).
void check_weight_shape(const checkpoint& from, const std::string& name, index_t n, index_t k) {
  const tensor& t = from.at(name, {2});
  int64_t stored[2] = {};
  int32_t narrow[2] = {};
  if (t.dtype == "I64") std::memcpy(stored, t.data, sizeof(stored));
  if (t.dtype == "I32") {
    std::memcpy(narrow, t.data, sizeof(narrow));
    stored[0] = narrow[0], stored[1] = narrow[1];
  }
  if (stored[0] != n || stored[1] != k)
    throw error(t.file.string() + ": the tensor \"" + name + "\" says [" + std::to_string(stored[0]) + ", " +
                std::to_string(stored[1]) + "], but config.json asks for [" + std::to_string(n) + ", " +
                std::to_string(k) + "]");
}

template <class Layout>
std::unique_ptr<linear_weights> open_packed(const checkpoint& from, Layout layout, const packing& how,
                                            const std::string& name, index_t n, index_t k) {
  const bool awq = how.format != packed_format::compressed_tensors;
  if (const auto verdict = Layout::can_pack(n, k, how.bits, how.group); !verdict)
    throw error(from.directory().string() + ": the linear \"" + name + "\" [" + std::to_string(n) + ", " +
                std::to_string(k) + "] cannot be packed as config.json says: " + verdict.reason);
  const index_t groups = layout::groups(k, how.group);
  const tensor& weight = words_of(from, name + (awq ? ".qweight" : ".weight_packed"), layout.packed(n, k));
  const layout::extents scale_extents = layout.scales().packed(n, groups);
  const tensor& scales =
      floating(from.at(name + (awq ? ".scales" : ".weight_scale"), {scale_extents.rows, scale_extents.cols}));
  const tensor* zeros = how.symmetric ? nullptr
                                      : &words_of(from, name + (awq ? ".qzeros" : ".weight_zero_point"),
                                                  layout.zeros().packed(n, groups));
  if (!awq) check_weight_shape(from, name + ".weight_shape", n, k);
  if (from.contains(name + ".weight_g_idx"))
    throw error(from.directory().string() + ": the linear \"" + name +
                "\" has its inputs reordered (weight_g_idx), which is not supported");
  return std::make_unique<packed_weights<Layout>>(from, layout, n, k, how.group, weight, scales, zeros);
}

}  // namespace

std::unique_ptr<linear_weights> open_linear(const checkpoint& from, const config& model, const std::string& name,
                                            index_t n, index_t k) {
  const auto q = quantization::read(model, (from.directory() / "config.json").string());
  const auto how = q ? q->of(name) : std::nullopt;
  if (from.contains(name + ".bias"))
    throw error(from.directory().string() + ": the linear \"" + name + "\" has a bias, which is not supported");
  if (!how) return std::make_unique<dense_weights>(from, from.at(name + ".weight", {n, k}));
  if (is_coded(*how)) return open_coded(from, *how, name, n, k);
  switch (how->format) {
    case packed_format::awq_gemm:
      return open_packed(from, layout::awq_gemm{}, *how, name, n, k);
    case packed_format::awq_gemv:
      return open_packed(from, layout::awq_gemv{how->group}, *how, name, n, k);
    case packed_format::compressed_tensors:
      break;
  }
  return open_packed(from, layout::compressed_tensors{how->bits}, *how, name, n, k);
}

std::vector<float> read_vector(const checkpoint& from, const std::string& name, index_t size) {
  const tensor& t = from.at(name, {size});
  std::vector<float> values(static_cast<size_t>(size));
  read_floats(t, 0, size, values.data());
  from.release(t);
  return values;
}

}  // namespace nibble::mistral

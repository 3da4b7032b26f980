// SPDX-License-Identifier: Apache-2.0
#include "weights.hpp"

#include "error.hpp"

namespace nibble::mistral {
namespace {

class dense_weights : public linear_weights {
 public:
  dense_weights(const checkpoint& from, const tensor& weight) : from_(from), weight_(weight) {}

  index_t outputs() const override { return weight_.shape[0]; }
  index_t inputs() const override { return weight_.shape[1]; }
  void rows(index_t first, index_t count, float* out) const override {
    read_floats(weight_, first * inputs(), count * inputs(), out);
  }
  void release() const override { from_.release(weight_); }

 private:
  const checkpoint& from_;
  const tensor& weight_;
};

const tensor& floating(const tensor& t) {
  if (t.dtype != "F32" && t.dtype != "F16" && t.dtype != "BF16")
    throw error(t.file.string() + ": the tensor \"" + t.name + "\" has dtype " + t.dtype +
                " where F32, F16 or BF16 is needed");
  return t;
}

}  // namespace

std::unique_ptr<linear_weights> open_linear(const checkpoint& from, const config&, const std::string& name, index_t n,
                                            index_t k) {
  return std::make_unique<dense_weights>(from, floating(from.at(name + ".weight", {n, k})));
}

std::vector<float> read_vector(const checkpoint& from, const std::string& name, index_t size) {
  const tensor& t = from.at(name, {size});
  std::vector<float> values(static_cast<size_t>(size));
  read_floats(t, 0, size, values.data());
  from.release(t);
  return values;
}

}  // namespace nibble::mistral

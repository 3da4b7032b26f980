// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the examples fail: one sentence that names the file, tensor or option and says what to do.
#pragma once

#include <stdexcept>

namespace nibble::mistral {

/// Bad input: a file, a tensor, a model. The program prints what() and exits with 1.
struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The model's own numbers cannot be quantized as asked, and no second run will change that.
struct unusable_model : error {
  using error::error;
};

/// A wrong option or combination of options. Exit status 2.
struct usage_error : error {
  using error::error;
};

/// A GPU that is missing, too old or too small: the CPU can take its place.
struct gpu_unusable : error {
  using error::error;
};

}  // namespace nibble::mistral

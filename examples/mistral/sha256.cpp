// SPDX-License-Identifier: Apache-2.0
#include "sha256.hpp"

#include <openssl/evp.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "error.hpp"

namespace nibble::mistral {
namespace {

class digest {
 public:
  digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) { check(EVP_DigestInit_ex(get(), EVP_sha256(), nullptr)); }
  void add(const void* data, size_t bytes) { check(EVP_DigestUpdate(get(), data, bytes)); }
  std::string finish() {
    unsigned char value[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    check(EVP_DigestFinal_ex(get(), value, &size));
    std::string text;
    for (unsigned i = 0; i < size; ++i) {
      text += "0123456789abcdef"[value[i] >> 4];
      text += "0123456789abcdef"[value[i] & 15];
    }
    return text;
  }

 private:
  EVP_MD_CTX* get() const { return context_.get(); }
  static void check(int done) {
    if (done != 1) throw error("libcrypto cannot compute SHA-256 on this machine; its configuration may forbid it");
  }

  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256(std::string_view bytes) {
  digest d;
  d.add(bytes.data(), bytes.size());
  return d.finish();
}

std::string sha256_of_file(const std::filesystem::path& file) {
  errno = 0;
  std::ifstream in(file, std::ios::binary);
  if (!in) throw error("cannot open " + file.string() + ": " + std::strerror(errno != 0 ? errno : EIO));
  digest d;
  std::vector<char> piece(size_t{1} << 20);
  while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())), in.gcount() > 0)
    d.add(piece.data(), static_cast<size_t>(in.gcount()));
  if (in.bad() || std::filesystem::is_directory(file)) throw error("cannot read " + file.string() + " to its end");
  return d.finish();
}

}  // namespace nibble::mistral

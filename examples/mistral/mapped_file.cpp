// SPDX-License-Identifier: Apache-2.0
#include "mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.hpp"

namespace nibble::mistral {

mapped_file::mapped_file(std::filesystem::path path) : path_(std::move(path)) {
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe would be waited for
  if (descriptor < 0) fail();
  struct stat about = {};
  const bool known = ::fstat(descriptor, &about) == 0;
  if (known && S_ISREG(about.st_mode) && about.st_size > 0) {
    size_ = static_cast<std::uint64_t>(about.st_size);
    map_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
  }
  const int failed = errno;
  ::close(descriptor);
  errno = failed;
  if (known && !S_ISREG(about.st_mode)) throw error(path_.string() + " is not a regular file");
  if (known && size_ == 0) throw error(path_.string() + " is empty");
  if (!known || map_ == MAP_FAILED) fail();
}

mapped_file::~mapped_file() {
  if (map_ != nullptr && map_ != MAP_FAILED) ::munmap(map_, size_);
}

void mapped_file::release(const std::byte* first, std::uint64_t bytes) const {
  constexpr std::uint64_t window = 65536;
  const auto base = reinterpret_cast<std::uintptr_t>(map_);
  const auto from = reinterpret_cast<std::uintptr_t>(first);
  const std::uintptr_t begin = std::max(base, from / window * window);
  const std::uintptr_t end = std::min(base + size_, (from + bytes + window - 1) / window * window);
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void mapped_file::fail() const {
  throw error("cannot read " + path_.string() + ": " + std::strerror(errno));
}

}  // namespace nibble::mistral

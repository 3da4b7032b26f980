// SPDX-License-Identifier: Apache-2.0
#include "progress.hpp"

#include <unistd.h>

#include <cstdio>

namespace nibble::mistral {

progress::progress(std::string what, index_t steps, std::string unit)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      steps_(steps),
      terminal_(::isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

progress::~progress() {
  if (open_) std::fputs("\r\033[K", stderr);
}

void progress::at(index_t done, const std::string& note) {
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
  std::string left;
  if (done > 0 && done < steps_)
    left =
        ", " + duration_text(spent.count() / static_cast<double>(done) * static_cast<double>(steps_ - done)) + " left";
  if (!terminal_) {
    std::fprintf(stderr, "%s: %s %lld of %lld%s%s%s\n", what_.c_str(), unit_.c_str(), static_cast<long long>(done),
                 static_cast<long long>(steps_), left.c_str(), note.empty() ? "" : ", ", note.c_str());
    return;
  }
  constexpr int width = 24;
  const int full = static_cast<int>(steps_ > 0 ? done * width / steps_ : width);
  std::string bar;
  for (int i = 0; i < width; ++i) bar += i < full ? "█" : "░";
  std::fprintf(stderr, "\r\033[K%s %s %lld/%lld%s%s%s", what_.c_str(), bar.c_str(), static_cast<long long>(done),
               static_cast<long long>(steps_), left.c_str(), note.empty() ? "" : "  ", note.c_str());
  std::fflush(stderr);
  open_ = true;
}

std::string duration_text(double seconds) {
  char text[48];
  const auto whole = static_cast<long long>(seconds + 0.5);
  if (seconds < 60)
    std::snprintf(text, sizeof(text), "%.1f s", seconds);
  else if (whole < 3600)
    std::snprintf(text, sizeof(text), "%lld min %02lld s", whole / 60, whole % 60);
  else
    std::snprintf(text, sizeof(text), "%lld h %02lld min", whole / 3600, whole % 3600 / 60);
  return text;
}

std::string size_text(double bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  for (; bytes >= 1000 && unit < 4; ++unit) bytes /= 1000;
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
  return text;
}

}  // namespace nibble::mistral

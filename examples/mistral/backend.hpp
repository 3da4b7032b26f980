// SPDX-License-Identifier: Apache-2.0
/// @file
/// --backend and --device of a command line.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "gpu.hpp"
#include "validators.hpp"

namespace nibble::mistral {

inline void add_backend_options(CLI::App& app, backend_options& o, const std::string& group = "") {
  CLI::Option* const backend =
      app.add_option("--backend", o.name,
                     built_with_cuda() ? "auto, cpu or cuda; auto takes a GPU where there is one"
                                       : "auto, cpu or cuda; this build has the CPU")
          ->check(CLI::IsMember({"auto", "cpu", "cuda"}).description(""))
          ->capture_default_str()
          ->type_name("NAME");
  CLI::Option* const device =
      app.add_option("--device", o.device,
                     "Which GPU, as CUDA numbers them from 0; asks for one as --backend cuda does")
          ->check(whole(0, 1023))
          ->type_name("N");
  if (group.empty()) return;
  backend->group(group);
  device->group(group);
}

}  // namespace nibble::mistral

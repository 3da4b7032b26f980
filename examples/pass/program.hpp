// SPDX-License-Identifier: Apache-2.0
/// @file
/// A program that is a pass: the command line that all of them share, to which each adds its methods and their options, and
/// the run.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "pass/options.hpp"

namespace nibble::mistral {

class pass_program {
 public:
  /// @param name lives as long as the process. @param does what --help says first. @param o the program's defaults.
  pass_program(const char* name, const std::string& does, const pass_options& o = {});
  pass_program(const pass_program&) = delete;
  pass_program& operator=(const pass_program&) = delete;

  /// --method, the first of them unless it is given. @param help tells one from the other.
  void offer_methods(const std::vector<method>& offered, const std::string& help);
  /// --loss, --duo-scaling, --n-grid: the search for scaling::awq.
  void add_scale_search();
  /// --clip
  void add_clip();
  /// --sweeps
  void add_sweeps();
  /// --shrinkage
  void add_shrinkage();
  /// --propagate
  void add_propagation();
  /// --dampening-frac, --actorder, --drift: the solver for rounding::gptq.
  void add_solver();

  /// --smoothing-strength, --smoothed-inputs: the search for scaling::smooth.
  void add_smoothing();

  /// Reads the command line and does what it says. @returns the exit status.
  int run(int argc, char** argv);

 private:
  template <class T>
  CLI::Option* add_choice(const std::string& name, T& value, const std::vector<choice<T>>& choices,
                          const std::string& help, const std::string& given);
  template <class T, size_t N>
  CLI::Option* add_choice(const std::string& name, T& value, const choice<T> (&choices)[N], const std::string& help);
  void add_model();
  void add_packing();
  void add_data();
  void add_machine();
  /// Remembers that a recipe decides what `option` does.
  void decided_by_recipe(CLI::Option* option);
  void check_recipe_alone() const;
  int run();

  CLI::App app_;
  pass_options o_;
  std::string shard_ = "5GB", strength_ = "auto";
  CLI::Option *recipe_ = nullptr, *drift_ = nullptr, *residual_drift_ = nullptr;
  std::vector<CLI::Option*> decided_by_recipe_;
};

}  // namespace nibble::mistral

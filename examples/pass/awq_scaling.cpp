// SPDX-License-Identifier: Apache-2.0
#include "pass/awq_scaling.hpp"

namespace nibble::mistral {

host::awq_result search_awq_scale(const layer_task& t, const scale_group& group, const layer_weights& w) {
  std::vector<double> sums(static_cast<size_t>(width(t.c, group.input)), 0.0);
  index_t rows = 0;
  for (const projection p : group.linears) {
    t.on.add_importance(p, t.as(p), sums.data());
    rows += outputs(t.c, p);
  }
  const bool by_block = t.o.blocks_judged() && group.norm != nullptr;
  const auto loss = [&](const float* s) {
    if (by_block) return t.on.block_loss(group.input, t.how, s);
    double sum = 0;
    for (const projection p : group.linears) sum += t.on.scaled_loss(p, t.as(p), s);
    return sum;
  };
  const auto round = [&](std::vector<float>& s) { round_to_fold(group, w, t.stored, s); };
  return host::search_scale(t.on.absolute_mean(group.input), host::mean_importance(sums, rows), t.o.duo, t.o.grid, loss,
                            round);
}

}  // namespace nibble::mistral

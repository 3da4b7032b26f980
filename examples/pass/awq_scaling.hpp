// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's scales (docs/awq.md): those of an input's channels under which rounding what reads it loses least.
#pragma once

#include "nibble/host/awq.hpp"
#include "pass/layer.hpp"
#include "pass/scaling.hpp"

namespace nibble::mistral {

/// The best scale of a group. @pre the engine holds its linears.
host::awq_result search_awq_scale(const layer_task& t, const scale_group& group, const layer_weights& w);

}  // namespace nibble::mistral

// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a pass found as one page: a self-contained HTML file with plots in SVG, for light and dark, wide and narrow
/// screens. It is drawn from the very object that --json writes, so the two cannot disagree; numbers in tables carry
/// the unrounded value in <data value>.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace nibble::mistral {

/// @param run what --json writes. Parts without data are left out, with a line that says why.
std::string report_html(const nlohmann::ordered_json& run);

}  // namespace nibble::mistral

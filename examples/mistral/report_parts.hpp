// SPDX-License-Identifier: Apache-2.0
/// @file
/// The parts of a report page; report_page.hpp puts them together.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibble::mistral::page {

using json = nlohmann::ordered_json;

/// The page's style sheet.
extern const char* const style;

/// json[key], or null where there is none.
const json& at(const json& object, const std::string& key);
/// NaN for what is no number.
double value(const json& number);
/// "?" for what is no string.
std::string text(const json& string);
/// The last part of a path.
std::string file_name(const json& path);

/// <data> with the unrounded number, and `shown`, which is escaped.
std::string data(const json& number, const std::string& shown);
std::string section(const std::string& id, const std::string& title, const std::string& lead, const std::string& body);
/// A section of one line that says why there is no more.
std::string left_out(const std::string& id, const std::string& title, const std::string& why);
std::string figure(const std::string& title, const std::string& note, const std::string& svg);
std::string grid(const std::vector<std::string>& figures);
/// A legend's key: a dot in a class of the plots.
std::string key(const std::string& style, const std::string& words);

/// What this pass is called among the models.
std::string own_name(const json& run);

std::string results(const json& run);
std::string shift_by_position(const json& run);
std::string losses(const json& run);
std::string ratios(const json& run);
std::string ranges(const json& run);
std::string weights(const json& run);
std::string activations(const json& run);
/// This run beside an earlier one; nothing where none was given.
std::string earlier(const json& run);
std::string figures_by_layer(const json& run);
std::string made(const json& run);

}  // namespace nibble::mistral::page

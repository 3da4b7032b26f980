// SPDX-License-Identifier: Apache-2.0
#include "svg.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>

#include "utf8.hpp"

namespace nibble::mistral::svg {

namespace {

constexpr double left = 40, right = 8, top = 22, bottom = 34;

std::string fixed(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", value);
  return text;
}

std::string raised(int power) {
  static constexpr const char* digits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string out = power < 0 ? "⁻" : "";
  for (const char digit : std::to_string(std::abs(power))) out += digits[digit - '0'];
  return out;
}

std::string tick_text(const axis& a, double tick) {
  if (a.style == tick_style::percent) return number(100 * tick) + " %";
  const double power = a.log && tick > 0 ? std::log10(tick) : 0.5;
  const bool plain = power > -2.5 && power < 3.5;
  if (a.log && !plain && std::fabs(power - std::round(power)) < 1e-6)
    return "10" + raised(static_cast<int>(std::lround(power)));
  return number(tick);
}

/// An id of HTML, which has no spaces: other bytes than letters, digits, '-' and '.' become _ and their code.
std::string identifier(const std::string& name) {
  static constexpr char hex[] = "0123456789abcdef";
  std::string out;
  for (const char letter : name) {
    const auto code = static_cast<unsigned char>(letter);
    if ((code < 0x80 && std::isalnum(code) != 0) || letter == '-' || letter == '.')
      out += letter;
    else
      out += {'_', hex[code >> 4], hex[code & 15]};
  }
  return out;
}

std::string named(const std::string& name) {
  return name.empty() ? "" : "<title>" + escaped(name) + "</title>";
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  for (const char letter : utf8_repaired(text)) {
    const auto code = static_cast<unsigned char>(letter);
    if (letter == '&')
      out += "&amp;";
    else if (letter == '<')
      out += "&lt;";
    else if (letter == '>')
      out += "&gt;";
    else if (letter == '"')
      out += "&quot;";
    else if (letter == '\'')
      out += "&#39;";
    else if ((code < 0x20 && letter != '\n' && letter != '\t') || code == 0x7F)
      out += "\xEF\xBF\xBD";
    else
      out += letter;
  }
  return out;
}

std::string number(double value, int digits) {
  if (!std::isfinite(value)) return "–";
  char text[48];
  std::snprintf(text, sizeof(text), "%.*g", digits, value);
  const double rounded = std::strtod(text, nullptr), size = std::fabs(rounded);
  std::string out;
  if (rounded != 0 && (size < 1e-3 || size >= 1e6)) {
    std::snprintf(text, sizeof(text), "%.*e", digits - 1, value);
    std::string mantissa(text);
    const size_t e = mantissa.find('e');
    const int power = std::atoi(mantissa.c_str() + e + 1);
    mantissa.resize(e);
    if (mantissa.find('.') != std::string::npos) {
      while (mantissa.back() == '0') mantissa.pop_back();
      if (mantissa.back() == '.') mantissa.pop_back();
    }
    out = mantissa + "·10" + raised(power);
  } else if (size >= std::pow(10.0, digits)) {
    std::snprintf(text, sizeof(text), "%.0f", rounded);
    out = text;
  } else {
    out = text;
  }
  return out.front() == '-' ? "−" + out.substr(1) : out;
}

double axis::at(double value) const {
  if (log) {
    if (!(value > 0)) return 0;
    return std::clamp((std::log(value) - std::log(low)) / (std::log(high) - std::log(low)), 0.0, 1.0);
  }
  return std::clamp((value - low) / (high - low), 0.0, 1.0);
}

axis linear_axis(double low, double high, std::string label, int count) {
  if (!(high > low)) high = low + std::max(std::fabs(low), 1e-6);
  const double rough = (high - low) / count, power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double nice : {1.0, 2.0, 2.5, 5.0})
    if (nice * power >= rough * 0.999) {
      step = nice * power;
      break;
    }
  axis a{std::floor(low / step + 1e-9) * step, std::ceil(high / step - 1e-9) * step, false, std::move(label), {}, {}};
  for (long i = std::lround(a.low / step); i <= std::lround(a.high / step); ++i)
    a.ticks.push_back(static_cast<double>(i) * step);
  return a;
}

axis log_axis(double low, double high, std::string label) {
  if (!(low > 0)) low = high > 0 ? high / 10 : 1;
  if (!(high > low)) high = low * 2;
  const int first = static_cast<int>(std::floor(std::log10(low) + 1e-9));
  const int last = static_cast<int>(std::ceil(std::log10(high) - 1e-9));
  axis a{low, high, true, std::move(label), {}, {}};
  if (last - first >= 3) {
    a.low = std::pow(10.0, first), a.high = std::pow(10.0, last);
    const int step = (last - first + 4) / 5;
    for (int i = first; i <= last; i += step) a.ticks.push_back(std::pow(10.0, i));
    return a;
  }
  std::vector<double> nice;
  for (int i = first - 1; i <= last; ++i)
    for (const double digit : {1.0, 2.0, 5.0}) nice.push_back(digit * std::pow(10.0, i));
  for (const double each : nice) {
    if (each <= low * 1.0001) a.low = each;
    if (each >= high * 0.9999) {
      a.high = each;
      break;
    }
  }
  for (const double each : nice)
    if (each >= a.low * 0.9999 && each <= a.high * 1.0001) a.ticks.push_back(each);
  return a;
}

axis layer_axis(int count, std::string label) {
  axis a{-0.5, std::max(count, 1) - 0.5, false, std::move(label), {}, {}};
  int step = 1;
  for (const int nice : {1, 2, 4, 5, 8, 10, 16, 20, 25, 50, 100, 250, 1000}) {
    step = nice;
    if (count <= 8 * nice) break;
  }
  for (int layer = 0; layer < count; layer += step) a.ticks.push_back(layer);
  return a;
}

panel::panel(axis x, axis y, int width, int height)
    : x_(std::move(x)), y_(std::move(y)), width_(width), height_(height) {}

double panel::px(double x) const {
  return left + x_.at(x) * (width_ - left - right);
}

double panel::py(double y) const {
  return height_ - bottom - y_.at(y) * (height_ - top - bottom);
}

double panel::unit_x() const {
  return (width_ - left - right) / (x_.high - x_.low);
}

void panel::line(const std::vector<point>& points, std::string_view style) {
  if (points.size() < 2) return;
  body_ += "<polyline class=\"" + std::string(style) + "\" points=\"";
  for (const point& p : points) body_ += fixed(px(p.x)) + "," + fixed(py(p.y)) + " ";
  body_.back() = '"';
  body_ += "/>\n";
}

void panel::steps(double low, double width, const std::vector<double>& levels, std::string_view style) {
  std::string path = "M" + fixed(px(low)) + " " + fixed(py(y_.low));
  for (size_t i = 0; i < levels.size(); ++i)
    path += "V" + fixed(py(levels[i])) + "H" + fixed(px(low + width * static_cast<double>(i + 1)));
  body_ += "<path class=\"" + std::string(style) + "\" d=\"" + path + "V" + fixed(py(y_.low)) + "\"/>\n";
}

void panel::dot(point at, std::string_view style, const std::string& name, bool hollow) {
  body_ += "<circle class=\"" + std::string(style) + (hollow ? " hollow" : "") + "\" cx=\"" + fixed(px(at.x)) +
           "\" cy=\"" + fixed(py(at.y)) + "\" r=\"" + (spacing_ * unit_x() < 5 ? "1.6" : "2.8") + "\">" + named(name) +
           "</circle>\n";
}

void panel::box(double x, double half, const double (&levels)[5], const std::string& name) {
  const std::string middle = fixed(px(x)), from = fixed(px(x - half)), to = fixed(px(x + half));
  body_ += "<g class=\"box\">" + named(name) + "<path class=\"stem\" d=\"M" + middle + " " + fixed(py(levels[0])) +
           "V" + fixed(py(levels[4])) + "\"/><path class=\"body\" d=\"M" + from + " " + fixed(py(levels[1])) + "H" +
           to + "V" + fixed(py(levels[3])) + "H" + from + "Z\"/><path class=\"median\" d=\"M" + from + " " +
           fixed(py(levels[2])) + "H" + to + "\"/></g>\n";
}

void panel::whisker(double low, double high, double y, std::string_view style) {
  const double at = py(y);
  const std::string from = fixed(px(low)), to = fixed(px(high));
  body_ += "<path class=\"" + std::string(style) + "\" d=\"M" + from + " " + fixed(at) + "H" + to + "M" + from + " " +
           fixed(at - 4) + "v8M" + to + " " + fixed(at - 4) + "v8\"/>\n";
}

void panel::vertical(double x, std::string_view style) {
  body_ += "<path class=\"" + std::string(style) + "\" d=\"M" + fixed(px(x)) + " " + fixed(py(y_.low)) + "V" +
           fixed(py(y_.high)) + "\"/>\n";
}

void panel::text(point at, const std::string& words, std::string_view style) {
  body_ += "<text class=\"" + std::string(style) + "\" x=\"" + fixed(px(at.x)) + "\" y=\"" + fixed(py(at.y)) + "\">" +
           escaped(words) + "</text>\n";
}

std::string panel::frame() const {
  std::string out = "<text class=\"label\" x=\"2\" y=\"11\">" + escaped(y_.label) + "</text>\n";
  const double floor = height_ - bottom;
  for (const double tick : y_.ticks) {
    const std::string y = fixed(py(tick));
    out += "<path class=\"grid\" d=\"M" + fixed(left) + " " + y + "H" + fixed(width_ - right) +
           "\"/><text class=\"y\" x=\"" + fixed(left - 5) + "\" y=\"" + fixed(py(tick) + 3.5) + "\">" +
           escaped(tick_text(y_, tick)) + "</text>\n";
  }
  out += "<path class=\"axis\" d=\"M" + fixed(left) + " " + fixed(floor) + "H" + fixed(width_ - right) + "\"/>\n";
  for (const double tick : x_.ticks) {
    const std::string x = fixed(px(tick));
    out += "<path class=\"axis\" d=\"M" + x + " " + fixed(floor) + "v3\"/><text class=\"x\" x=\"" + x + "\" y=\"" +
           fixed(floor + 14) + "\">" + escaped(tick_text(x_, tick)) + "</text>\n";
  }
  return out + "<text class=\"x label\" x=\"" + fixed((left + width_ - right) / 2) + "\" y=\"" + fixed(height_ - 5) +
         "\">" + escaped(x_.label) + "</text>\n";
}

std::string panel::str(const std::string& name, const std::string& title, const std::string& description) const {
  const std::string id = identifier(name);
  return "<svg role=\"img\" viewBox=\"0 0 " + std::to_string(width_) + " " + std::to_string(height_) +
         "\" aria-labelledby=\"" + id + "-t " + id + "-d\"><title id=\"" + id + "-t\">" + escaped(title) +
         "</title><desc id=\"" + id + "-d\">" + escaped(description) + "</desc>\n" + frame() + body_ + "</svg>\n";
}

}  // namespace nibble::mistral::svg

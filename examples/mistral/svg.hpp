// SPDX-License-Identifier: Apache-2.0
/// @file
/// Small plots as SVG for a page of our own: axes with ticks, lines, steps, dots, boxes, whiskers. Colours and type come
/// from the page's style by class, so that light and dark are the page's choice. All text is escaped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble::mistral::svg {

/// Text between tags, or in a quoted attribute. What XML cannot hold becomes U+FFFD.
std::string escaped(std::string_view text);

/// A number for people: `digits` significant, true minus, powers of ten from 10⁻⁴ down and 10⁶ up; "–" for what is no
/// number.
std::string number(double value, int digits = 3);

enum class tick_style { plain, percent };

/// From data to a direction of the plot. On a logarithmic axis, low and high are positive.
struct axis {
  double low = 0, high = 1;
  bool log = false;
  std::string label;
  std::vector<double> ticks;
  tick_style style = tick_style::plain;

  /// 0 at low, 1 at high; what lies beyond is brought to the end.
  double at(double value) const;
};

/// Rounded outward to about `count` even ticks. @param high is raised above low where it is not.
axis linear_axis(double low, double high, std::string label, int count = 4);
/// Rounded outward to powers of ten where there are several between, to 1, 2, 5 otherwise. Values not above 0 are left
/// to at().
axis log_axis(double low, double high, std::string label);
/// Layers 0 … count − 1, half a layer free at either end.
axis layer_axis(int count, std::string label = "layer");

struct point {
  double x, y;
};

/// A plot of a fixed size in its own units; the page scales it.
class panel {
 public:
  panel(axis x, axis y, int width = 272, int height = 176);

  /// How far apart along x dots are, 1 unless told: close ones are drawn small.
  void spacing(double step) { spacing_ = step; }

  /// What follows is drawn in this class: "a", "b" … as the page's style has them.
  void line(const std::vector<point>& points, std::string_view style);
  /// Levels over equal bins from `low`, closed to the axis below.
  void steps(double low, double width, const std::vector<double>& levels, std::string_view style);
  /// @param name what a pointer held over it is told.
  void dot(point at, std::string_view style, const std::string& name, bool hollow = false);
  /// Box from low to high, a bar at middle, whiskers; `half` is half its breadth in x.
  void box(double x, double half, const double (&levels)[5], const std::string& name);
  /// From low to high along x at height y.
  void whisker(double low, double high, double y, std::string_view style);
  void vertical(double x, std::string_view style);
  void text(point at, const std::string& words, std::string_view style);

  /// @param name unique on the page. @param title, description what it shows, for those who do not see it.
  std::string str(const std::string& name, const std::string& title, const std::string& description) const;

  /// Units of the plot that a step of one along x takes.
  double unit_x() const;

 private:
  double px(double x) const;
  double py(double y) const;
  std::string frame() const;

  axis x_, y_;
  int width_, height_;
  double spacing_ = 1;
  std::string body_;
};

}  // namespace nibble::mistral::svg

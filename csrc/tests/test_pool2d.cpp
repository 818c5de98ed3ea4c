// Every pooling kernel of the lists against plain loops in double, over random windows, plain and adaptive; no Python,
// no torch. Small integers, so that maxima, sums of gradients and forward averages must be exact.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/pool2d/pool2d.h"
#include "tests/check.h"

using namespace pyconv;

namespace {

struct Random {
  std::mt19937 engine{1};
  int64_t operator()(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
};

PoolAxis random_axis(Random& draw, bool adaptive, bool average) {
  if (adaptive) return {draw(1, 20), draw(0, 9), 0, 1, 0, 1};
  PoolAxis axis{0, 0, draw(1, 4), draw(1, 4), 0, average ? 1 : draw(1, 3)};
  axis.padding = draw(0, axis.kernel / 2);
  const int64_t reach = axis.dilation * (axis.kernel - 1) + 1;
  axis.in = draw(at_least(1, reach - 2 * axis.padding), 40);
  axis.out = (axis.in + 2 * axis.padding - reach) / axis.stride + 1;
  if (draw(0, 1) && axis.out * axis.stride < axis.in + axis.padding) axis.out++;  // ceil mode
  return axis;
}

Pool2dShape random_shape(Random& draw, bool average) {
  const bool adaptive = draw(0, 3) == 0;
  Pool2dShape s = {draw(0, 3),
                   draw(1, 20),
                   random_axis(draw, adaptive, average),
                   random_axis(draw, adaptive, average),
                   static_cast<DType>(draw(0, 3)),
                   static_cast<Layout>(draw(0, 1))};
  if (average && draw(0, 2) == 0) s.h = {s.h.in, 1, s.h.in, 1, 0, 1}, s.w = {s.w.in, 1, s.w.in, 1, 0, 1};
  s.count_include_pad = draw(0, 1);
  s.divisor_override = adaptive || draw(0, 2) ? 0 : draw(1, 3) * -2;
  return s;
}

// The pixels of window o, and how many an average counts, from the definition.
struct Window {
  std::vector<int64_t> pixels;
  int64_t count = 0;
};

Window window(const PoolAxis& a, int64_t o, bool include_pad) {
  Window result;
  if (a.adaptive()) {
    for (int64_t i = 0; i < a.in; i++) {
      if ((i + 1) * a.out > o * a.in && i * a.out < (o + 1) * a.in) result.pixels.push_back(i);
    }
    result.count = static_cast<int64_t>(result.pixels.size());
    return result;
  }
  for (int64_t k = 0; k < a.kernel; k++) {
    const int64_t i = o * a.stride - a.padding + k * a.dilation;
    if (i >= 0 && i < a.in) result.pixels.push_back(i);
    if ((i >= 0 && i < a.in) || (include_pad && i < a.in + a.padding)) result.count++;
  }
  return result;
}

// visit(at_y, pixels of the row, pixels of the column, divisor) for every output.
template <class Visit>
void for_outputs(const Pool2dShape& s, const Visit& visit) {
  for (int64_t n = 0; n < s.N; n++)
    for (int64_t c = 0; c < s.C; c++)
      for (int64_t oh = 0; oh < s.h.out; oh++)
        for (int64_t ow = 0; ow < s.w.out; ow++) {
          const Window rows = window(s.h, oh, s.count_include_pad), columns = window(s.w, ow, s.count_include_pad);
          const int64_t divisor = s.divisor_override ? s.divisor_override : rows.count * columns.count;
          visit(n, c, s.y_index()(n, c, oh, ow), rows.pixels, columns.pixels, static_cast<double>(divisor));
        }
}

std::vector<double> random_integers(Random& draw, int64_t count) {
  std::vector<double> values(static_cast<size_t>(count));
  for (double& v : values) v = static_cast<double>(draw(-3, 3));
  return values;
}

// Equal after rounding to T, or off by eps times the sum of absolute values, where that is given.
template <class T>
bool same(const char* what, const Typed<T>& got, const std::vector<double>& expected, double eps = 0,
          const std::vector<double>* magnitude = nullptr) {
  for (size_t i = 0; i < expected.size(); i++) {
    const double value = widen(got.data()[i]), rounded = widen(as<T>(expected[i]));
    if (value != rounded && !(magnitude && std::fabs(value - rounded) <= eps * (*magnitude)[i])) {
      std::printf("  %s[%zu] is %g, expected %g\n", what, i, value, rounded);
      return false;
    }
  }
  return true;
}

template <class T>
bool check_max(const Pool2dShape& s, const pool2d::MaxKernel& fwd, const pool2d::MaxKernel& bwd, Random& draw) {
  const auto x = random_integers(draw, s.N * s.x_index().n), dy = random_integers(draw, s.N * s.y_index().n);
  std::vector<double> expected_y(dy.size()), expected_dx(x.size());
  std::vector<int64_t> expected_index(dy.size());
  const Index4 X = s.x_index();
  for_outputs(s, [&](int64_t n, int64_t c, int64_t at, const auto& rows, const auto& columns, double) {
    double best = -std::numeric_limits<double>::infinity();
    int64_t index = -1;
    for (int64_t ih : rows)
      for (int64_t iw : columns) {
        const double v = x[X(n, c, ih, iw)];
        if (v > best) best = v, index = ih * s.w.in + iw;
      }
    expected_y[at] = best;
    expected_index[at] = index;
    if (index >= 0) expected_dx[X(n, c, index / s.w.in, index % s.w.in)] += dy[at];
  });

  const Typed<T> tx(x), tdy(dy);
  Typed<T> y(dy.size()), dx(x.size());
  const std::unique_ptr<int64_t[]> indices(new int64_t[dy.size()]);
  fwd.fwd(s, tx.data(), y.data(), {indices.get(), nullptr});
  bwd.bwd(s, tdy.data(), {indices.get(), nullptr}, dx.data());
  bool good = same("y", y, expected_y) & same("dx", dx, expected_dx);
  for (size_t i = 0; i < dy.size(); i++) good &= indices[i] == expected_index[i];

  Typed<T> values(dy.size());
  fwd.fwd(s, tx.data(), values.data(), {nullptr, nullptr});
  good &= same("y without indices", values, expected_y);
  if (s.h.adaptive() || s.w.adaptive() || s.h.dilation > 1 || s.w.dilation > 1) return good;
  Typed<T> of_taps(dy.size()), dx_of_taps(x.size());
  const std::unique_ptr<uint8_t[]> taps(new uint8_t[dy.size()]);
  fwd.fwd(s, tx.data(), of_taps.data(), {nullptr, taps.get()});
  bwd.bwd(s, tdy.data(), {nullptr, taps.get()}, dx_of_taps.data());
  return good & same("y with taps", of_taps, expected_y) & same("dx from taps", dx_of_taps, expected_dx);
}

template <class T>
bool check_avg(const Pool2dShape& s, const pool2d::AvgKernel& kernel, Random& draw) {
  const auto x = random_integers(draw, s.N * s.x_index().n), dy = random_integers(draw, s.N * s.y_index().n);
  std::vector<double> expected_y(dy.size()), expected_dx(x.size()), magnitude(x.size());
  const Index4 X = s.x_index();
  for_outputs(s, [&](int64_t n, int64_t c, int64_t at, const auto& rows, const auto& columns, double divisor) {
    double sum = 0;
    for (int64_t ih : rows)
      for (int64_t iw : columns) {
        sum += x[X(n, c, ih, iw)];
        expected_dx[X(n, c, ih, iw)] += dy[at] / divisor;
        magnitude[X(n, c, ih, iw)] += std::fabs(dy[at] / divisor);
      }
    expected_y[at] = sum / divisor;
  });

  const Typed<T> tx(x), tdy(dy);
  Typed<T> y(dy.size()), dx(x.size());
  kernel.fwd(s, tx.data(), y.data());
  kernel.bwd(s, tdy.data(), dx.data());
  const double eps = s.dtype == DType::f64 ? 1e-14 : s.dtype == DType::f32 ? 1e-6 : s.dtype == DType::f16 ? 1e-3 : 8e-3;
  return same("y", y, expected_y) & same("dx", dx, expected_dx, eps, &magnitude);
}

// Maxima put back where they stood: the plane holds them, and gathering finds them again.
template <class T>
bool check_unpool(const Pool2dShape& s, const pool2d::UnpoolKernel& kernel, Random& draw) {
  const auto pooled = random_integers(draw, s.N * s.y_index().n);
  const Index4 X = s.x_index(), Y = s.y_index();
  std::vector<double> expected(static_cast<size_t>(s.N * X.n)), found(pooled.size());
  std::vector<int64_t> indices(pooled.size());
  for (int64_t& index : indices) index = draw(0, s.h.in * s.w.in - 1);
  for (int64_t pass = 0; pass < 2; pass++)
    for (int64_t n = 0; n < s.N; n++)
      for (int64_t c = 0; c < s.C; c++)
        for (int64_t o = 0; o < s.h.out * s.w.out; o++) {
          const int64_t at = Y(n, c, o / s.w.out, o % s.w.out);
          const int64_t to = X(n, c, indices[at] / s.w.in, indices[at] % s.w.in);
          if (pass == 0) expected[to] = pooled[at];
          if (pass == 1) found[at] = expected[to];
        }
  const Typed<T> tp(pooled);
  Typed<T> plane(expected.size()), back(pooled.size());
  kernel.fwd(s, tp.data(), indices.data(), plane.data());
  kernel.bwd(s, plane.data(), indices.data(), back.data());
  return same("plane", plane, expected) & same("back", back, found);
}

void print_axis(const char* name, const PoolAxis& a) {
  std::printf(" %s in%ld out%ld k%ld s%ld p%ld d%ld", name, long(a.in), long(a.out), long(a.kernel), long(a.stride),
              long(a.padding), long(a.dilation));
}

struct Tally {
  int cases = 0, bad = 0;
  void operator()(bool good, const char* op, const std::string& algorithm, const Pool2dShape& s) {
    cases++;
    if (good) return;
    bad++;
    std::printf("%s %s %s %s n%ld c%ld", op, algorithm.c_str(), name_of(s.dtype), name_of(s.layout), long(s.N),
                long(s.C));
    print_axis("h", s.h);
    print_axis("w", s.w);
    std::printf(" include_pad%d divisor%ld\n", s.count_include_pad, long(s.divisor_override));
  }
};

// Shapes until `count` of them are ones that a kernel takes.
template <class WhyNot, class Check>
void run(Random& draw, bool average, int count, const WhyNot& why_not, const Check& check) {
  while (count > 0) {
    const Pool2dShape s = random_shape(draw, average);
    if (!why_not(s).empty()) continue;
    count--;
    check(s);
  }
}

}  // namespace

int main() {
  if (!set_up()) return skipped;
  Random draw;
  Tally tally;
  for (const std::string& name : pool2d::max_algorithms()) {
    const auto why_not = [&](const Pool2dShape& s) {
      for (const Answer& answer : pool2d::ask_max(s, Pass::fwd, Ask::able)) {
        if (answer.kernel == name) return answer.why;
      }
      return std::string();
    };
    run(draw, false, 250, why_not, [&](const Pool2dShape& s) {
      const auto& fwd = pool2d::choose_max("max_pool2d", s, Pass::fwd, name);
      const bool any_indices = s.h.adaptive();
      const auto& bwd = pool2d::choose_max("max_pool2d", s, Pass::bwd_input, any_indices ? "" : name);
      with_type(s.dtype, [&](auto type) { tally(check_max<decltype(type)>(s, fwd, bwd, draw), "max", name, s); });
    });
  }
  for (const std::string& name : pool2d::avg_algorithms()) {
    const auto why_not = [&](const Pool2dShape& s) {
      for (const Answer& answer : pool2d::ask_avg(s, Pass::fwd, Ask::able)) {
        if (answer.kernel == name) return answer.why;
      }
      return std::string();
    };
    run(draw, true, 250, why_not, [&](const Pool2dShape& s) {
      const auto& kernel = pool2d::choose_avg("avg_pool2d", s, Pass::fwd, name);
      with_type(s.dtype, [&](auto type) { tally(check_avg<decltype(type)>(s, kernel, draw), "avg", name, s); });
    });
  }
  for (const std::string& name : pool2d::unpool_algorithms()) {
    run(
        draw, false, 150, [](const Pool2dShape&) { return std::string(); },
        [&](const Pool2dShape& s) {
          const auto& kernel = pool2d::choose_unpool("max_unpool2d", s, Pass::fwd, name);
          with_type(s.dtype,
                    [&](auto type) { tally(check_unpool<decltype(type)>(s, kernel, draw), "unpool", name, s); });
        });
  }
  std::printf("%d poolings on %s, %d wrong\n", tally.cases, name_of(isa()), tally.bad);
  return tally.bad != 0;
}

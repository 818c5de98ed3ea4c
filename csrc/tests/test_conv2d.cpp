// Every convolution kernel of the list against plain loops in double, over random geometry; no Python, no torch.
// Small integers, so that every type but bf16 and f16 must be exact, and they to one rounding; but for Winograd, whose
// transforms round.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/conv2d.h"
#include "tests/check.h"

using namespace pyconv;

namespace {

struct Random {
  std::mt19937 engine{1};
  int64_t operator()(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
};

Conv2dShape random_shape(Random& draw) {
  Conv2dShape s;
  do {
    s.N = draw(0, 3), s.G = draw(1, 3);
    s.IC = s.G * draw(1, 5), s.OC = s.G * draw(1, 20);
    s.IH = draw(1, 18), s.IW = draw(1, 18), s.KH = draw(1, 4), s.KW = draw(1, 4);
    s.SH = draw(1, 4), s.SW = draw(1, 4), s.PH = draw(0, 4), s.PW = draw(0, 4), s.DH = draw(1, 3), s.DW = draw(1, 3);
    s.OH = (s.IH + 2 * s.PH - s.DH * (s.KH - 1) - 1 + s.SH) / s.SH;
    s.OW = (s.IW + 2 * s.PW - s.DW * (s.KW - 1) - 1 + s.SW) / s.SW;
  } while (s.IH + 2 * s.PH <= s.DH * (s.KH - 1) || s.IW + 2 * s.PW <= s.DW * (s.KW - 1));
  if (draw(0, 2) == 0) {  // what Winograd accepts
    s.KH = 1 + 2 * draw(0, 3), s.KW = s.KH > 1 ? 1 + 2 * draw(0, 3) : 3, s.SH = s.SW = 1;
    s.IH += s.DH * (s.KH - 1), s.IW += s.DW * (s.KW - 1);
    s.OH = s.IH + 2 * s.PH - s.DH * (s.KH - 1), s.OW = s.IW + 2 * s.PW - s.DW * (s.KW - 1);
  }
  s.dtype = static_cast<DType>(draw(0, 3));
  s.layout = static_cast<Layout>(draw(0, 1));
  return s;
}

// The sum itself, scattered: each product goes to y, dx and dw at once.
struct Expected {
  std::vector<double> y, dx, dw, db;
};

Expected plain_loops(const Conv2dShape& s, const std::vector<double>& x, const std::vector<double>& w,
                     const std::vector<double>& b, const std::vector<double>& dy) {
  const Index4 X = s.x_index(), W = s.w_index(), Y = s.y_index();
  Expected e{std::vector<double>(dy.size()), std::vector<double>(x.size()), std::vector<double>(w.size()),
             std::vector<double>(s.OC)};
  for (int64_t n = 0; n < s.N; n++)
    for (int64_t oc = 0; oc < s.OC; oc++)
      for (int64_t oh = 0; oh < s.OH; oh++)
        for (int64_t ow = 0; ow < s.OW; ow++) {
          const int64_t at_y = Y(n, oc, oh, ow), g = oc / s.oc_per_group();
          e.y[at_y] += b[oc];
          e.db[oc] += dy[at_y];
          for (int64_t ic = 0; ic < s.ic_per_group(); ic++)
            for (int64_t kh = 0; kh < s.KH; kh++)
              for (int64_t kw = 0; kw < s.KW; kw++) {
                const int64_t ih = oh * s.SH - s.PH + kh * s.DH, iw = ow * s.SW - s.PW + kw * s.DW;
                if (ih < 0 || ih >= s.IH || iw < 0 || iw >= s.IW) continue;
                const int64_t at_x = X(n, g * s.ic_per_group() + ic, ih, iw), at_w = W(oc, ic, kh, kw);
                e.y[at_y] += x[at_x] * w[at_w];
                e.dx[at_x] += dy[at_y] * w[at_w];
                e.dw[at_w] += dy[at_y] * x[at_x];
              }
        }
  return e;
}

template <class T>
bool same(const char* what, const Typed<T>& got, const std::vector<double>& expected, bool exact) {
  const double eps = std::is_same_v<T, double> ? 1e-13 : std::is_same_v<T, float> ? 2e-5 : 1e-2;
  double allowed = 0;
  for (double e : expected) allowed = exact ? 0 : std::max(allowed, eps * (1 + std::abs(e)));
  for (size_t i = 0; i < expected.size(); i++) {
    const double value = widen(got.data()[i]), rounded = widen(as<T>(expected[i]));
    if (!(std::abs(value - rounded) <= allowed)) {
      std::printf("  %s[%zu] is %g, expected %g\n", what, i, value, rounded);
      return false;
    }
  }
  return true;
}

template <class T>
bool check(const Conv2dShape& s, const std::string& algorithm, Random& draw) {
  std::vector<double> x(s.N * s.IC * s.IH * s.IW), w(s.OC * s.ic_per_group() * s.KH * s.KW), b(s.OC);
  std::vector<double> dy(s.N * s.OC * s.OH * s.OW), residual(dy.size());
  for (auto* values : {&x, &w, &b, &dy, &residual}) {
    for (double& v : *values) v = static_cast<double>(draw(-3, 3));
  }
  Expected e = plain_loops(s, x, w, b, dy);
  const bool exact = algorithm != "winograd";
  const bool add = draw(0, 1), relu = draw(0, 1);
  const double ceiling = draw(0, 1) && exact ? 9 : HUGE_VAL;
  for (size_t i = 0; i < e.y.size(); i++) {
    if (add) e.y[i] += residual[i];
    if (relu) e.y[i] = std::min(std::max(e.y[i], 0.0), ceiling);
  }
  const Typed<T> tx(x), tw(w), tb(b), tdy(dy), tresidual(residual);
  Typed<T> y(e.y.size()), dx(e.dx.size()), dw(e.dw.size()), db(e.db.size());
  const Epilogue epilogue = {tb.data(), add ? tresidual.data() : nullptr, relu, ceiling};
  conv2d::fwd(s, tx.data(), tw.data(), epilogue, y.data(), algorithm);
  conv2d::bwd_input(s, tdy.data(), tw.data(), dx.data(), algorithm);
  conv2d::bwd_weight(s, tdy.data(), tx.data(), dw.data(), algorithm);
  conv2d::bwd_bias(s, tdy.data(), db.data());
  const int64_t bytes = conv2d::packed_bytes(s, algorithm);
  if (bytes > 0) {
    std::vector<char> packed(bytes);
    conv2d::pack(s, tw.data(), packed.data(), algorithm);
    Typed<T> again(e.y.size());
    conv2d::fwd_packed(s, tx.data(), tw.data(), packed.data(), bytes, epilogue, again.data(), algorithm);
    if (!same("y from packed weights", again, e.y, exact)) return false;
  }
  return same("y", y, e.y, exact) & same("dx", dx, e.dx, exact) & same("dw", dw, e.dw, exact) &
         same("db", db, e.db, true);
}

// Whether the kernel takes the shape in all directions; if not it must say why.
bool accepts(const std::string& algorithm, const Conv2dShape& s) {
  bool all = true;
  for (Pass pass : {Pass::fwd, Pass::bwd_input, Pass::bwd_weight}) {
    for (const Answer& answer : conv2d::ask(s, pass, Ask::able)) {
      if (answer.kernel == algorithm) all = all && answer.why.empty();
    }
  }
  return all;
}

}  // namespace

int main() {
  if (!set_up()) return skipped;
  Random draw;
  int bad = 0, cases = 0;
  for (const std::string& algorithm : conv2d::algorithms()) {
    for (int i = 0; i < 150; i++, cases++) {
      Conv2dShape s = random_shape(draw);
      while (!accepts(algorithm, s)) s = random_shape(draw);
      bool good = false;
      with_type(s.dtype, [&](auto type) { good = check<decltype(type)>(s, algorithm, draw); });
      if (good) continue;
      bad++;
      std::printf("%s %s %s n%ldg%ldic%ldih%ldiw%ldoc%ldkh%ldkw%ldsh%ldsw%ldph%ldpw%lddh%lddw%ld\n", algorithm.c_str(),
                  name_of(s.dtype), name_of(s.layout), long(s.N), long(s.G), long(s.IC), long(s.IH), long(s.IW),
                  long(s.OC), long(s.KH), long(s.KW), long(s.SH), long(s.SW), long(s.PH), long(s.PW), long(s.DH),
                  long(s.DW));
    }
  }
  std::printf("%d convolutions on %s, %d wrong\n", cases, name_of(isa()), bad);
  return bad != 0;
}

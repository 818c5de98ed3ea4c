// What a channel is normalised with, the vocabulary of planes.h and pixels.h, included once per ISA by each.

#include "cpu/cut.h"
#include "cpu/finish.h"

constexpr int64_t samples = 8;  // values of a channel, whose mean is the first guess at the channel's

struct Sums {
  double first, second;
};

// Mean and variance from the sums of d and d^2 over M values, d = x - shift.
struct Moments {
  double mean, var, beside;
  Moments(double shift, const Sums& d, double M) : beside(d.first / M) {
    mean = shift + beside;
    const double v = d.second / M - beside * beside;
    var = v < 0 ? 0 : v;  // NaN stays
  }
  // The variance is the difference of numbers 64 times as large: sums in float32 leave it 4 digits.
  bool far() const { return beside * beside > 64 * var; }
};

template <class A>
double scale_of(const NormShape& s, double var, const A* weight, int64_t c) {
  return (weight ? weight[c] : 1) / __builtin_sqrt(var + s.eps);
}

// y = (x - shift) * factor + offset;  dx = g * factor + (x - shift) * slope + offset.
template <class A>
struct Line {
  A shift, factor, offset, slope;
  // A mean that A cannot hold arrives as a rounded shift and the rest in offset.
  Line(double mean, double scale, double bias)
      : shift(A(mean)), factor(A(scale)), offset(A(bias - (mean - shift) * scale)), slope(0) {}
  // dx = weight * r * (g - sum(g)/M - d * r^2 * sum(g*d)/M)
  static Line of_gradient(A mean, double r, double weight, const Sums& g, double M) {
    Line line(0, weight * r, 0);
    line.shift = mean;
    line.offset = A(-weight * r * g.first / M);
    line.slope = A(-weight * r * r * r * g.second / M);
    return line;
  }
};

// The gradient that reaches the normalised values: dy, and after a relu only where it let something pass.
template <class T, bool relu>
struct Upstream {
  using A = acc_t<T>;
  const T *dy, *y;
  A ceiling;  // NaN for none
  template <class Get>
  inline __attribute__((always_inline)) vec<A> operator()(const Get& get, int64_t i) const {
    const vec<A> g = get(dy + i, A(0));
    if constexpr (!relu) return g;
    const vec<A> v = get(y + i, A(0));
    return (v <= 0) | (v >= ceiling) ? vec<A>{} : g;  // a NaN lets pass, as torch's does
  }
};

// What a channel is normalised with, the vocabulary of planes.h and pixels.h, included once per ISA by each.

#include "cpu/cut.h"
#include "cpu/finish.h"

struct Sums {
  double first, second;
  void operator+=(const Sums& other) { first += other.first, second += other.second; }
};

// Mean and variance from the sums of d and d^2 over M values, d = x - shift.
struct Moments {
  double mean, var, beside;
  Moments(double shift, const Sums& d, double M) : beside(d.first / M) {
    mean = shift + beside;
    const double v = d.second / M - beside * beside;
    var = v < 0 ? 0 : v;  // NaN stays
  }
  // The variance is the difference of numbers `times` as large: at 64 sums in float32 leave it 4 digits, at 8 5.
  bool far(double times) const { return beside * beside > times * var; }
};

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

PYCONV_INLINE vec<double> square_root(vec<double> v) {
#if PYCONV_BYTES == 64
  return (vec<double>)_mm512_sqrt_pd((__m512d)v);
#elif PYCONV_BYTES == 32
  return (vec<double>)_mm256_sqrt_pd((__m256d)v);
#else
  for (int i = 0; i < Vec<double>::size; i++) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// The lines of all channels. P is C, or a multiple of it where vectors hold channels: then they are repeated.
template <class A>
struct Lines {
  int64_t C, P;
  A *shift, *factor, *offset, *slope;
  Lines(int64_t C, int64_t P)
      : C(C),
        P(P),
        shift(static_cast<A*>(scratch(1, 4 * sizeof(A) * P))),
        factor(shift + P),
        offset(factor + P),
        slope(offset + P) {}
  void set(int64_t c, const Line<A>& line) const {
    for (int64_t p = c; p < P; p += C) {
      shift[p] = line.shift, factor[p] = line.factor, offset[p] = line.offset, slope[p] = line.slope;
    }
  }
  void of_statistics(const NormShape& s, int64_t c, const Moments& found, const A* weight, const A* bias) const {
    set(c, Line<A>(found.mean, (weight ? weight[c] : 1) / __builtin_sqrt(found.var + s.eps), bias ? bias[c] : 0));
  }
  // Of all channels, a vector of roots at a time: for 2048 channels one by one is a third of an evaluation of 8x2048x7x7.
  void of_statistics(const NormShape& s, const A* mean, const A* var, const A* weight, const A* bias) const {
    constexpr int64_t L = Vec<double>::size;
    for (int64_t c0 = 0; c0 < C; c0 += L) {
      const int64_t count = at_most(C - c0, L);
      double r[L];
      for (int64_t l = 0; l < L; l++) r[l] = l < count ? var[c0 + l] + s.eps : 1;
      store(r, 1 / square_root(load(r)));
      for (int64_t l = 0; l < count; l++) {
        const int64_t c = c0 + l;
        shift[c] = mean[c], factor[c] = A(weight ? weight[c] * r[l] : r[l]), offset[c] = bias ? bias[c] : 0;
      }
    }
    for (int64_t p = C; p < P; p++) shift[p] = shift[p - C], factor[p] = factor[p - C], offset[p] = offset[p - C];
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
    const vec<A> g = get(dy + i, vec<A>{});
    if constexpr (!relu) return g;
    const vec<A> v = get(y + i, vec<A>{});
    return (v <= 0) | (v >= ceiling) ? vec<A>{} : g;  // a NaN lets pass, as torch's does
  }
};

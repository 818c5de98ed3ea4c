// What a channel is normalised with, the vocabulary of planes.h and pixels.h, included once per ISA by each.

#include "cpu/cut.h"
#include "cpu/finish.h"

// What is summed per channel, (C,) each.
struct Sums {
  double *first, *second;

  // The sums of d and d^2 over M values, d = x - shift, become mean and variance, of channels [c0, c1).
  template <class A>
  void become_moments(int64_t c0, int64_t c1, const A* shift, double M) const {
    const double share = 1 / M;
    for (int64_t c = c0; c < c1; c++) {
      const double beside = first[c] * share, var = second[c] * share - beside * beside;
      first[c] = shift[c] + beside;
      second[c] = var < 0 ? 0 : var;  // NaN stays
    }
  }
  // Whether the variance was the difference of numbers `times` as large: at 64 sums in float32 leave it 4 digits, at 8 5.
  bool far(int64_t c, double shift, double times) const {
    return (first[c] - shift) * (first[c] - shift) > times * second[c];
  }
};

PYCONV_INLINE vec<double> square_root(vec<double> v) {
#if PYCONV_BYTES == 64
  return (vec<double>)_mm512_maskz_sqrt_pd(0xff, (__m512d)v);
#elif PYCONV_BYTES == 32
  return (vec<double>)_mm256_sqrt_pd((__m256d)v);
#else
  for (int i = 0; i < Vec<double>::size; i++) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// f(c, r) with r = 1 / sqrt(var[c] + eps) for channels [c0, c1), a vector of roots at a time: for 2048 channels one by
// one they were a third of an evaluation of 8x2048x7x7.
template <class S, class F>
PYCONV_INLINE void for_roots(int64_t c0, int64_t c1, const S* var, double eps, const F& f) {
  constexpr int64_t L = Vec<double>::size;
  for (int64_t c = c0; c < c1; c += L) {
    const int64_t count = at_most(c1 - c, L);
    double r[L];
    for (int64_t l = 0; l < L; l++) r[l] = l < count ? var[c + l] + eps : 1;
    store(r, 1 / square_root(load(r)));
    for (int64_t l = 0; l < count; l++) f(c + l, r[l]);
  }
}

// y = (x - shift) * factor + offset;  dx = g * factor + (x - shift) * slope + offset, of every channel. P is C, or a
// multiple of it where vectors hold channels: then what is set is to be repeated.
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

  // A mean that A cannot hold arrives as a rounded shift and the rest in offset.
  template <class S>
  void of_statistics(const NormShape& s, int64_t c0, int64_t c1, const S* mean, const S* var, const A* weight,
                     const A* bias) const {
    for_roots(c0, c1, var, s.eps, [&](int64_t c, double r) {
      const double scale = weight ? weight[c] * r : r;
      shift[c] = A(mean[c]), factor[c] = A(scale);
      offset[c] = A((bias ? bias[c] : 0) - (double(mean[c]) - shift[c]) * scale);
    });
  }

  // dbias = sum g,  dweight = r * sum g*d,  dx = weight * r * (g - (sum g + d * r^2 * sum g*d) / M),  d = x - mean.
  void of_gradient(const NormShape& s, int64_t c0, int64_t c1, const A* mean, const A* var, const A* weight,
                   const Sums& sums, A* dweight, A* dbias) const {
    const double share = -1. / at_least(s.per_channel(), 1);
    const bool training = s.training;
    for_roots(c0, c1, var, s.eps, [&](int64_t c, double r) {
      const double scale = weight ? weight[c] * r : r;
      dbias[c] = A(sums.first[c]), dweight[c] = A(sums.second[c] * r);
      shift[c] = mean[c], factor[c] = A(scale);
      offset[c] = training ? A(scale * sums.first[c] * share) : 0;
      slope[c] = training ? A(scale * r * r * sums.second[c] * share) : 0;
    });
  }

  void repeat() const {
    for (A* of : {shift, factor, offset, slope}) {
      for (int64_t p = C; p < P; p++) of[p] = of[p - C];
    }
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
    const vec<A> v = get(y + i, vec<A>{}), below = v >= ceiling ? vec<A>{} : keep(g);
    return v <= 0 ? vec<A>{} : below;  // a NaN lets pass, as torch's does
  }
  template <class Get>
  inline __attribute__((always_inline)) void fetch(const Get& get, int64_t i) const {
    get.fetch(dy + i);
    if constexpr (relu) get.fetch(y + i);
  }
};

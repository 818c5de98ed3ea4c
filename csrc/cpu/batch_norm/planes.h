// batch_norm / planes: float32, NCHW, one channel at a time.
// Computes  the formulas of reference.cpp. With mean' the mean rounded to float, and sums of d = x - mean':
//             mean = mean' + sum d / M        var = (sum d^2 - (sum d)^2 / M) / M
//           so that neither the rounding of mean' nor a mean large beside the deviation costs digits
// Shapes    x (N,C,H*W): a channel is N runs of H*W adjacent values
// Tiling    thread: channels; registers: U vectors of pixels for each of the two sums
// Cost      the passes of a channel follow one another, so that all but the first read it from cache; no workspace
// Limits    float32 and NCHW (else why_not says so). Sums run in float for at least `run` values, then in double
// Source    Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 1.7
namespace planes {
namespace {

constexpr int64_t L = Vec<float>::size;  // lanes: pixels
constexpr int U = 4;                     // independent sums, enough to hide the latency of an addition
constexpr int64_t run = 4096;            // values summed in float before the sum moves to double
constexpr int64_t serial_values = 16384;
using V = vec<float>;

struct Sums {
  double first, second;
};

PYCONV_INLINE double total(const V (&v)[U]) {
  const V sum = (v[0] + v[1]) + (v[2] + v[3]);
  double all = 0;
  for (int64_t i = 0; i < L; i++) all += sum[i];
  return all;
}

// Loads a whole vector, or the last `count` values of a plane with `rest` in the lanes beyond.
struct Whole {
  V operator()(const float* p, float) const { return load(p); }
};
struct Last {
  int64_t count;
  V operator()(const float* p, float rest) const {
    V v = splat(rest);
    for (int64_t i = 0; i < count; i++) v[i] = p[i];
    return v;
  }
};

// Two sums over channel c: term(get, i, first, second) adds the vector that get() loads at offset i to each.
template <class Term>
PYCONV_INLINE Sums sum_channel(const NormShape& s, int64_t c, const Term& term) {
  const int64_t size = s.plane();
  Sums sums = {0, 0};
  V first[U] = {}, second[U] = {};
  int64_t pending = 0;
  for (int64_t n = 0; n < s.N; n++) {
    int64_t i = (n * s.C + c) * size;
    const int64_t end = i + size;
    for (; i + U * L <= end; i += U * L) {
      _Pragma("GCC unroll 4") for (int u = 0; u < U; u++) term(Whole(), i + u * L, first[u], second[u]);
    }
    for (; i + L <= end; i += L) term(Whole(), i, first[0], second[0]);
    if (i < end) term(Last{end - i}, i, first[0], second[0]);
    pending += size;
    if (pending < run && n + 1 < s.N) continue;
    sums.first += total(first), sums.second += total(second);
    for (int u = 0; u < U; u++) first[u] = second[u] = V{};
    pending = 0;
  }
  return sums;
}

// y[i] = f(get, i) over channel c.
template <class F>
PYCONV_INLINE void map_channel(const NormShape& s, int64_t c, float* y, const F& f) {
  const int64_t size = s.plane();
  for (int64_t n = 0; n < s.N; n++) {
    int64_t i = (n * s.C + c) * size;
    const int64_t end = i + size;
    for (; i + L <= end; i += L) store(y + i, f(Whole(), i));
    if (i < end) store_first(y + i, f(Last{end - i}, i), end - i);
  }
}

// y = (x - shift) * scale + offset. A mean that float cannot hold arrives as a rounded shift and the rest in offset.
void normalise(const NormShape& s, int64_t c, const float* x, double mean, double scale, double bias, float* y) {
  const float shift = float(mean), factor = float(scale), offset = float(bias - (mean - shift) * scale);
  map_channel(s, c, y, [&](auto get, int64_t i) { return (get(x + i, 0) - shift) * factor + offset; });
}

double scale_of(const NormShape& s, int64_t c, double var, const void* weight) {
  return (weight ? ((const float*)weight)[c] : 1) / __builtin_sqrt(var + s.eps);
}

template <class Body>
void for_channels(const NormShape& s, const Body& body) {
  parallel_for(s.C, divide_up(serial_values, at_least(s.per_channel(), 1)), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) body(c);
  });
}

}  // namespace

void train(const NormShape& s, const void* x_, const batch_norm::Affine& p, void* y, void* mean, void* var) {
  const float* x = (const float*)x_;
  const double M = at_least(s.per_channel(), 1);
  for_channels(s, [&](int64_t c) {
    const Sums x_sum = sum_channel(s, c, [&](auto get, int64_t i, V& sum, V&) { sum += get(x + i, 0); });
    const float shift = float(x_sum.first / M);
    const Sums d_sum = sum_channel(s, c, [&](auto get, int64_t i, V& sum, V& squares) {
      const V d = get(x + i, shift) - shift;
      sum += d;
      squares += d * d;
    });
    const double m = shift + d_sum.first / M, v = (d_sum.second - d_sum.first * d_sum.first / M) / M;
    ((float*)mean)[c] = float(m);
    ((float*)var)[c] = float(v);
    normalise(s, c, x, m, scale_of(s, c, v, p.weight), p.bias ? ((const float*)p.bias)[c] : 0, (float*)y);
  });
}

void eval(const NormShape& s, const void* x, const batch_norm::Statistics& given, const batch_norm::Affine& p,
          void* y) {
  const float *mean = (const float*)given.mean, *var = (const float*)given.var, *bias = (const float*)p.bias;
  for_channels(s, [&](int64_t c) {
    normalise(s, c, (const float*)x, mean[c], scale_of(s, c, var[c], p.weight), bias ? bias[c] : 0, (float*)y);
  });
}

void bwd(const NormShape& s, const void* dy_, const void* x_, const batch_norm::Statistics& given, const void* weight,
         const batch_norm::Gradients& out) {
  const float *dy = (const float*)dy_, *x = (const float*)x_;
  const float *mean = (const float*)given.mean, *var = (const float*)given.var;
  const double M = at_least(s.per_channel(), 1);
  for_channels(s, [&](int64_t c) {
    const float shift = mean[c];
    const Sums sums = sum_channel(s, c, [&](auto get, int64_t i, V& dy_sum, V& dy_d_sum) {
      const V g = get(dy + i, 0);
      dy_sum += g;
      dy_d_sum += g * (get(x + i, shift) - shift);
    });
    const double r = scale_of(s, c, var[c], nullptr), scale = scale_of(s, c, var[c], weight);
    ((float*)out.dbias)[c] = float(sums.first);
    ((float*)out.dweight)[c] = float(sums.second * r);
    if (!s.training) return normalise(s, c, dy, 0, scale, 0, (float*)out.dx);
    // dx = scale * (dy - dbias/M - d * r^2 * sum(dy*d)/M)
    const float a = float(scale), b = float(-scale * r * r * sums.second / M), k = float(-scale * sums.first / M);
    map_channel(s, c, (float*)out.dx,
                [&](auto get, int64_t i) { return get(dy + i, 0) * a + ((get(x + i, 0) - shift) * b + k); });
  });
}

}  // namespace planes

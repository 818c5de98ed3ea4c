// batch_norm / planes: NCHW, one channel at a time.
// Computes  the formulas of reference.cpp. With mean' a mean not quite exact, and sums of d = x - mean':
//             mean = mean' + sum d / M        var = (sum d^2 - (sum d)^2 / M) / M
//           so that neither the rounding of mean' nor a mean large beside the deviation costs digits
// Shapes    x (N,C,H*W): a channel is N runs of H*W adjacent values
// Tiling    thread: channels; registers: U vectors of pixels for each of the two sums
// Cost      the passes of a channel follow one another, so that all but the first read it from cache; no workspace
// Limits    NCHW (else why_not says so). Sums run in acc_t<T> for some `run` values, then in double
// Source    Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 1.7
namespace planes {
namespace {

constexpr int U = 4;           // independent sums, enough to hide the latency of an addition
constexpr int64_t run = 4096;  // values, rounded up to whole planes
constexpr int64_t serial_values = 16384;

// Loads a whole vector, or the last `count` values of a plane with `rest` in the lanes beyond.
struct Whole {
  template <class T>
  vec<acc_t<T>> operator()(const T* p, acc_t<T>) const {
    return load_wide(p);
  }
};
struct Last {
  int64_t count;
  template <class T>
  vec<acc_t<T>> operator()(const T* p, acc_t<T> rest) const {
    vec<acc_t<T>> v = load_wide_first(p, count);
    for (int64_t i = count; i < Vec<acc_t<T>>::size; i++) v[i] = rest;
    return v;
  }
};

struct Sums {
  double first, second;
};

template <class A>
PYCONV_INLINE double total(const vec<A> (&v)[U]) {
  return sum_lanes<A>((v[0] + v[1]) + (v[2] + v[3]));
}

// Two sums over channel c: term(get, i, first, second) adds the vector that get() loads at offset i to each.
template <class A, class Term>
PYCONV_INLINE Sums sum_channel(const NormShape& s, int64_t c, const Term& term) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t size = s.plane();
  Sums sums = {0, 0};
  vec<A> first[U] = {}, second[U] = {};
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
    sums.first += total<A>(first), sums.second += total<A>(second);
    for (int u = 0; u < U; u++) first[u] = second[u] = vec<A>{};
    pending = 0;
  }
  return sums;
}

// y[i] = f(get, i) over channel c.
template <class T, class F>
PYCONV_INLINE void map_channel(const NormShape& s, int64_t c, T* y, const F& f) {
  constexpr int64_t L = Vec<acc_t<T>>::size;
  const int64_t size = s.plane();
  for (int64_t n = 0; n < s.N; n++) {
    int64_t i = (n * s.C + c) * size;
    const int64_t end = i + size;
    for (; i + L <= end; i += L) store_narrow(y + i, f(Whole(), i));
    if (i < end) store_narrow_first(y + i, f(Last{end - i}, i), end - i);
  }
}

// y = (x - shift) * scale + offset. A mean that A cannot hold arrives as a rounded shift and the rest in offset.
template <class T>
void normalise(const NormShape& s, int64_t c, const T* x, double mean, double scale, double bias, T* y) {
  using A = acc_t<T>;
  const A shift = A(mean), factor = A(scale), offset = A(bias - (mean - shift) * scale);
  map_channel(s, c, y, [&](auto get, int64_t i) { return (get(x + i, A(0)) - shift) * factor + offset; });
}

template <class A>
double scale_of(const NormShape& s, int64_t c, double var, const A* weight) {
  return (weight ? weight[c] : 1) / __builtin_sqrt(var + s.eps);
}

template <class Body>
void for_channels(const NormShape& s, const Body& body) {
  parallel_for(s.C, divide_up(serial_values, at_least(s.per_channel(), 1)), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) body(c);
  });
}

template <class T, class A>
void train(const NormShape& s, const T* x, const A* weight, const A* bias, T* y, A* mean, A* var) {
  const double M = at_least(s.per_channel(), 1);
  for_channels(s, [&](int64_t c) {
    const Sums x_sum =
        sum_channel<A>(s, c, [&](auto get, int64_t i, vec<A>& sum, vec<A>&) { sum += get(x + i, A(0)); });
    const A shift = A(x_sum.first / M);
    const Sums d_sum = sum_channel<A>(s, c, [&](auto get, int64_t i, vec<A>& sum, vec<A>& squares) {
      const vec<A> d = get(x + i, shift) - shift;
      sum += d;
      squares += d * d;
    });
    const double m = shift + d_sum.first / M, v = (d_sum.second - d_sum.first * d_sum.first / M) / M;
    mean[c] = A(m);
    var[c] = A(v);
    normalise(s, c, x, m, scale_of(s, c, v, weight), bias ? bias[c] : 0, y);
  });
}

template <class T, class A>
void eval(const NormShape& s, const T* x, const A* mean, const A* var, const A* weight, const A* bias, T* y) {
  for_channels(s,
               [&](int64_t c) { normalise(s, c, x, mean[c], scale_of(s, c, var[c], weight), bias ? bias[c] : 0, y); });
}

template <class T, class A>
void bwd(const NormShape& s, const T* dy, const T* x, const A* mean, const A* var, const A* weight, T* dx, A* dweight,
         A* dbias) {
  const double M = at_least(s.per_channel(), 1);
  for_channels(s, [&](int64_t c) {
    const A shift = mean[c];
    const Sums sums = sum_channel<A>(s, c, [&](auto get, int64_t i, vec<A>& dy_sum, vec<A>& dy_d_sum) {
      const vec<A> g = get(dy + i, A(0));
      dy_sum += g;
      dy_d_sum += g * (get(x + i, shift) - shift);
    });
    const double r = 1 / __builtin_sqrt(var[c] + s.eps), scale = scale_of(s, c, var[c], weight);
    dbias[c] = A(sums.first);
    dweight[c] = A(sums.second * r);
    if (!s.training) return normalise(s, c, dy, 0, scale, 0, dx);
    // dx = scale * (dy - dbias/M - d * r^2 * sum(dy*d)/M)
    const A a = A(scale), b = A(-scale * r * r * sums.second / M), k = A(-scale * sums.first / M);
    map_channel(s, c, dx,
                [&](auto get, int64_t i) { return get(dy + i, A(0)) * a + ((get(x + i, A(0)) - shift) * b + k); });
  });
}

}  // namespace

void train(const NormShape& s, const void* x, const batch_norm::Affine& p, void* y, void* mean, void* var) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    train(s, (const T*)x, (const A*)p.weight, (const A*)p.bias, (T*)y, (A*)mean, (A*)var);
  });
}

void eval(const NormShape& s, const void* x, const batch_norm::Statistics& given, const batch_norm::Affine& p,
          void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    eval(s, (const T*)x, (const A*)given.mean, (const A*)given.var, (const A*)p.weight, (const A*)p.bias, (T*)y);
  });
}

void bwd(const NormShape& s, const void* dy, const void* x, const batch_norm::Statistics& given, const void* weight,
         const batch_norm::Gradients& out) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    bwd(s, (const T*)dy, (const T*)x, (const A*)given.mean, (const A*)given.var, (const A*)weight, (T*)out.dx,
        (A*)out.dweight, (A*)out.dbias);
  });
}

}  // namespace planes

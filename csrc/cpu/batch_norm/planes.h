// batch_norm / planes: NCHW, one channel at a time.
// Computes  the formulas of reference.cpp, act(v) = min(max(v + residual, 0), ceiling) where asked. Sums of d = x - shift:
//             mean = shift + sum d / M        var = (sum d^2 - (sum d)^2 / M) / M
//           where shift is the mean of some values. Should it lie so far from the mean that var loses digits, the channel
//           is summed again around its mean
// Shapes    x (N,C,H*W): a channel is N runs of H*W adjacent values
// Tiling    thread: a channel, or a part of its images where channels are few; registers: U vectors for each of two sums
// Cost      x is read once from memory and once more from cache, backward dy and x; no workspace
// Limits    NCHW (else why_not says so). Sums run in acc_t<T> for some `run` values, then in double
// Source    Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 1.7
namespace planes {
namespace {

#include "cpu/batch_norm/channel.h"

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
template <class A>
struct Last {
  typedef decltype(vec<A>{} < vec<A>{}) Mask;
  int64_t count;
  Mask beyond;
  explicit Last(int64_t count) : count(count) {
    for (int64_t i = 0; i < Vec<A>::size; i++) beyond[i] = i < count ? 0 : -1;
  }
  template <class T>
  vec<A> operator()(const T* p, A rest) const {
    return beyond ? splat(rest) : load_wide_first(p, count);
  }
};

// Channel c of images [n0, n1).
struct Part {
  int64_t c, n0, n1;
};

template <class A>
PYCONV_INLINE double total(const vec<A> (&v)[U]) {
  return sum_lanes<A>((v[0] + v[1]) + (v[2] + v[3]));
}

// Two sums over a part: term(get, i, first, second) adds the vector that get() loads at offset i to each.
template <class A, class Term>
PYCONV_INLINE Sums sum_part(const NormShape& s, const Part& part, const Term& term) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t size = s.plane();
  const Last<A> last(size % L);
  Sums sums = {0, 0};
  vec<A> first[U] = {}, second[U] = {};
  int64_t pending = 0;
  for (int64_t n = part.n0; n < part.n1; n++) {
    int64_t i = (n * s.C + part.c) * size;
    const int64_t end = i + size;
    for (; i + U * L <= end; i += U * L) {
      _Pragma("GCC unroll 4") for (int u = 0; u < U; u++) term(Whole(), i + u * L, first[u], second[u]);
    }
    _Pragma("GCC unroll 3") for (int u = 0; u < U - 1; u++) {
      if (i + L > end) break;
      term(Whole(), i, first[u], second[u]);
      i += L;
    }
    if (i < end) term(last, i, first[U - 1], second[U - 1]);
    pending += size;
    if (pending < run && n + 1 < part.n1) continue;
    sums.first += total<A>(first), sums.second += total<A>(second);
    for (int u = 0; u < U; u++) first[u] = second[u] = vec<A>{};
    pending = 0;
  }
  return sums;
}

// f(get, put, i) for every vector of a part; put(p, v) stores what get() loaded.
template <class A, class F>
PYCONV_INLINE void for_part(const NormShape& s, const Part& part, const F& f) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t size = s.plane(), rest = size % L;
  const Last<A> last(rest);
  for (int64_t n = part.n0; n < part.n1; n++) {
    int64_t i = (n * s.C + part.c) * size;
    const int64_t end = i + size - rest;
    _Pragma("GCC unroll 4") for (; i < end; i += L) {
      f(Whole(), [](const auto& to, auto* p, vec<A> v) { to.store(p, v); }, i);
    }
    if (rest) f(last, [&](const auto& to, auto* p, vec<A> v) { to.store_first(p, v, rest); }, i);
  }
}

// How images are cut where there are too few channels for the threads: by the shape alone.
struct Parts {
  int64_t C, N, each;
  explicit Parts(const NormShape& s) : C(s.C), N(s.N), each(at_least(at_most(16 / at_least(s.C, 1), s.N), 1)) {}
  Part operator()(int64_t i) const { return {i / each, N * (i % each) / each, N * (i % each + 1) / each}; }

  // sums(part) of all parts, added per channel; then found(c, sums), and then(part). One after the other for a channel
  // that is whole, so that the second finds it in cache.
  template <class Add, class Found, class Then>
  void run(int64_t values, const Add& add, const Found& found, const Then& then) const {
    if (each == 1) {
      return parallel_for(C, divide_up(serial_values, at_least(values, 1)), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; c++) {
          found(c, add({c, 0, N}));
          then({c, 0, N});
        }
      });
    }
    Sums* sums = static_cast<Sums*>(scratch(0, sizeof(Sums) * C * each));
    const int64_t grain = divide_up(serial_values, at_least(values / each, 1));
    parallel_for(C * each, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) sums[i] = add((*this)(i));
    });
    for (int64_t c = 0; c < C; c++) {
      Sums all = {0, 0};
      for (int64_t i = 0; i < each; i++) {
        all.first += sums[c * each + i].first, all.second += sums[c * each + i].second;
      }
      found(c, all);
    }
    parallel_for(C * each, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) then((*this)(i));
    });
  }
};

// The mean of some values of channel c: near enough to the mean that sums of squares around it keep their digits.
template <class T>
acc_t<T> some_mean(const NormShape& s, int64_t c, const T* x) {
  const int64_t size = s.plane();
  acc_t<T> sum[2] = {0, 0};
  if (s.per_channel() == 0) return 0;
  for (int64_t k = 0; k < samples; k++) {
    sum[k % 2] += widen(x[(k * s.N / samples * s.C + c) * size + k * size / samples]);
  }
  return (sum[0] + sum[1]) / samples;
}

template <class T, class A>
PYCONV_NOINLINE Sums deviations(const NormShape& s, const Part& part, const T* x, A shift) {
  return sum_part<A>(s, part, [&](auto get, int64_t i, vec<A>& sum, vec<A>& squares) {
    const vec<A> d = get(x + i, shift) - shift;
    sum += d;
    squares += d * d;
  });
}

// y = act((x - shift) * factor + offset).
template <class T, class A>
PYCONV_NOINLINE void normalise(const NormShape& s, const Part& part, const T* x, const Line<A>& line,
                               const Finish<T>& finish, T* y) {
  const A shift = line.shift, factor = line.factor, offset = line.offset;
  for_part<A>(s, part,
              [&](auto get, auto put, int64_t i) { put(finish, y + i, (get(x + i, A(0)) - shift) * factor + offset); });
}

template <class T, class A>
void train(const NormShape& s, const T* x, const A* weight, const A* bias, const Finish<T>& finish, T* y, A* mean,
           A* var) {
  const double M = at_least(s.per_channel(), 1);
  const Parts parts(s);
  Line<A>* lines = static_cast<Line<A>*>(scratch(1, sizeof(Line<A>) * s.C));
  parts.run(
      s.per_channel(),
      [&](const Part& part) {
        const A shift = some_mean(s, part.c, x);
        if (part.n0 == 0) lines[part.c].shift = shift;
        return deviations(s, part, x, shift);
      },
      [&](int64_t c, const Sums& sums) {
        Moments found(lines[c].shift, sums, M);
        if (found.far()) {
          const A nearer = A(found.mean);
          found = Moments(nearer, deviations(s, {c, 0, s.N}, x, nearer), M);
        }
        mean[c] = A(found.mean);
        var[c] = A(found.var);
        lines[c] = Line<A>(found.mean, scale_of(s, found.var, weight, c), bias ? bias[c] : 0);
      },
      [&](const Part& part) { normalise(s, part, x, lines[part.c], finish, y); });
}

template <class T, class A>
void eval(const NormShape& s, const T* x, const A* mean, const A* var, const A* weight, const A* bias,
          const Finish<T>& finish, T* y) {
  const Parts parts(s);
  const int64_t values = at_least(s.per_channel() / parts.each, 1);
  parallel_for(s.C * parts.each, divide_up(serial_values, values), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t c = parts(i).c;
      normalise(s, parts(i), x, Line<A>(mean[c], scale_of(s, var[c], weight, c), bias ? bias[c] : 0), finish, y);
    }
  });
}

// sum g and sum g * (x - shift).
template <class T, class A, bool relu>
PYCONV_NOINLINE Sums products(const NormShape& s, const Part& part, const Upstream<T, relu>& up, const T* x, A shift) {
  return sum_part<A>(s, part, [&](auto get, int64_t i, vec<A>& g_sum, vec<A>& g_d_sum) {
    const vec<A> g = up(get, i);
    g_sum += g;
    g_d_sum += g * (get(x + i, shift) - shift);
  });
}

// dx = g * factor + (x - shift) * slope + offset, and g itself where the residual wants it.
template <class T, class A, bool relu>
PYCONV_NOINLINE void finish_bwd(const NormShape& s, const Part& part, const Upstream<T, relu>& up, const T* x,
                                const Line<A>& line, T* dx, T* dresidual) {
  const A shift = line.shift, slope = line.slope, factor = line.factor, offset = line.offset;
  const bool training = s.training;
  const Finish<T> plain;
  for_part<A>(s, part, [&](auto get, auto put, int64_t i) {
    const vec<A> g = up(get, i), d = training ? get(x + i, A(0)) - shift : vec<A>{};
    if (dresidual) put(plain, dresidual + i, g);
    put(plain, dx + i, g * factor + (d * slope + offset));
  });
}

template <class T, class A, bool relu>
void bwd(const NormShape& s, const Upstream<T, relu>& up, const T* x, const A* mean, const A* var, const A* weight,
         T* dx, T* dresidual, A* dweight, A* dbias) {
  const double M = at_least(s.per_channel(), 1);
  Line<A>* lines = static_cast<Line<A>*>(scratch(1, sizeof(Line<A>) * s.C));
  Parts(s).run(
      s.per_channel(), [&](const Part& part) { return products<T, A, relu>(s, part, up, x, mean[part.c]); },
      [&](int64_t c, const Sums& sums) {
        const double r = 1 / __builtin_sqrt(var[c] + s.eps), w = weight ? weight[c] : 1;
        dbias[c] = A(sums.first);
        dweight[c] = A(sums.second * r);
        lines[c] = s.training ? Line<A>::of_gradient(mean[c], r, w, sums, M) : Line<A>(0, w * r, 0);
      },
      [&](const Part& part) { finish_bwd<T, A, relu>(s, part, up, x, lines[part.c], dx, dresidual); });
}

}  // namespace

#include "cpu/batch_norm/passes.h"

}  // namespace planes

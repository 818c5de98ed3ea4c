// batch_norm / pixels: channels_last, all channels of a pixel side by side.
// Computes  the formulas of reference.cpp and the sums of planes.h. Memory is one run of values whose channels repeat with
//           period C, and so with period P, the least multiple of C that whole vectors fill: rows of P values
// Shapes    x (N*H*W*C,) as rows of P values, the last row as far as it goes;  partial sums (parts,2,P) in double
// Tiling    thread: parts of the rows, whose number depends on the shape alone; registers: for sums a tile of some rows of
//           `width` vectors, whose two sums stay in registers; one vector where there is a result to write
// Memory    tensors that together exceed the last-level cache: what a tile reads `ahead` of itself is fetched in the order
//           of memory, and results go past the caches, which then keep the operands from the first reading to the second
// Cost      x is read twice, backward dy and x; workspace: 16*P bytes per part, and some values for each of P channels
// Limits    channels_last (else why_not says so). Sums run in acc_t<T> over `run` rows, then in double
// Source    Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 1.7
namespace pixels {
namespace {

#include "cpu/batch_norm/channel.h"
#include "cpu/stream.h"

// Measured on two Zen 5 cores, float32. Sums of 8x64x112x112 take 0.38, 0.58, 0.98 ms for one, two, three operands in
// tiles of one vector and 4 rows; 0.22, 0.46, 0.76 in these, where a plain loop that only loads takes 0.29, 0.57, 1.09.
constexpr int width = PYCONV_BYTES == 64 ? 8 : 4;  // of 4 and 8 vectors 8 won in most shapes, by up to 10 %
constexpr int64_t tall = 16;                       // rows of a tile: 8 rows up to 15 % slower, 4 rows up to 30 %
constexpr int64_t near_values = 4096;  // of a tile that the cache holds; 16 rows of 1024 channels took 10 % longer
template <class T>
constexpr int64_t ahead = 8192 / sizeof(T);  // 4096 bytes 0 to 5 % slower, not fetching 10 to 25 % where three are read
constexpr int64_t run = 32;                  // rows whose sums are in acc_t<T>: sums of short sums round less
constexpr int64_t part_values = 16384;       // least of a part
constexpr int64_t most_parts = 256;
constexpr int64_t serial_sums = 32768;
constexpr int64_t samples = 8;  // values of a channel, whose mean is the first guess at the channel's

// A vector of the tensor, or the first `count` lanes of one.
template <bool far>
struct Whole {
  template <class T>
  vec<acc_t<T>> operator()(const T* at, vec<acc_t<T>>) const {
    return load_wide(at);
  }
  template <class T>
  void put(T* to, vec<acc_t<T>> v) const {
    far ? stream_narrow(to, v) : store_narrow(to, v);
  }
  // Told what will be read some time later.
  template <class... P>
  void fetch(P... later) const {
    if (far) (__builtin_prefetch(later), ...);
  }
};
template <class A>
struct Last {
  int64_t count;
  template <class T>
  vec<A> operator()(const T* at, vec<A>) const {
    return load_wide_first(at, count);
  }
  template <class T>
  void put(T* to, vec<A> v) const {
    store_narrow_first(to, v, count);
  }
  template <class... P>
  void fetch(P...) const {}
};

// A vector that is streamed must not cross a cache line.
inline bool may_stream(const void* to) { return reinterpret_cast<uintptr_t>(to) % PYCONV_BYTES == 0; }

// The rows and how they are cut.
template <class A>
struct Rows {
  static constexpr int64_t L = Vec<A>::size;
  int64_t C, M, P, values, rows, parts;
  // What the pass reads and writes exceeds the caches. Streaming then costs the reader of the results nothing: what of
  // them would be in the cache is not where it starts. A copy, then a training pass, then a copy of its results: 40 MB
  // each 1.04 times as fast, 26 MB 1.08, 19 MB 1.04, 13 MB 1.15; 10 MB 1.00, and 6 MB, where all fit, 0.85.
  bool far;

  Rows(const NormShape& s, int64_t bytes_per_value)
      : C(s.C),
        M(s.per_channel()),
        P(s.C),
        values(s.C * s.per_channel()),
        far(values * bytes_per_value > last_cache_bytes) {
    while (P % L != 0) P += C;
    rows = divide_up(values, P);
    const int64_t least = at_least(at_least(run, divide_up(part_values, P)), divide_up(rows, most_parts));
    parts = at_least(rows / least, 1);
  }
  int64_t cut(int64_t part) const { return rows * part / parts; }

  // body(part) for all; with `back` a thread's last part first: what it read last is in cache.
  template <class Body>
  void for_parts(bool back, const Body& body) const {
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) body(back ? begin + end - 1 - i : i);
    });
  }

  // f(get, i, p) for the vectors of a part, in the order of memory.
  template <class F>
  inline __attribute__((always_inline)) void for_vectors(int64_t part, bool far, const F& f) const {
    const int64_t r0 = cut(part), r1 = cut(part + 1), whole = at_most(r1, values / P);
    const auto walk = [&](auto get) __attribute__((always_inline)) {
      for (int64_t r = r0; r < whole; r++) {
        for (int64_t p = 0; p < P; p += L) f(get, r * P + p, p);
      }
    };
    if (far) {
      walk(Whole<true>());
      streamed();
    } else {
      walk(Whole<false>());
    }
    if (whole < r1) for_last(f);
  }

  // Those of the last row, if that is not whole.
  template <class F>
  inline __attribute__((always_inline)) void for_last(const F& f) const {
    const int64_t whole = values / P;
    for (int64_t i = whole * P; i < values; i += L) f(Last<A>{at_most(values - i, L)}, i, i - whole * P);
  }
};

// Two sums over `count` rows of channels [p, P), V vectors at a time, or as many as there are: term(get, i, p, first,
// second, later) adds a vector to each. `later` is where to read what will be asked for: in the order of memory, whatever
// the order here.
template <int V, bool far, class A, class Term>
PYCONV_INLINE void sum_tiles(int64_t P, int64_t r, int64_t count, int64_t p, int64_t later, const Term& term, A* sums) {
  constexpr int64_t L = Vec<A>::size;
  for (; p + V * L <= P; p += V * L) {
    vec<A> first[V], second[V];
    _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) {
      first[v] = load(sums + p + v * L), second[v] = load(sums + P + p + v * L);
    }
    for (int64_t k = 0, i = r * P + p; k < count; k++, i += P, later += V * L) {
      _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) {
        term(Whole<far>(), i + v * L, p + v * L, first[v], second[v], later + v * L);
      }
    }
    _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) {
      store(sums + p + v * L, first[v]), store(sums + P + p + v * L, second[v]);
    }
  }
  if constexpr (V > 1) sum_tiles<V / 2, far>(P, r, count, p, later, term, sums);
}

// Of a part, (2,P) in double.
template <bool far, class A, class Term>
PYCONV_INLINE void sum_rows(const Rows<A>& rows, int64_t part, int64_t ahead, const Term& term, A* sums, double* out) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t P = rows.P, r1 = rows.cut(part + 1), whole = at_most(r1, rows.values / P);
  const int64_t height = far ? tall : at_most(tall, at_least(near_values / P, 4));
  for (int64_t k = 0; k < 2 * P; k++) out[k] = 0;
  for (int64_t r = rows.cut(part); r < whole; r += run) {
    for (int64_t k = 0; k < 2 * P; k++) sums[k] = 0;
    for (int64_t from = r; from < at_most(whole, r + run); from += height) {
      const int64_t count = at_most(at_most(whole, r + run) - from, height);
      sum_tiles<width, far>(P, from, count, 0, from * P + at_least(ahead, count * P), term, sums);
    }
    for (int64_t k = 0; k < 2 * P; k++) out[k] += sums[k];
  }
  if (whole == r1) return;
  rows.for_last([&](auto get, int64_t i, int64_t p) {
    vec<A> first = {}, second = {};
    term(get, i, p, first, second, i);
    for (int64_t l = 0; l < at_most(rows.values - i, L); l++) out[p + l] += first[l], out[P + p + l] += second[l];
  });
}

// Two sums of every channel: sum(part, (2,P) of working memory, (2,P) of results) of all parts, added in their order.
template <class A, class Sum>
Sums sum_channels(const Rows<A>& rows, const Sum& sum) {
  const int64_t C = rows.C, P = rows.P, repeats = P / at_least(C, 1);
  double* partial = static_cast<double*>(scratch(0, sizeof(double) * rows.parts * 2 * P));
  rows.for_parts(
      false, [&](int64_t part) { sum(part, static_cast<A*>(scratch(2, sizeof(A) * 2 * P)), partial + part * 2 * P); });
  double* memory = static_cast<double*>(scratch(3, 2 * sizeof(double) * C));
  const Sums sums = {memory, memory + C};
  parallel_for(C, divide_up(serial_sums, at_least(2 * repeats * rows.parts, 1)), [&](int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; c++) sums.first[c] = sums.second[c] = 0;
    for (int64_t i = 0; i < rows.parts * repeats; i++) {
      const double* row = partial + i / repeats * 2 * P + i % repeats * C;
      for (int64_t c = c0; c < c1; c++) sums.first[c] += row[c];
      for (int64_t c = c0; c < c1; c++) sums.second[c] += row[P + c];
    }
  });
  return sums;
}

template <class T, class A>
PYCONV_NOINLINE void deviations(Rows<A> rows, int64_t part, const T* x, const A* shift, A* working, double* out) {
  const auto term = [&](auto get, int64_t i, int64_t p, vec<A>& sum, vec<A>& squares, int64_t later) {
    get.fetch(x + later);
    const vec<A> d = get(x + i, vec<A>{}) - load(shift + p);
    sum += d;
    squares += d * d;
  };
  rows.far ? sum_rows<true>(rows, part, ahead<T>, term, working, out)
           : sum_rows<false>(rows, part, 0, term, working, out);
}

// y = act((x - shift) * factor + offset).
template <class T, class A>
PYCONV_NOINLINE void normalise(Rows<A> rows, int64_t part, const T* x, Lines<A> lines, Finish<T> finish, T* y) {
  rows.for_vectors(part, rows.far && may_stream(y), [&](auto get, int64_t i, int64_t p) {
    vec<A> v = (get(x + i, vec<A>{}) - load(lines.shift + p)) * load(lines.factor + p) + load(lines.offset + p);
    if (finish.residual) v += get(finish.residual + i, vec<A>{});
    get.put(y + i, finish.clipped(v));
  });
}

// The mean of some values of every channel: see channel.h.
template <class T, class A>
void some_means(const Rows<A>& rows, const T* x, const Lines<A>& lines) {
  const int64_t count = at_most(rows.M, samples);
  for (int64_t c = 0; c < rows.C; c++) lines.shift[c] = 0;
  for (int64_t k = 0; k < count; k++) {
    const T* pixel = x + k * rows.M / count * rows.C;
    for (int64_t c = 0; c < rows.C; c++) lines.shift[c] += widen(pixel[c]);
  }
  for (int64_t c = 0; c < rows.C; c++) lines.shift[c] /= A(at_least(count, 1));
  lines.repeat();
}

template <class T, class A>
void train(const NormShape& s, const T* x, const A* weight, const A* bias, const Finish<T>& finish, T* y, A* mean,
           A* var) {
  const Rows<A> rows(s, (finish.residual ? 3 : 2) * sizeof(T));
  const Lines<A> lines(rows.C, rows.P);
  const double M = at_least(rows.M, 1);
  some_means(rows, x, lines);
  const auto find = [&] {
    const Sums found = sum_channels(
        rows, [&](int64_t part, A* working, double* out) { deviations(rows, part, x, lines.shift, working, out); });
    found.become_moments(0, s.C, lines.shift, M);
    return found;
  };
  Sums found = find();
  bool far = false;
  for (int64_t c = 0; c < s.C; c++) far |= found.far(c, lines.shift[c], 64);
  if (far) {  // the other channels too: one loop serves all
    for (int64_t c = 0; c < s.C; c++) lines.shift[c] = A(found.first[c]);
    lines.repeat();
    found = find();
  }
  for (int64_t c = 0; c < s.C; c++) mean[c] = A(found.first[c]), var[c] = A(found.second[c]);
  lines.of_statistics(s, 0, s.C, found.first, found.second, weight, bias);
  lines.repeat();
  rows.for_parts(true, [&](int64_t part) { normalise(rows, part, x, lines, finish, y); });
}

template <class T, class A>
void eval(const NormShape& s, const T* x, const A* mean, const A* var, const A* weight, const A* bias,
          const Finish<T>& finish, T* y) {
  const Rows<A> rows(s, (finish.residual ? 3 : 2) * sizeof(T));
  const Lines<A> lines(rows.C, rows.P);
  lines.of_statistics(s, 0, s.C, mean, var, weight, bias);
  lines.repeat();
  rows.for_parts(false, [&](int64_t part) { normalise(rows, part, x, lines, finish, y); });
}

// sum g and sum g * (x - shift).
template <class T, class A, bool relu>
PYCONV_NOINLINE void products(Rows<A> rows, int64_t part, Upstream<T, relu> up, const T* x, const A* shift, A* working,
                              double* out) {
  const auto term = [&](auto get, int64_t i, int64_t p, vec<A>& g_sum, vec<A>& g_d_sum, int64_t later) {
    up.fetch(get, later);
    get.fetch(x + later);
    const vec<A> g = up(get, i);
    g_sum += g;
    g_d_sum += g * (get(x + i, vec<A>{}) - load(shift + p));
  };
  rows.far ? sum_rows<true>(rows, part, ahead<T>, term, working, out)
           : sum_rows<false>(rows, part, 0, term, working, out);
}

// dx = g * factor + (x - shift) * slope + offset, and g itself where the residual wants it.
template <class T, class A, bool relu>
PYCONV_NOINLINE void finish_bwd(Rows<A> rows, int64_t part, bool training, Upstream<T, relu> up, const T* x,
                                Lines<A> lines, T* dx, T* dresidual) {
  const bool far = rows.far && may_stream(dx) && may_stream(dresidual);
  rows.for_vectors(part, far, [&](auto get, int64_t i, int64_t p) {
    up.fetch(get, i + ahead<T>);
    get.fetch(x + i + ahead<T>);
    const vec<A> g = up(get, i), d = training ? get(x + i, vec<A>{}) - load(lines.shift + p) : vec<A>{};
    if (dresidual) get.put(dresidual + i, g);
    get.put(dx + i, g * load(lines.factor + p) + (d * load(lines.slope + p) + load(lines.offset + p)));
  });
}

template <class T, class A, bool relu>
void bwd(const NormShape& s, const Upstream<T, relu>& up, const T* x, const A* mean, const A* var, const A* weight,
         T* dx, T* dresidual, A* dweight, A* dbias) {
  const Rows<A> rows(s, (3 + relu + (dresidual ? 1 : 0)) * sizeof(T));
  const Lines<A> lines(rows.C, rows.P);
  for (int64_t c = 0; c < s.C; c++) lines.shift[c] = mean[c];
  lines.repeat();
  const Sums sums = sum_channels(rows, [&](int64_t part, A* working, double* out) {
    products<T, A, relu>(rows, part, up, x, lines.shift, working, out);
  });
  lines.of_gradient(s, 0, s.C, mean, var, weight, sums, dweight, dbias);
  lines.repeat();
  rows.for_parts(true,
                 [&](int64_t part) { finish_bwd<T, A, relu>(rows, part, s.training, up, x, lines, dx, dresidual); });
}

}  // namespace

#include "cpu/batch_norm/passes.h"

}  // namespace pixels

// batch_norm / pixels: channels_last, all channels of a pixel side by side.
// Computes  the formulas of reference.cpp and the sums of planes.h. Memory is one run of values whose channels repeat with
//           period C, and so with period P, the least multiple of C that whole vectors fill: rows of P values
// Shapes    x (N*H*W*C,) as rows of P values, the last row as far as it goes;  partial sums (parts,2,P) in double
// Tiling    thread: parts of the rows, whose number depends on the shape alone; registers: one vector of B rows at a time
//           for sums, so that what is kept per channel is read once for B rows; of one row where there is a result to
//           write (two Zen 5 cores, 8x256x56x56: 0.42 ms against 0.83 in evaluation, where several rows are written)
// Cost      x is read twice, backward dy and x; workspace: 16*P bytes per part, and some values for each of P channels
// Limits    channels_last (else why_not says so). Sums run in acc_t<T> over `run` rows, then in double
// Source    Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 1.7
namespace pixels {
namespace {

#include "cpu/batch_norm/channel.h"

constexpr int B = 4;                    // rows summed at a time
constexpr int64_t run = 32;             // rows whose sums are in acc_t<T>: sums of short sums round less
constexpr int64_t part_values = 16384;  // least of a part
constexpr int64_t most_parts = 256;
constexpr int64_t serial_sums = 32768;
constexpr int64_t samples = 8;  // values of a channel, whose mean is the first guess at the channel's

// Where a vector starts: offset `i` in the tensor, `p` in a row.
struct Whole {
  template <class T>
  vec<acc_t<T>> operator()(const T* at, vec<acc_t<T>>) const {
    return load_wide(at);
  }
};
template <class A>
struct Last {
  int64_t count;
  template <class T>
  vec<A> operator()(const T* at, vec<A>) const {
    return load_wide_first(at, count);
  }
};

// The rows and how they are cut.
template <class A>
struct Rows {
  static constexpr int64_t L = Vec<A>::size;
  int64_t C, M, P, values, rows, parts;

  explicit Rows(const NormShape& s) : C(s.C), M(s.per_channel()), P(s.C), values(s.C * s.per_channel()) {
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

  // Of rows [r0, r1), B at a time: many(i, p, rows) for every vector of B whole rows or of one, where row b of them has
  // its vector at i + b * P; and last(get, i, p) for the last vector of all, which may not be whole.
  template <int B, class Many, class LastOne>
  inline __attribute__((always_inline)) void walk(int64_t r0, int64_t r1, const Many& many, const LastOne& last) const {
    const int64_t whole = at_most(r1, values / P);
    int64_t r = r0;
    for (; r + B <= whole; r += B) {
      for (int64_t p = 0; p < P; p += L) many(r * P + p, p, Int<B>());
    }
    for (; r < whole; r++) {
      for (int64_t p = 0; p < P; p += L) many(r * P + p, p, Int<1>());
    }
    if (r == r1) return;
    for (int64_t p = 0; r * P + p < values; p += L) last(Last<A>{at_most(values - r * P - p, L)}, r * P + p, p);
  }
};

// Two sums of a part, (P,) each in double: term(get, i, p, first, second) adds a vector to each.
template <class A, class Term>
PYCONV_INLINE void sum_rows(const Rows<A>& rows, int64_t part, const Term& term, A* sums, double* out) {
  constexpr int64_t L = Vec<A>::size;
  A* squares = sums + rows.P;
  for (int64_t k = 0; k < 2 * rows.P; k++) out[k] = 0;
  const int64_t r1 = rows.cut(part + 1);
  for (int64_t r = rows.cut(part); r < r1; r += run) {
    for (int64_t k = 0; k < 2 * rows.P; k++) sums[k] = 0;
    rows.template walk<B>(
        r, at_most(r + run, r1),
        [&](int64_t i, int64_t p, auto count) {
          vec<A> first = load(sums + p), second = load(squares + p);
          _Pragma("GCC unroll 4") for (int b = 0; b < decltype(count)::value; b++) {
            term(Whole(), i + b * rows.P, p, first, second);
          }
          store(sums + p, first), store(squares + p, second);
        },
        [&](auto get, int64_t i, int64_t p) {
          vec<A> first = {}, second = {};
          term(get, i, p, first, second);
          for (int64_t l = 0; l < at_most(get.count, L); l++) sums[p + l] += first[l], squares[p + l] += second[l];
        });
    for (int64_t k = 0; k < 2 * rows.P; k++) out[k] += sums[k];
  }
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
  const auto term = [&](auto get, int64_t i, int64_t p, vec<A>& sum, vec<A>& squares) {
    const vec<A> d = get(x + i, vec<A>{}) - load(shift + p);
    sum += d;
    squares += d * d;
  };
  sum_rows(rows, part, term, working, out);
}

// y = act((x - shift) * factor + offset).
template <class T, class A>
PYCONV_NOINLINE void normalise(Rows<A> rows, int64_t part, const T* x, Lines<A> lines, Finish<T> finish, T* y) {
  rows.template walk<1>(
      rows.cut(part), rows.cut(part + 1),
      [&](int64_t i, int64_t p, auto) {
        const vec<A> d = load_wide(x + i) - load(lines.shift + p);
        finish.store(y + i, d * load(lines.factor + p) + load(lines.offset + p));
      },
      [&](auto get, int64_t i, int64_t p) {
        const vec<A> d = get(x + i, vec<A>{}) - load(lines.shift + p);
        finish.store_first(y + i, d * load(lines.factor + p) + load(lines.offset + p), get.count);
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
  const Rows<A> rows(s);
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
  const Rows<A> rows(s);
  const Lines<A> lines(rows.C, rows.P);
  lines.of_statistics(s, 0, s.C, mean, var, weight, bias);
  lines.repeat();
  rows.for_parts(false, [&](int64_t part) { normalise(rows, part, x, lines, finish, y); });
}

// sum g and sum g * (x - shift).
template <class T, class A, bool relu>
PYCONV_NOINLINE void products(Rows<A> rows, int64_t part, Upstream<T, relu> up, const T* x, const A* shift, A* working,
                              double* out) {
  const auto term = [&](auto get, int64_t i, int64_t p, vec<A>& g_sum, vec<A>& g_d_sum) {
    const vec<A> g = up(get, i);
    g_sum += g;
    g_d_sum += g * (get(x + i, vec<A>{}) - load(shift + p));
  };
  sum_rows(rows, part, term, working, out);
}

// dx = g * factor + (x - shift) * slope + offset, and g itself where the residual wants it.
template <class T, class A, bool relu>
PYCONV_NOINLINE void finish_bwd(Rows<A> rows, int64_t part, bool training, Upstream<T, relu> up, const T* x,
                                Lines<A> lines, T* dx, T* dresidual) {
  const Finish<T> plain;
  const auto line = [&](vec<A> g, vec<A> d, int64_t p) {
    return g * load(lines.factor + p) + (d * load(lines.slope + p) + load(lines.offset + p));
  };
  rows.template walk<1>(
      rows.cut(part), rows.cut(part + 1),
      [&](int64_t i, int64_t p, auto) {
        const vec<A> g = up(Whole(), i), d = training ? load_wide(x + i) - load(lines.shift + p) : vec<A>{};
        if (dresidual) store_narrow(dresidual + i, g);
        store_narrow(dx + i, line(g, d, p));
      },
      [&](auto get, int64_t i, int64_t p) {
        const vec<A> g = up(get, i), d = training ? get(x + i, vec<A>{}) - load(lines.shift + p) : vec<A>{};
        if (dresidual) plain.store_first(dresidual + i, g, get.count);
        plain.store_first(dx + i, line(g, d, p), get.count);
      });
}

template <class T, class A, bool relu>
void bwd(const NormShape& s, const Upstream<T, relu>& up, const T* x, const A* mean, const A* var, const A* weight,
         T* dx, T* dresidual, A* dweight, A* dbias) {
  const Rows<A> rows(s);
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

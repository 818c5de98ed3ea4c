// Winograd along one axis: lines of vectors to the points of an algorithm and back. Two axes are two passes.
// Computes  to points    y[j] = sum_k m[j][k] x[k], m = BT for inputs, G for what is the filter
//           from points  y[i] = sum_j AT[i][j] x[j]
//           Points come as 0, p, -p, q, -q, ..., infinity: those of a pair share their even and odd parts
// Shapes    a line: vectors `step` apart; the next line `next` after it
// Included by winograd.h once per ISA, inside its namespace.

// A sum of multiples of vectors by constants: nothing for a factor 0, no product for 1.
template <class A>
struct Combination {
  vec<A> sum = {};
  bool empty = true;
  inline __attribute__((always_inline)) void add(double factor, vec<A> x) {
    if (factor == 0) return;
    const vec<A> term = factor == 1 ? x : x * static_cast<A>(factor);
    sum = empty ? term : factor == 1 ? sum + x : sum + x * static_cast<A>(factor);
    empty = false;
  }
};

// Pairs of opposite points: all between 0 and infinity, if their number is even.
constexpr int pairs_of(int points) { return points % 2 == 0 ? points / 2 - 1 : 0; }
constexpr bool opens_pair(int j, int points) { return j % 2 == 1 && j < 2 * pairs_of(points); }

// One line: in(k) is what it reads, out(j, vector) takes what it gives. BT (filter == false) or G.
template <class A, int M, int R, bool filter, class In, class Out>
PYCONV_INLINE void line_to_points(const In& in, const Out& out) {
  constexpr int N = M + R - 1, length = filter ? R : N;
  const auto factor = [](int j, int k) {
    if constexpr (filter) {
      return conv2d::winograd<M, R>.g[j][k];
    } else {
      return conv2d::winograd<M, R>.bt[j][k];
    }
  };
  vec<A> x[length];
  _Pragma("GCC unroll 8") for (int k = 0; k < length; k++) x[k] = in(k);
  _Pragma("GCC unroll 8") for (int j = 0; j < N; j++) {
    if (j > 0 && opens_pair(j - 1, N)) continue;
    Combination<A> even, odd;
    _Pragma("GCC unroll 4") for (int k = 0; k < length; k += 2) even.add(factor(j, k), x[k]);
    _Pragma("GCC unroll 4") for (int k = 1; k < length; k += 2) odd.add(factor(j, k), x[k]);
    out(j, odd.empty ? even.sum : even.empty ? odd.sum : even.sum + odd.sum);
    if (opens_pair(j, N)) out(j + 1, even.sum - odd.sum);
  }
}

// Likewise, AT.
template <class A, int M, int R, class In, class Out>
PYCONV_INLINE void line_from_points(const In& in, const Out& out) {
  constexpr int N = M + R - 1, pairs = pairs_of(N);
  vec<A> sum[pairs + 1], difference[pairs + 1];
  _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++) {
    const vec<A> a = in(1 + 2 * p), b = in(2 + 2 * p);
    sum[p] = a + b, difference[p] = a - b;
  }
  _Pragma("GCC unroll 8") for (int i = 0; i < M; i++) {
    Combination<A> row;
    row.add(conv2d::winograd<M, R>.at[i][0], in(0));
    _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++) {
      row.add(conv2d::winograd<M, R>.at[i][1 + 2 * p], i % 2 ? difference[p] : sum[p]);
    }
    _Pragma("GCC unroll 4") for (int j = 1 + 2 * pairs; j < N; j++) row.add(conv2d::winograd<M, R>.at[i][j], in(j));
    out(i, row.sum);
  }
}

// `count` lines in memory.
template <class A, int M, int R, bool filter>
void to_points(const A* from, int64_t from_step, int64_t from_next, A* to, int64_t to_step, int64_t to_next,
               int64_t count) {
  for (; count > 0; count--, from += from_next, to += to_next) {
    line_to_points<A, M, R, filter>([&](int k) { return load(from + k * from_step); },
                                    [&](int j, vec<A> y) { store(to + j * to_step, y); });
  }
}
// `added` is one vector, or null.
template <class A, int M, int R>
void from_points(const A* from, int64_t from_step, int64_t from_next, A* to, int64_t to_step, int64_t to_next,
                 int64_t count, const A* added) {
  const vec<A> constant = added ? load(added) : vec<A>{};
  for (; count > 0; count--, from += from_next, to += to_next) {
    line_from_points<A, M, R>([&](int j) { return load(from + j * from_step); },
                              [&](int i, vec<A> y) { store(to + i * to_step, y + constant); });
  }
}

// Both passes of R x R values, `row` and `column` apart, which stay in registers between them: u[f], planes apart.
template <class A, int M, int R>
void square_to_points(const A* from, int64_t row, int64_t column, A* u, int64_t plane) {
  constexpr int N = M + R - 1;
  vec<A> half[N][R];
  _Pragma("GCC unroll 8") for (int k = 0; k < R; k++) {
    line_to_points<A, M, R, true>([&](int i) { return load(from + i * row + k * column); },
                                  [&](int j, vec<A> y) { half[j][k] = y; });
  }
  _Pragma("GCC unroll 8") for (int i = 0; i < N; i++) {
    line_to_points<A, M, R, true>([&](int k) { return half[i][k]; },
                                  [&](int j, vec<A> y) { store(u + (i * N + j) * plane, y); });
  }
}
// And back, of M x M values: outputs, or with M and R exchanged taps. They go to `to`, `row` and `column` apart.
template <class A, int M, int R>
void square_from_points(const A* m, int64_t plane, A* to, int64_t row, int64_t column, const A* added) {
  constexpr int N = M + R - 1;
  const vec<A> constant = added ? load(added) : vec<A>{};
  vec<A> half[N][M];
  _Pragma("GCC unroll 8") for (int i = 0; i < N; i++) {
    line_from_points<A, M, R>([&](int j) { return load(m + (i * N + j) * plane); },
                              [&](int k, vec<A> y) { half[i][k] = y; });
  }
  _Pragma("GCC unroll 8") for (int k = 0; k < M; k++) {
    line_from_points<A, M, R>([&](int j) { return half[j][k]; },
                              [&](int i, vec<A> y) { store(to + i * row + k * column, y + constant); });
  }
}

// An axis along which the filter has one tap.
template <class A>
void copy_to(const A* from, int64_t, int64_t from_next, A* to, int64_t, int64_t to_next, int64_t count) {
  for (; count > 0; count--, from += from_next, to += to_next) store(to, load(from));
}
template <class A>
void copy_from(const A* from, int64_t, int64_t from_next, A* to, int64_t, int64_t to_next, int64_t count,
               const A* added) {
  const vec<A> constant = added ? load(added) : vec<A>{};
  for (; count > 0; count--, from += from_next, to += to_next) store(to, load(from) + constant);
}

// F(step, taps): a tile of `step` outputs from `points` inputs.
template <class A>
struct Algorithm {
  using To = void(const A* from, int64_t from_step, int64_t from_next, A* to, int64_t to_step, int64_t to_next,
                  int64_t count);
  using From = void(const A* from, int64_t from_step, int64_t from_next, A* to, int64_t to_step, int64_t to_next,
                    int64_t count, const A* added);
  int64_t taps, step, points;
  To *input, *filter, *gradient;  // the gradient of `step` outputs, in the place of the filter
  From *output, *weight;          // of which the taps are what it gives
  // Of two such axes; null beyond 3 taps, which fit no registers.
  using ToSquare = void(const A* from, int64_t row, int64_t column, A* u, int64_t plane);
  using FromSquare = void(const A* m, int64_t plane, A* to, int64_t row, int64_t column, const A* added);
  ToSquare *square_filter = nullptr, *square_gradient = nullptr;
  FromSquare *square_output = nullptr, *square_weight = nullptr;
};
template <class A, int M, int R>
constexpr Algorithm<A> algorithm = {R,
                                    M,
                                    M + R - 1,
                                    to_points<A, M, R, false>,
                                    to_points<A, M, R, true>,
                                    to_points<A, R, M, true>,
                                    from_points<A, M, R>,
                                    from_points<A, R, M>};
template <class A, int M, int R>
constexpr Algorithm<A> with_square = [] {
  Algorithm<A> made = algorithm<A, M, R>;
  made.square_filter = square_to_points<A, M, R>;
  made.square_gradient = square_to_points<A, R, M>;
  made.square_output = square_from_points<A, M, R>;
  made.square_weight = square_from_points<A, R, M>;
  return made;
}();
template <class A>
constexpr Algorithm<A> no_algorithm = {1, 1, 1, copy_to<A>, copy_to<A>, copy_to<A>, copy_from<A>, copy_from<A>};

// The algorithm of an axis of `size` outputs.
template <class A>
const Algorithm<A>& algorithm_of(int64_t taps, int64_t size, int64_t dilation) {
  switch (taps) {
    case 2:
      return with_square<A, 5, 2>;
    case 3:
      switch (conv2d::winograd_step(taps, size, dilation)) {
        case 2:
          return with_square<A, 2, 3>;
        case 3:
          return with_square<A, 3, 3>;
        default:
          return with_square<A, 4, 3>;
      }
    case 4:
      return algorithm<A, 5, 4>;
    case 5:
      return algorithm<A, 4, 5>;
    case 7:
      return algorithm<A, 2, 7>;
    default:
      return no_algorithm<A>;
  }
}

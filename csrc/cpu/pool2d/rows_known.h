// The forward passes of rows.h, part of it, for the windows of most networks.

template <class A>
constexpr Order<A> numbered(int from) {
  Order<A> r{};
  for (int j = 0; j < Vec<A>::size; j++) r.lane[j] = from + j;
  return r;
}

// The last t lanes of `before`, then the first of v.
template <int t, class A>
PYCONV_INLINE vec<A> behind(vec<A> before, vec<A> v) {
  static constexpr Order<A> order = numbered<A>(Vec<A>::size - t);
  return shuffle<A>(before, v, order);
}

// What Op makes of K rows, column by column, of which `count` are in the image.
template <class Op, int K, class T>
PYCONV_INLINE vec<acc_t<T>> down(const T* const (&row)[K], int64_t column, int64_t count) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  if (count >= L) {
    vec<A> v = load_wide(row[0] + column);
    _Pragma("GCC unroll 3") for (int kh = 1; kh < K; kh++) v = Op::template of<A>(v, load_wide(row[kh] + column));
    return v;
  }
  if (count <= 0) return splat<A>(Op::template none<A>);
  vec<A> v = load_wide_first(row[0] + column, count);
  _Pragma("GCC unroll 3") for (int kh = 1; kh < K; kh++) {
    v = Op::template of<A>(v, load_wide_first(row[kh] + column, count));
  }
  if constexpr (Op::template none<A> == 0) return v;
  static constexpr Order<A> number = numbered<A>(0);
  return load(number.lane) < lanes<A>{} + lane<A>(count) ? v : splat<A>(Op::template none<A>);
}

// What stands before the first vector of windows: padding, but where the first window begins inside, that column.
template <class Op, int K, int S, int P, class T, int R>
PYCONV_INLINE vec<acc_t<T>> before_all(const T* const (&row)[R]) {
  using A = acc_t<T>;
  static constexpr Order<A> number = numbered<A>(0);
  const vec<A> outside = splat<A>(Op::template none<A>);
  if constexpr (P >= K - S) return outside;
  const vec<A> first = splat<A>(down<Op, R>(row, 0, 1)[0]);
  return load(number.lane) == lanes<A>{} + lane<A>(Vec<A>::size - 1) ? first : outside;
}

// K x K windows of stride S and padding P that are known when this is compiled, in registers: half the time of rows split in
// memory (3x3 windows of stride 2, 2x2 windows; Zen 5). A vector of windows brings S*L columns, which its last window ends
// with; the K-S columns before them are the last lanes of what the vector before has brought.
// (K,) what Op makes of the rows at each column of the windows from ow on.
template <class Op, int K, int S, int P, class T, int R>
PYCONV_INLINE void columns_of(const T* const (&row)[R], int64_t ow, int64_t width, vec<acc_t<T>>& before,
                              vec<acc_t<T>> (&v)[K]) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const int64_t column = ow * S + K - S - P;
  vec<A> last = down<Op, R>(row, column, width - column);
  if constexpr (S == 2) {
    const Pair<A> pair = deinterleave<A>(last, down<Op, R>(row, column + L, width - column - L));
    v[K - 2] = pair.first, last = pair.second;
  }
  if constexpr (K == S + 1) v[0] = behind<1, A>(before, last);
  if constexpr (K == S + 2) v[0] = behind<2, A>(before, last), v[1] = behind<1, A>(before, last);
  v[K - 1] = before = last;
}

// rows(plane, oh, row) for the windows of a row of y: (K,) the rows of x they reach, one of padding where there is none.
template <class Op, int K, int S, int P, class T, class Rows>
PYCONV_INLINE void for_known_rows(const Pool2dShape& s, const T* x, int64_t begin, int64_t end, const Rows& rows) {
  const bool far = is_far(s);
  T* outside = array<T>(0, s.w.in);
  for (int64_t i = 0; i < s.w.in; i++) pyconv::store(outside + i, Op::template none<acc_t<T>>);
  for (int64_t plane = begin; plane < end; plane++) {
    for (int64_t oh = 0; oh < s.h.out; oh++) {
      const T* row[K];
      for (int kh = 0; kh < K; kh++) {
        const int64_t ih = oh * S - P + kh;
        row[kh] = ih >= 0 && ih < s.h.in ? x + (plane * s.h.in + ih) * s.w.in : outside;
      }
      if (far) prefetch<0>(row[P], S * s.w.in);
      rows(plane, oh, row);
    }
  }
}

template <class Op, int K, int S, int P, class T, class Finish>
void forward_known(const Pool2dShape& s, const T* x, T* y, int64_t begin, int64_t end, const Finish& finish) {
  using A = acc_t<T>;
  for_known_rows<Op, K, S, P>(
      s, x, begin, end, [&](int64_t plane, int64_t oh, const T* const(&row)[K]) __attribute__((always_inline)) {
        T* to = y + (plane * s.h.out + oh) * s.w.out;
        vec<A> before = before_all<Op, K, S, P>(row), v[K];
        for_steps(s.w.out, Vec<A>::size, [&](int64_t ow, int64_t n) __attribute__((always_inline)) {
          columns_of<Op, K, S, P>(row, ow, s.w.in, before, v);
          _Pragma("GCC unroll 2") for (int kw = 1; kw < K; kw++) v[0] = Op::template of<A>(v[0], v[kw]);
          store_up_to(to + ow, finish(oh, ow, v[0]), n);
        });
      });
}

// A position counts from the window's first pixel until it is put, and begins with the first one that is in the image. One
// function for taps and indices: two of them compile for twice as long.
template <int K, int S, int P, class T>
PYCONV_NOINLINE void where_known(Pool2dShape s, const T* x, T* y, pool2d::Where where, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  static constexpr Order<A> number = numbered<A>(0);
  const bool as_taps = where.taps != nullptr;
  const lane<A> down = lane<A>(as_taps ? K : s.w.in);
  for_known_rows<Larger, K, S, P>(
      s, x, begin, end, [&](int64_t plane, int64_t oh, const T* const(&row)[K]) __attribute__((always_inline)) {
        const int64_t out = (plane * s.h.out + oh) * s.w.out, corner = (oh * S - P) * s.w.in - P;
        vec<A> before[K], v[K];
        _Pragma("GCC unroll 3") for (int kh = 0; kh < K; kh++) before[kh] =
            before_all<Larger, K, S, P, T, 1>({row[kh]});
        for_steps(s.w.out, Vec<A>::size, [&](int64_t ow, int64_t n) __attribute__((always_inline)) {
          const lanes<A> ows = load(number.lane) + lane<A>(ow);
          vec<A> best = splat<A>(Larger::none<A>);
          lanes<A> at = lanes<A>{} + (oh == 0 ? P * down : 0);
          if (P > 0) at -= (ows == lanes<A>{}) * lane<A>(P);  // a comparison is -1 where it holds
          _Pragma("GCC unroll 3") for (int kh = 0; kh < K; kh++) {
            columns_of<Larger, K, S, P, T, 1>({row[kh]}, ow, s.w.in, before[kh], v);
            _Pragma("GCC unroll 3") for (int kw = 0; kw < K; kw++) {
              take_larger<A>(v[kw], lanes<A>{} + lane<A>(kh * down + kw), best, at);
            }
          }
          store_up_to(y + out + ow, best, n);
          if (as_taps) {
            put<taps, A>(where, out + ow, at, n);
          } else {
            put<indices, A>(where, out + ow, at + lane<A>(corner) + ows * S, n);
          }
        });
      });
}

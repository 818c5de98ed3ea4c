// The gradients of rows.h, part of it: a row of dx at a time, its columns by class, column modulo SW. Class c sees the taps
// kw = phase, phase + SW, ... with phase = (c + PW) % SW; column c + SW*i is tap phase + SW*t to window i + shift - t, so
// that a class reads rows of dy side by side, moved by t, and is written whole.

// (OW, and up to a whole vector) columns each window counts, or 1 where the divisor is given or there is no window.
template <class A>
A* divisors_across(const Pool2dShape& s) {
  const int64_t width = round_up(s.w.out, Vec<A>::size);
  A* across = array<A>(2, width);
  for (int64_t ow = 0; ow < width; ow++) {
    across[ow] = s.divisor_override || ow >= s.w.out ? 1 : A(s.w.count(ow, s.count_include_pad));
  }
  return across;
}

template <class A>
A divisor_down(const Pool2dShape& s, int64_t oh) {
  return s.divisor_override ? A(s.divisor_override) : A(s.h.count(oh, s.count_include_pad));
}

// Some rows of dx at a time, and the rows of dy that they see, between zeros: all rows of dx that are one row of taps to
// their windows then read alike.
template <class T>
struct Gradient {
  using A = acc_t<T>;
  static constexpr int64_t L = Vec<A>::size;
  const PoolAxis h, w;
  const bool far;
  const int64_t band;                      // rows of windows at a time
  const int64_t up, left;                  // zeros above and before the rows of dy: windows that hold a pixel, less one
  const int64_t pitch, length;             // of a row of dy between zeros, of a class
  int64_t *const rows_at, *const taps_at;  // (SH,) and (SW,) how many windows a row and a column of a class see
  int64_t *const shift, *const columns;    // (SW,) of a class: see above, and how many columns it has
  A* const rows;                           // (up + band, pitch) of dy
  A* const classes;                        // (SW, length) a row of dx

  explicit Gradient(const Pool2dShape& s)
      : h(s.h),
        w(s.w),
        far(is_far(s)),
        band(band_of(s)),
        up((h.kernel - 1) / h.stride),
        left(round_up((w.kernel - 1) / w.stride, L)),
        pitch(left + round_up(at_least(w.out, (w.in + w.padding) / w.stride + 1), L) + L),
        length(round_up(divide_up(w.in, w.stride), L)),
        rows_at(array<int64_t>(4, h.stride + 3 * w.stride)),
        taps_at(rows_at + h.stride),
        shift(taps_at + w.stride),
        columns(shift + w.stride),
        rows(array<A>(0, size() + w.stride * length)),
        classes(rows + size()) {
    for (int64_t i = 0; i < size(); i++) rows[i] = 0;
    for (int64_t phase = 0; phase < h.stride; phase++) rows_at[phase] = seen(h, phase);
    for (int64_t c = 0; c < w.stride; c++) {
      taps_at[c] = seen(w, phase(c)), shift[c] = (c + w.padding) / w.stride, columns[c] = divide_up(w.in - c, w.stride);
    }
  }

  int64_t size() const { return (up + band) * pitch; }
  int64_t phase(int64_t c) const { return (c + w.padding) % w.stride; }
  static int64_t seen(const PoolAxis& axis, int64_t phase) {
    return phase < axis.kernel ? (axis.kernel - 1 - phase) / axis.stride + 1 : 0;
  }

  // dx of a plane: bring(oh, at) puts a row of dy where it says, of(ih, phase, at, row) makes a row of dx that is tap row
  // `phase` to the windows that stand at `at` and above, after above(the same) for all rows of a band.
  template <class Bring, class Above, class Of>
  inline __attribute__((always_inline)) void plane(const Bring& bring, const Above& above, const Of& of) const {
    for (int64_t o0 = h.padding / h.stride; o0 * h.stride < h.in + h.padding; o0 += band) {
      for (int64_t r = 0; r < up + band; r++) {
        const int64_t oh = o0 - up + r;
        if (oh >= 0 && oh < h.out) {
          bring(oh, r * pitch + left);
        } else {
          for (int64_t i = 0; i < pitch; i++) rows[r * pitch + i] = 0;
        }
      }
      const int64_t first = o0 * h.stride - h.padding;
      for_pixels(first, above);
      for_pixels(first, of);
    }
  }

  template <class Visit>
  inline __attribute__((always_inline)) void for_pixels(int64_t first, const Visit& visit) const {
    int64_t row = 0;
    for (int64_t r = 0; r < band; r++) {
      for (int64_t phase = 0; phase < h.stride; phase++, row++) {
        if (first + row >= 0 && first + row < h.in) visit(first + row, phase, (up + r) * pitch + left, row);
      }
    }
  }

  // of(c, put) for every class c of `copies` rows of dx, which are the same; put(i, v, count) takes its columns.
  template <class Of>
  inline __attribute__((always_inline)) void write(T* dx, int64_t copies, const Of& of) const {
    if (far) prefetch<1>(dx, copies * w.in);
    const bool in_place = w.stride == 1;
    for (int64_t c = 0; c < at_most(w.stride, w.in); c++) {
      A* to = classes + c * length;
      of(c, [&](int64_t i, vec<A> v, int64_t n) __attribute__((always_inline)) {
        if (!in_place) return store(to + i, v);
        for (int64_t k = 0; k < copies; k++) store_up_to(dx + k * w.in + i, v, n);
      });
    }
    if (!in_place) join(dx, copies);
  }

  PYCONV_NOINLINE void join(T* dx, int64_t copies) const {
    if (w.stride == 2) {
      const A *even = classes, *odd = classes + length;
      for_steps(w.in, 2 * L, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
        const Pair<A> pair = interleave<A>(load(even + j / 2), load(odd + j / 2));
        for (int64_t k = 0; k < copies; k++) {
          store_up_to(dx + k * w.in + j, pair.first, count);
          if (count > L) store_up_to(dx + k * w.in + j + L, pair.second, count - L);
        }
      });
    } else {
      for (int64_t c = 0; c < at_most(w.stride, w.in); c++) {
        for (int64_t k = 0; k < copies; k++) {
          const A* from = classes + c * length;
          for (int64_t column = c; column < w.in; column += w.stride) pyconv::store(dx + k * w.in + column, *from++);
        }
      }
    }
  }
};

// dx[position] += dy: the plane has one owner, and the outputs come in row-major order.
template <Keep keep, class T>
void scatter(const Pool2dShape& s, const T* dy, const pool2d::WhereWas& where, T* dx) {
  using A = acc_t<T>;
  constexpr bool in_place = sizeof(T) == sizeof(A);
  const int64_t pixels = s.h.in * s.w.in, outputs = s.h.out * s.w.out;
  const int64_t rows = keep == taps ? s.h.out : 1, columns = outputs / at_least(rows, 1);  // indices ask for no row
  for_planes(s, [&](int64_t begin, int64_t end) {
    A* sums = array<A>(0, in_place ? 0 : pixels);
    int64_t* offset = array<int64_t>(1, pool2d::most_taps + 1);  // of a tap, from where the window begins
    if (keep == taps) {
      for (int64_t tap = 0; tap <= pool2d::most_taps; tap++) {
        offset[tap] = tap < s.h.kernel * s.w.kernel ? tap / s.w.kernel * s.w.in + tap % s.w.kernel : -pixels;
      }
    }
    for (int64_t plane = begin; plane < end; plane++) {
      T* to = dx + plane * pixels;
      if constexpr (in_place) sums = to;
      __builtin_memset(sums, 0, size_t(pixels) * sizeof(A));
      for (int64_t oh = 0, o = plane * outputs; oh < rows; oh++) {
        int64_t first = (oh * s.h.stride - s.h.padding) * s.w.in - s.w.padding;
        for (int64_t ow = 0; ow < columns; ow++, o++, first += s.w.stride) {
          const int64_t at = keep == taps ? first + offset[where.taps[o]] : where.indices[o];
          if (uint64_t(at) < uint64_t(pixels)) sums[at] += widen(dy[o]);
        }
      }
      if constexpr (!in_place) {
        for (int64_t i = 0; i < pixels; i++) pyconv::store(to + i, sums[i]);
      }
    }
  });
}

// From taps, where K x K windows of stride S, and the padding modulo S, are known when this is compiled: a pixel takes what
// its windows found at it.
template <int K, int S, int P, class T>
void gather(const Pool2dShape& s, const T* dy, const uint8_t* found, T* dx) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Gradient<T> g(s);
    uint8_t* stand = array<uint8_t>(1, g.size());
    for (int64_t plane = begin; plane < end; plane++) {
      const auto bring = [&](int64_t oh, int64_t at) {
        const int64_t from = (plane * s.h.out + oh) * s.w.out;
        for_steps(s.w.out, L, [&](int64_t ow, int64_t n) __attribute__((always_inline)) {
          store(g.rows + at + ow, load_up_to(dy + from + ow, n));
          put<A>(stand + at + ow, get<A>(found + from + ow, n), L);
        });
      };
      const auto above = [](int64_t, int64_t, int64_t, int64_t) {};
      g.plane(bring, above, [&](int64_t ih, int64_t phase, int64_t at, int64_t) {
        T* const to = dx + (plane * s.h.in + ih) * s.w.in;
        if (g.far) prefetch<1>(to, s.w.in);
        with_int<S>(phase + 1, [&](auto known) __attribute__((always_inline)) {
          constexpr int kh = decltype(known)::value - 1;
          const int64_t origin = at + s.w.padding / S;
          for_steps(s.w.in, S * L, [&](int64_t iw, int64_t n) __attribute__((always_inline)) {
            vec<A> sum[S] = {};  // of the columns iw + c, iw + c + S, ...
            _Pragma("GCC unroll 2") for (int c = 0; c < S; c++) {
              const int kw = (c + P) % S;
              _Pragma("GCC unroll 4") for (int i = (K - 1 - kh) / S; i >= 0; i--) {
                _Pragma("GCC unroll 4") for (int j = (K - 1 - kw) / S; j >= 0; j--) {
                  const int64_t window = origin + iw / S + (c + P) / S - i * g.pitch - j;
                  sum[c] = add_at<taps, A>(sum[c], load(g.rows + window), {nullptr, stand}, window,
                                           (kh + i * S) * K + kw + j * S, 0, L);
                }
              }
            }
            if constexpr (S == 1) {
              store_up_to(to + iw, sum[0], n);
            } else {
              const Pair<A> pair = interleave<A>(sum[0], sum[1]);
              store_up_to(to + iw, pair.first, n);
              if (n > L) store_up_to(to + iw + L, pair.second, n - L);
            }
          });
        });
      });
    }
  });
}

// The windows that a gather is compiled for; others are rare, and a scatter is five times as fast as a gather that finds its
// terms at run time was (3x3 windows of stride 3), but takes 1.5 to 2.2 times as long as one that knows them (Zen 5).
template <class T>
void max_bwd_from_taps(const Pool2dShape& s, const T* dy, const pool2d::WhereWas& where, T* dx) {
  const bool gathered = pool2d::with_window(s, [&](auto window) {
    using W = decltype(window);
    gather<W::K, W::S, W::P % W::S>(s, dy, where.taps, dx);
  });
  if (!gathered) scatter<taps>(s, dy, where, dx);
}

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
  const int64_t up, left;                  // windows that hold a pixel, less one: zeros above and before the rows of dy
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
        left((w.kernel - 1) / w.stride),
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

// From indices: a scatter. The plane has one owner, and the outputs come in row-major order.
template <class T>
void scatter(const Pool2dShape& s, const T* dy, const int64_t* where, T* dx) {
  using A = acc_t<T>;
  const int64_t pixels = s.h.in * s.w.in, outputs = s.h.out * s.w.out;
  for_planes(s, [&](int64_t begin, int64_t end) {
    A* sums = array<A>(0, sizeof(T) == sizeof(A) ? 0 : pixels);
    for (int64_t plane = begin; plane < end; plane++) {
      T* to = dx + plane * pixels;
      if constexpr (sizeof(T) == sizeof(A)) sums = to;
      __builtin_memset(sums, 0, size_t(pixels) * sizeof(A));
      for (int64_t o = plane * outputs; o < (plane + 1) * outputs; o++) {
        if (uint64_t(where[o]) < uint64_t(pixels)) sums[where[o]] += widen(dy[o]);
      }
      if constexpr (sizeof(T) != sizeof(A)) {
        for (int64_t i = 0; i < pixels; i++) pyconv::store(to + i, sums[i]);
      }
    }
  });
}

// From taps: a pixel takes what its windows found at it.
template <class T>
void gather(const Pool2dShape& s, const T* dy, const uint8_t* found, T* dx) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  constexpr int most_terms = 4;  // as most_known; a pixel of 3x3 windows with stride 2 has up to four
  struct Term {                  // a window, counted from the last that holds a pixel, and what the pixel is to it
    int64_t at, tap;
  };
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Gradient<T> g(s);
    uint8_t* stand = array<uint8_t>(1, g.size());
    const int64_t classes = s.h.stride * s.w.stride;
    int64_t* first = array<int64_t>(2, classes + 1);  // (SH * SW + 1,) where the terms of a class of pixels begin
    Term* terms = array<Term>(3, s.h.kernel * s.w.kernel);
    int64_t count = 0;
    for (int64_t k = 0; k < classes; k++) {
      const int64_t kh = k / s.w.stride, c = k % s.w.stride, kw = g.phase(c);
      first[k] = count;
      for (int64_t i = g.rows_at[kh] - 1; i >= 0; i--) {
        for (int64_t j = g.taps_at[c] - 1; j >= 0; j--) {
          terms[count++] = {g.shift[c] - i * g.pitch - j, (kh + i * s.h.stride) * s.w.kernel + kw + j * s.w.stride};
        }
      }
    }
    first[classes] = count;
    for (int64_t plane = begin; plane < end; plane++) {
      const auto bring = [&](int64_t oh, int64_t at) {
        const int64_t from = (plane * s.h.out + oh) * s.w.out;
        for_steps(s.w.out, L, [&](int64_t ow, int64_t n) __attribute__((always_inline)) {
          store_up_to(g.rows + at + ow, load_up_to(dy + from + ow, n), n);
          put<A>(stand + at + ow, get<A>(found + from + ow, n), n);
        });
      };
      const auto above = [](int64_t, int64_t, int64_t, int64_t) {};
      g.plane(bring, above, [&](int64_t ih, int64_t phase, int64_t at, int64_t) {
        g.write(dx + (plane * s.h.in + ih) * s.w.in, 1, [&](int64_t c, const auto& put) __attribute__((always_inline)) {
          const int64_t* range = first + phase * s.w.stride + c;
          const Term* term = terms + range[0];
          const int64_t terms_here = range[1] - range[0];
          if (terms_here == 0) return for_steps(g.columns[c], L, [&](int64_t i, int64_t n) { put(i, vec<A>{}, n); });
          with_int<most_terms>(terms_here, [&](auto known) __attribute__((always_inline)) {
            constexpr int R = decltype(known)::value;
            Term t[R];
            for (int r = 0; r < R; r++) t[r] = term[r], t[r].at += at;
            for_steps(g.columns[c], L, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
              vec<A> sum = {};
              _Pragma("GCC unroll 4") for (int r = 0; r < R; r++) {
                sum = add_at<taps, A>(sum, load(g.rows + t[r].at + i), {nullptr, stand}, t[r].at + i, t[r].tap, 0, L);
              }
              for (int64_t r = R; R == most_terms && r < terms_here; r++) {
                const int64_t here = at + term[r].at + i;
                sum = add_at<taps, A>(sum, load(g.rows + here), {nullptr, stand}, here, term[r].tap, 0, L);
              }
              put(i, sum, n);
            });
          });
        });
      });
    }
  });
}

// Rows side by side, and a row split by column modulo the stride: the vocabulary of rows.h, included once per ISA by it.

// Memory of this thread for one call, one array per slot.
template <class T>
T* array(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, size_t(count) * sizeof(T)));
}

constexpr int most_known = 3;  // rows that a loop knows the number of when it is compiled, the last one "or more"

// What a window makes of its pixels.
struct Larger {
  template <class A>
  static constexpr A none = -A(__builtin_inff());
  template <class A>
  PYCONV_INLINE vec<A> of(vec<A> a, vec<A> b) {
    return larger_of<A>(a, b);
  }
};
struct Sum {
  template <class A>
  static constexpr A none = 0;
  template <class A>
  PYCONV_INLINE vec<A> of(vec<A> a, vec<A> b) {
    return a + b;
  }
};

// step(j, count) for the values [0, length) of a row, `most` at a time and what is left, of which `count` are meant.
template <class Step>
PYCONV_INLINE void for_steps(int64_t length, int64_t most, const Step& step) {
  int64_t j = 0;
  for (; j + most <= length; j += most) step(j, most);
  if (j < length) step(j, length - j);
}

// put(j, v, count): what Op makes of `rows` rows, V vectors at a time, column by column.
template <class Op, int V, class T, class Put>
PYCONV_INLINE void fold(const T* const* row, int64_t rows, int64_t length, const Put& put) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  with_int<most_known>(rows, [&](auto known) __attribute__((always_inline)) {
    constexpr int R = decltype(known)::value;
    const T* from[R];
    for (int r = 0; r < R; r++) from[r] = row[r];
    for_steps(length, V * L, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
      vec<A> v[V];
      _Pragma("GCC unroll 2") for (int k = 0; k < V; k++) {
        const int64_t at = j + k * L, here = at_least(count - k * L, 0);
        v[k] = load_up_to(from[0] + at, here);
        _Pragma("GCC unroll 4") for (int r = 1; r < R; r++) v[k] =
            Op::template of<A>(v[k], load_up_to(from[r] + at, here));
        if (R == most_known) {
          for (int64_t r = R; r < rows; r++) v[k] = Op::template of<A>(v[k], load_up_to(row[r] + at, here));
        }
      }
      put(j, v, count);
    });
  });
}

// The (SW, length) phases of a padded row, and the way there for the columns inside the padding. Tap kw of window ow stands
// at phases + tap[kw] + ow.
template <class A>
struct Phases {
  static constexpr int64_t L = Vec<A>::size;
  int64_t columns, stride, length;
  int64_t* origin;  // (SW,) where column 0 .. SW-1 of the row lies; the next of its phase follows
  int64_t* tap;     // (KW,)
  A* const phases;

  // Of `rows` rows. The padding is filled here and stays.
  Phases(const PoolAxis& w, A padding_value, int64_t rows)
      : columns(w.in),
        stride(w.stride),
        length(
            at_least(round_up(w.out, L) + (w.kernel - 1) * w.dilation / stride, (w.padding + w.in - 1) / stride + 1)),
        origin(array<int64_t>(4, stride + w.kernel)),
        tap(origin + stride),
        phases(array<A>(0, rows * stride * length + 2 * L)) {
    for (int64_t column = 0; column < stride; column++) origin[column] = at(w.padding + column);
    for (int64_t kw = 0; kw < w.kernel; kw++) tap[kw] = at(kw * w.dilation);
    for (int64_t i = 0; i < rows * stride * length; i++) phases[i] = padding_value;
  }

  int64_t at(int64_t padded_column) const { return padded_column % stride * length + padded_column / stride; }

  A* row(int64_t i) const { return phases + i * stride * length; }

  // What Op makes of some rows, split.
  template <class Op, class T>
  PYCONV_NOINLINE void write(const T* const* row, int64_t rows, A* phases) const {
    A* const first = phases + origin[0];
    if (stride == 2) {
      A* const second = phases + origin[1];
      fold<Op, 2>(row, rows, columns, [&](int64_t j, const vec<A>* v, int64_t count) __attribute__((always_inline)) {
        const Pair<A> pair = deinterleave<A>(v[0], v[1]);
        store_up_to(first + j / 2, pair.first, (count + 1) / 2);
        store_up_to(second + j / 2, pair.second, count / 2);
      });
    } else {
      fold<Op, 1>(row, rows, columns, [&](int64_t j, const vec<A>* v, int64_t count) __attribute__((always_inline)) {
        if (stride == 1) return store_up_to(first + j, v[0], count);
        for (int64_t k = 0; k < count; k++) phases[origin[(j + k) % stride] + (j + k) / stride] = v[0][k];
      });
    }
  }
};

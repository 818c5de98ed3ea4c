// pool2d / channels.
// Computes  what reference.cpp says, max with the same choices, average with the same sums, for every window, plain or
//           adaptive; the gradient of the average multiplies by the reciprocal of the divisor
// Shapes    x (N,IH,IW,C), y and where (N,OH,OW,C): channels_last, lanes are channels
// Tiling    thread: rows of what is written, in ascending order; registers: K vectors of neighbouring channels of one
//           pixel, of maxima and where they stand, or of sums. The pixels of a window are listed once for all windows
//           that have as many. Backward gathers: an input pixel asks every window that holds it, so no two threads share
//           a sum; for adaptive windows of max it scatters, some channels of an image at a time
// Cost      one load and one comparison or addition per window pixel and vector; backward the same per input pixel
// Limits    channels_last, planes below 2^31 pixels
// Source    reference.cpp

namespace pool2d_channels {
namespace {

#include "cpu/pool2d/where.h"

constexpr int K = 4;                      // vectors at a time: independent comparisons hide their latency
constexpr int64_t serial_values = 16384;  // values read or written, below which one thread is enough

// rows(begin, end) of the N*R rows that are written, of `values` each with what is read for them.
template <class Rows>
void for_rows(const Pool2dShape& s, int64_t R, const Rows& rows) {
  const int64_t values = s.C * (s.h.in * s.w.in + s.h.out * s.w.out) / at_least(R, 1);
  parallel_for(s.N * R, divide_up(serial_values, at_least(values, 1)), rows);
}

// body(c, block, count): `block` vectors of channels from c on, of the last of which `count` lanes are meant.
template <class A, class Body>
PYCONV_INLINE void for_blocks(int64_t C, const Body& body) {
  constexpr int64_t L = Vec<A>::size;
  int64_t c = 0;
  for (; c + K * L <= C; c += K * L) body(c, Int<K>(), L);
  for (; c < C; c += L) body(c, Int<1>(), at_most(C - c, L));
}

// The pixels of a window of `rows` x `columns`, as offsets and positions counted from its first.
struct List {
  int64_t rows = -1, columns = -1, count = 0;
  int64_t *at, *position;

  List(const Pool2dShape& s, int slot) {
    const auto most = [](const PoolAxis& a) {
      return a.adaptive() ? divide_up(a.in, at_least(a.out, 1)) + 1 : a.kernel;
    };
    at = static_cast<int64_t*>(scratch(slot, sizeof(int64_t) * 2 * most(s.h) * most(s.w)));
    position = at + most(s.h) * most(s.w);
  }
  // row, column: from one pixel to the next; positions count `width` to a row of the window's, or of the image.
  void make(int64_t r, int64_t c, int64_t row, int64_t column, int64_t position_row, int64_t position_column) {
    if (r == rows && c == columns) return;
    rows = r, columns = c, count = 0;
    for (int64_t i = 0; i < r; i++) {
      for (int64_t j = 0; j < c; j++, count++) {
        at[count] = i * row + j * column;
        position[count] = i * position_row + j * position_column;
      }
    }
  }
};

int64_t pixels_of(const PoolAxis& a, int64_t o) { return at_least(divide_up(a.stop(o) - a.start(o), a.step()), 0); }

// visit(oh, ow, n, list of the window's pixels) for every window of rows [begin, end).
template <Keep keep, class T, class Visit>
PYCONV_INLINE void for_windows(const Pool2dShape& s, const T* x, int64_t begin, int64_t end, const Visit& visit) {
  const Index4 X = s.x_index();
  const bool far = is_far(s);
  List list(s, 0);
  for (int64_t row = begin; row < end; row++) {
    const int64_t n = row / s.h.out, oh = row % s.h.out, rows = pixels_of(s.h, oh);
    for (int64_t ow = 0; ow < s.w.out; ow++) {
      list.make(rows, pixels_of(s.w, ow), s.h.step() * X.h, s.w.step() * X.w,
                keep == taps ? s.w.kernel : s.h.step() * s.w.in, keep == taps ? 1 : s.w.step());
      for (int64_t i = 0; far && i < at_most(s.h.stride, s.h.kernel); i++) {
        prefetch<0>(x + X(n, 0, oh * s.h.stride + s.h.kernel - 1 - i, s.w.start(ow)), s.w.stride * s.C);
      }
      visit(n, oh, ow, list);
    }
  }
}

// Of the first pixel that a window has in the image.
template <Keep keep>
int64_t first_position(const Pool2dShape& s, int64_t oh, int64_t ow) {
  const int64_t top = s.h.start(oh), left = s.w.start(ow);
  if (keep != taps) return top * s.w.in + left;
  return (top + s.h.padding - oh * s.h.stride) / s.h.dilation * s.w.kernel +
         (left + s.w.padding - ow * s.w.stride) / s.w.dilation;
}

template <Keep keep, class T>
void max_fwd(const Pool2dShape& s, const T* x, T* y, const pool2d::Where& where) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Index4 X = s.x_index(), Y = s.y_index();
  for_rows(s, s.h.out, [&](int64_t begin, int64_t end) {
    for_windows<keep>(s, x, begin, end, [&](int64_t n, int64_t oh, int64_t ow, const List& list) {
      const int64_t out = Y(n, 0, oh, ow), in = X(n, 0, s.h.start(oh), s.w.start(ow));
      const int64_t first = list.count ? first_position<keep>(s, oh, ow) : -1;
      for_blocks<A>(s.C, [&](int64_t c, auto block, int64_t count) {
        constexpr int V = decltype(block)::value;
        vec<A> best[V];
        lanes<A> at[V];
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
          best[v] = vec<A>{} - A(__builtin_inff());
          at[v] = lanes<A>{} + lane<A>(first);
        }
        for (int64_t k = 0; k < list.count; k++) {
          const T* from = x + in + list.at[k] + c;
          const lanes<A> here = lanes<A>{} + lane<A>(first + list.position[k]);
          _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
            take<keep, A>(V == 1 ? load_up_to(from, count) : load_wide(from + v * L), here, best[v], at[v]);
          }
        }
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
          store_up_to(y + out + c + v * L, best[v], count);
          put<keep, A>(where, out + c + v * L, at[v], count);
        }
      });
    });
  });
}

template <class T>
void avg_fwd(const Pool2dShape& s, const T* x, T* y) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Index4 X = s.x_index(), Y = s.y_index();
  for_rows(s, s.h.out, [&](int64_t begin, int64_t end) {
    for_windows<nothing>(s, x, begin, end, [&](int64_t n, int64_t oh, int64_t ow, const List& list) {
      const int64_t out = Y(n, 0, oh, ow), in = X(n, 0, s.h.start(oh), s.w.start(ow));
      const A divisor = A(s.divisor(oh, ow));
      for_blocks<A>(s.C, [&](int64_t c, auto block, int64_t count) {
        constexpr int V = decltype(block)::value;
        vec<A> sum[V] = {};
        for (int64_t k = 0; k < list.count; k++) {
          const T* from = x + in + list.at[k] + c;
          _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
            sum[v] += V == 1 ? load_up_to(from, count) : load_wide(from + v * L);
          }
        }
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) store_up_to(y + out + c + v * L, sum[v] / divisor, count);
      });
    });
  });
}

// The gradient's loops: sum = term(sum, at, count, tap, index, oh, ow) over the windows that may hold a pixel, in
// row-major order. `at` is where the window's output stands, `tap` what the pixel is to it; `count` lanes are meant.
template <class T, class Term>
PYCONV_INLINE void gather(const Pool2dShape& s, T* dx, const Term& term) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Index4 X = s.x_index(), Y = s.y_index();
  for_rows(s, s.h.in, [&](int64_t begin, int64_t end) {
    int64_t* first = static_cast<int64_t*>(scratch(0, size_t(s.w.in) * 2 * sizeof(int64_t)));  // (IW,) outputs
    int64_t* last = first + s.w.in;
    for (int64_t iw = 0; iw < s.w.in; iw++) first[iw] = s.w.first_output(iw), last[iw] = s.w.last_output(iw);
    for (int64_t row = begin; row < end; row++) {
      const int64_t n = row / s.h.in, ih = row % s.h.in, top = s.h.first_output(ih), bottom = s.h.last_output(ih);
      for (int64_t iw = 0; iw < s.w.in; iw++) {
        const int64_t left = first[iw], right = last[iw], index = ih * s.w.in + iw;
        const int64_t from = Y(n, 0, top, left);
        const int64_t tap0 = (ih + s.h.padding - top * s.h.stride) * s.w.kernel + iw + s.w.padding - left * s.w.stride;
        T* to = dx + X(n, 0, ih, iw);
        for_blocks<A>(s.C, [&](int64_t c, auto block, int64_t count) {
          constexpr int V = decltype(block)::value;
          vec<A> sum[V] = {};
          int64_t at_row = from + c, tap_row = tap0;
          for (int64_t oh = top; oh <= bottom; oh++, at_row += Y.h, tap_row -= s.h.stride * s.w.kernel) {
            int64_t at = at_row, tap = tap_row;
            for (int64_t ow = left; ow <= right; ow++, at += s.C, tap -= s.w.stride) {
              _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
                sum[v] = term(sum[v], at + v * L, V == 1 ? count : L, tap, index, oh, ow);
              }
            }
          }
          _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) store_up_to(to + c + v * L, sum[v], count);
        });
      }
    }
  });
}

// What gather gives where windows tile the image: each stands alone, and writes its pixels and those that none holds.
// term(at, count, tap, oh, ow) is dx at that tap.
template <class T, class Term>
PYCONV_INLINE void spread(const Pool2dShape& s, T* dx, const Term& term) {
  using A = acc_t<T>;
  const Index4 X = s.x_index(), Y = s.y_index();
  for_rows(s, s.h.out, [&](int64_t begin, int64_t end) {
    const bool far = is_far(s);
    for (int64_t row = begin; row < end; row++) {
      const int64_t n = row / s.h.out, oh = row % s.h.out, top = oh * s.h.stride;
      const int64_t bottom = oh + 1 == s.h.out ? s.h.in : top + s.h.stride;
      for (int64_t ow = 0; ow < s.w.out; ow++) {
        const int64_t left = ow * s.w.stride, right = ow + 1 == s.w.out ? s.w.in : left + s.w.stride;
        const int64_t from = Y(n, 0, oh, ow);
        for (int64_t ih = top; ih < bottom; ih++) {
          T* to = dx + X(n, 0, ih, left);
          if (far) prefetch<1>(to, (right - left) * s.C);
          for (int64_t iw = left; iw < right; iw++, to += s.C) {
            const bool in_window = ih < top + s.h.kernel && iw < left + s.w.kernel;
            const int64_t tap = (ih - top) * s.w.kernel + iw - left;
            for_blocks<A>(s.C, [&](int64_t c, auto block, int64_t count) {
              constexpr int V = decltype(block)::value;
              _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
                const int64_t at = c + v * Vec<A>::size;
                store_up_to(to + at, in_window ? term(from + at, count, tap, oh, ow) : vec<A>{}, count);
              }
            });
          }
        }
      }
    }
  });
}

// 1.7 times as fast as gather at 6 channels, where what a pixel has to find out costs more than its channels, and 1.3 times
// as slow at 64 (2x2 windows, Zen 5).
template <class A>
bool is_spread(const Pool2dShape& s) {
  const auto tiles = [](const PoolAxis& a) { return a.kernel == a.stride && a.padding == 0 && a.dilation == 1; };
  return tiles(s.h) && tiles(s.w) && s.C <= Vec<A>::size;
}

// dx[index] += dy, some channels of an image at a time: in dx itself where it is of the sums' type.
template <class T>
void scatter(const Pool2dShape& s, const T* dy, const int64_t* where, T* dx) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  constexpr bool in_place = sizeof(T) == sizeof(A);
  const int64_t pixels = s.h.in * s.w.in, outputs = s.h.out * s.w.out;
  const int64_t width = in_place ? round_up(divide_up(s.C, parts_of(s.N)), L) : L, blocks = divide_up(s.C, width);
  const int64_t pitch = in_place ? s.C : L;
  parallel_for(s.N * blocks, divide_up(serial_values, (pixels + outputs) * width), [&](int64_t begin, int64_t end) {
    A* sums = in_place ? nullptr : static_cast<A*>(scratch(0, sizeof(A) * pixels * L));
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / blocks, c = item % blocks * width, count = at_most(s.C - c, width);
      T* to = dx + n * pixels * s.C + c;
      if constexpr (in_place) sums = to;
      for (int64_t i = 0; i < pixels; i++) __builtin_memset(sums + i * pitch, 0, size_t(count) * sizeof(A));
      for (int64_t o = 0; o < outputs; o++) {
        const int64_t at = (n * outputs + o) * s.C + c;
        for (int64_t l = 0; l < count; l++) {
          if (uint64_t(where[at + l]) < uint64_t(pixels)) sums[where[at + l] * pitch + l] += widen(dy[at + l]);
        }
      }
      if constexpr (!in_place) {
        for (int64_t i = 0; i < pixels; i++) store_up_to(to + i * s.C, load(sums + i * L), count);
      }
    }
  });
}

template <Keep keep, class T>
void max_bwd(const Pool2dShape& s, const T* dy, const pool2d::WhereWas& where, T* dx) {
  using A = acc_t<T>;
  if (s.h.adaptive() || s.w.adaptive()) return scatter(s, dy, where.indices, dx);
  if (keep == taps && is_spread<A>(s)) {
    return spread(s, dx, [&](int64_t at, int64_t count, int64_t tap, int64_t, int64_t) {
      return add_at<keep, A>(vec<A>{}, load_up_to(dy + at, count), where, at, tap, 0, count);
    });
  }
  gather(s, dx, [&](vec<A> sum, int64_t at, int64_t count, int64_t tap, int64_t index, int64_t, int64_t) {
    return add_at<keep, A>(sum, load_up_to(dy + at, count), where, at, tap, index, count);
  });
}

template <class T>
void avg_bwd(const Pool2dShape& s, const T* dy, T* dx) {
  using A = acc_t<T>;
  A* share = static_cast<A*>(scratch(1, size_t(s.h.out * s.w.out) * sizeof(A)));  // (OH, OW)
  for (int64_t oh = 0; oh < s.h.out; oh++) {
    for (int64_t ow = 0; ow < s.w.out; ow++) share[oh * s.w.out + ow] = 1 / A(s.divisor(oh, ow));
  }
  if (is_spread<A>(s)) {
    return spread(s, dx, [&](int64_t at, int64_t count, int64_t, int64_t oh, int64_t ow) {
      return load_up_to(dy + at, count) * share[oh * s.w.out + ow];
    });
  }
  gather(s, dx, [&](vec<A> sum, int64_t at, int64_t count, int64_t, int64_t, int64_t oh, int64_t ow) {
    return sum + load_up_to(dy + at, count) * share[oh * s.w.out + ow];
  });
}

}  // namespace

#include "cpu/pool2d/passes.h"

}  // namespace pool2d_channels

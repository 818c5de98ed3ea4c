// pool2d / channels.
// Computes  what reference.cpp says, max with the same choices, average with the same sums, for every window, plain or
//           adaptive; the gradient of the average multiplies by the reciprocal of the divisor
// Shapes    x (N,IH,IW,C), y and where (N,OH,OW,C): channels_last, lanes are channels
// Tiling    thread: rows of what is written, in ascending order; registers: K vectors of neighbouring channels of one
//           pixel, of maxima and where they stand, or of sums. The pixels of a window are listed once for all windows
//           that have as many, and such neighbours share a loop. Backward gathers: an input pixel asks every window that
//           holds it, so no two threads share a sum, and where windows tile the image it knows its only one; for adaptive
//           windows of max it scatters, some channels of an image at a time
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
  parallel_for(s.N * R, divide_up(serial_values, at_least(values, 1)), [&](int64_t begin, int64_t end) {
    const Rows mine = rows;  // what stores may reach, as far as GCC knows, is loaded again after each
    mine(begin, end);
  });
}

// body(c, block, count): `block` vectors of channels from c on, of the last of which `count` lanes are meant.
template <class A, class Body>
PYCONV_INLINE void for_blocks(int64_t C, const Body& body) {
  constexpr int64_t L = Vec<A>::size;
  int64_t c = 0;
  for (; c + K * L <= C; c += K * L) body(c, Int<K>(), L);
  if (c + 2 * L <= C) body(c, Int<2>(), L), c += 2 * L;
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

// Windows side by side that have the same list: [begin, end) of a row of them, the first one's first column, and what they
// are divided by along this axis.
struct Run {
  int64_t begin, end, left, pixels, divisor;
};

// The runs of a row of windows, one after the other.
struct Runs {
  Run* run;
  int64_t count = 0;

  explicit Runs(const Pool2dShape& s) : run(static_cast<Run*>(scratch(1, sizeof(Run) * size_t(s.w.out)))) {
    for (int64_t ow = 0; ow < s.w.out; ow++) {
      const Run here = {ow, ow + 1, s.w.start(ow), pixels_of(s.w, ow), s.w.count(ow, s.count_include_pad)};
      Run& last = run[at_least(count - 1, 0)];
      const bool same = count > 0 && here.pixels == last.pixels && here.divisor == last.divisor &&
                        here.left == last.left + (ow - last.begin) * s.w.stride;
      if (same) {
        last.end = ow + 1;
      } else {
        run[count++] = here;
      }
    }
  }
};

// What a loop over one run has to know: where its first window stands in y, that window's first pixel in x and the position
// of it, what its sum is divided by, and the way from a window to the next.
struct Walk {
  int64_t out, in, first, divisor;
  int64_t windows, C, x_step, first_step;
  int64_t new_rows, row, below;  // to ask for ahead: how many, the way from one up to the next, where the lowest one is
};

// visit(walk, list) for every run of rows [begin, end).
template <Keep keep, class Visit>
PYCONV_INLINE void for_runs(const Pool2dShape& s, int64_t begin, int64_t end, const Visit& visit) {
  const Index4 X = s.x_index(), Y = s.y_index();
  const int64_t new_rows = is_far(s) ? at_most(s.h.stride, s.h.kernel) : 0;
  const Runs runs(s);
  List list(s, 0);
  for (int64_t row = begin; row < end; row++) {
    const int64_t n = row / s.h.out, oh = row % s.h.out, top = s.h.start(oh), rows = pixels_of(s.h, oh);
    const int64_t divisor = s.h.count(oh, s.count_include_pad), bottom = oh * s.h.stride + s.h.kernel - 1;
    for (int64_t i = 0; i < runs.count; i++) {
      const Run& run = runs.run[i];
      list.make(rows, run.pixels, s.h.step() * X.h, s.w.step() * X.w, keep == taps ? s.w.kernel : s.h.step() * s.w.in,
                keep == taps ? 1 : s.w.step());
      const int64_t tap = (top + s.h.padding - oh * s.h.stride) * s.w.kernel +  // taps are of undilated windows
                          run.left + s.w.padding - run.begin * s.w.stride;
      const int64_t first = list.count == 0 ? -1 : keep == taps ? tap : top * s.w.in + run.left;
      visit(Walk{Y(n, 0, oh, run.begin), X(n, 0, top, run.left), first,
                 s.divisor_override ? s.divisor_override : divisor * run.divisor, run.end - run.begin, s.C,
                 s.w.stride * s.C, keep == indices && list.count ? s.w.stride : 0, new_rows, X.h,
                 X(n, 0, bottom, run.left)},
            list);
    }
  }
}

template <class T>
PYCONV_INLINE void prefetch_window(const T* x, const Walk& walk, int64_t window) {
  for (int64_t i = 0; i < walk.new_rows; i++) {
    prefetch<0>(x + walk.below - i * walk.row + window * walk.x_step, walk.x_step);
  }
}

// The windows of a run. A function of its own: in the loops around it GCC 12 has no registers left, and what these loops read
// is copied, for what stores may reach, as far as GCC knows, is loaded again after each.
template <Keep keep, class T>
PYCONV_NOINLINE void max_run(const Walk& run, const List& list, const T* x, T* y, const pool2d::Where& where) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Walk walk = run;
  const pool2d::Where to = where;
  const int64_t *const pixel = list.at, *const position = list.position, pixels = list.count;
  for (int64_t window = 0; window < walk.windows; window++) {
    const int64_t first = walk.first + window * walk.first_step, out = walk.out + window * walk.C;
    const T* const corner = x + walk.in + window * walk.x_step;
    prefetch_window(x, walk, window);
    for_blocks<A>(walk.C, [=](int64_t c, auto block, int64_t count) {
      constexpr int V = decltype(block)::value;
      vec<A> best[V];
      lanes<A> at[V];
      _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
        best[v] = vec<A>{} - A(__builtin_inff());
        at[v] = lanes<A>{} + lane<A>(first);
      }
      for (int64_t k = 0; k < pixels; k++) {
        const T* from = corner + pixel[k] + c;
        const lanes<A> here = lanes<A>{} + lane<A>(keep == nothing ? 0 : first + position[k]);
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
          take<keep, A>(V == 1 ? load_up_to(from, count) : load_wide(from + v * L), here, best[v], at[v]);
        }
      }
      _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
        store_up_to(y + out + c + v * L, best[v], count);
        put<keep, A>(to, out + c + v * L, at[v], count);
      }
    });
  }
}

template <class T>
PYCONV_NOINLINE void avg_run(const Walk& run, const List& list, const T* x, T* y) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Walk walk = run;
  const int64_t *const pixel = list.at, pixels = list.count;
  const A divisor = A(walk.divisor), share = 1 / divisor;
  const bool exact = (walk.divisor & (walk.divisor - 1)) == 0;  // x * share is x / divisor then, and faster
  for (int64_t window = 0; window < walk.windows; window++) {
    const T* const corner = x + walk.in + window * walk.x_step;
    T* const to = y + walk.out + window * walk.C;
    prefetch_window(x, walk, window);
    for_blocks<A>(walk.C, [=](int64_t c, auto block, int64_t count) {
      constexpr int V = decltype(block)::value;
      vec<A> sum[V] = {};
      for (int64_t k = 0; k < pixels; k++) {
        const T* from = corner + pixel[k] + c;
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
          sum[v] += V == 1 ? load_up_to(from, count) : load_wide(from + v * L);
        }
      }
      _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
        store_up_to(to + c + v * L, exact ? sum[v] * share : sum[v] / divisor, count);
      }
    });
  }
}

template <Keep keep, class T>
void max_fwd(const Pool2dShape& s, const T* x, T* y, const pool2d::Where& where) {
  for_rows(s, s.h.out, [=, &s](int64_t begin, int64_t end) {
    for_runs<keep>(s, begin, end, [&](const Walk& walk, const List& list) { max_run<keep>(walk, list, x, y, where); });
  });
}

template <class T>
void avg_fwd(const Pool2dShape& s, const T* x, T* y) {
  for_rows(s, s.h.out, [=, &s](int64_t begin, int64_t end) {
    for_runs<nothing>(s, begin, end, [&](const Walk& walk, const List& list) { avg_run(walk, list, x, y); });
  });
}

#include "cpu/pool2d/channels_bwd.h"

template <Keep keep, class T>
void max_bwd(const Pool2dShape& s, const T* dy, const pool2d::WhereWas where, T* dx) {
  using A = acc_t<T>;
  if (s.h.adaptive() || s.w.adaptive()) return scatter(s, dy, where.indices, dx);
  if (keep == taps && is_tiled(s)) {
    return spread(s, dx, [=](int64_t at, int64_t count, int64_t tap, int64_t) {
      return add_at<keep, A>(vec<A>{}, load_up_to(dy + at, count), where, at, tap, 0, count);
    });
  }
  gather(s, dx, [=](vec<A> sum, int64_t at, int64_t count, int64_t tap, int64_t index, int64_t) {
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
  if (is_tiled(s)) {
    return spread(s, dx, [=](int64_t at, int64_t count, int64_t, int64_t window) {
      return load_up_to(dy + at, count) * share[window];
    });
  }
  gather(s, dx, [=](vec<A> sum, int64_t at, int64_t count, int64_t, int64_t, int64_t window) {
    return sum + load_up_to(dy + at, count) * share[window];
  });
}

}  // namespace

#include "cpu/pool2d/passes.h"

}  // namespace pool2d_channels

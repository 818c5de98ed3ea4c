// pool2d / rows.
// Computes  maxima with where they stand, means, and both gradients, of plain windows. Maxima alone and means separably, the
//           rows of a window first, then its columns: KH + KW steps a window and not KH*KW, and means add in another order
//           than reference.cpp. Where maxima stand takes the taps in row-major order, which decides among equals
// Shapes    x (N,C,IH,IW), y and where (N,C,OH,OW): NCHW, lanes are columns of y.
//           A padded row is split by column modulo SW into phases (SW, length): column p lies at phases[p % SW][p / SW],
//           so that tap kw meets ow at phases[kw*DW % SW][ow + kw*DW / SW], contiguous in ow for every stride
// Tiling    thread: planes in ascending order; in L1: the split rows of a band of rows of y, or a band of rows of dy
// Cost      forward, per row of y: KH vector steps per L columns of x, one copy, KW steps per L outputs; no copy of windows
//           that are known when this is compiled (rows_known.h)
// Limits    NCHW, planes below 2^31 pixels, no adaptive windows (max's backward from indices, a scatter, takes any)
// Source    reference.cpp; separable windows as in van Herk, Pattern Recognition Letters 13(7), 1992

namespace pool2d_rows {
namespace {

#include "cpu/pool2d/where.h"

#include "cpu/pool2d/phases.h"

constexpr int64_t serial_pixels = 16384;  // pixels below which one thread is enough

// Rows of pooled planes at a time: what is written is read at another alignment only once the stores are done, and before it
// has left L1. 224 columns: positions of 2x2 windows take 1.25 times as long in bands of 8 as in bands of 4 (Zen 5).
int64_t band_of(const Pool2dShape& s) {
  const int64_t bytes = s.h.stride * s.w.in * 4;
  return bytes * 8 <= 8192 ? 8 : at_least(8192 / bytes, 1);
}

// planes(begin, end) of the N*C planes.
template <class Planes>
void for_planes(const Pool2dShape& s, const Planes& planes) {
  parallel_for(s.N * s.C, divide_up(serial_pixels, s.h.in * s.w.in), planes);
}

#include "cpu/pool2d/rows_known.h"

#include "cpu/pool2d/rows_bwd.h"

// finish(oh, ow, v) are the outputs of L windows whose pixels Op made v of.
template <class Op, class T, class Finish>
PYCONV_INLINE void forward(const Pool2dShape& s, const T* x, T* y, int64_t begin, int64_t end, const Finish& finish) {
  using A = acc_t<T>;
  if (pool2d::with_window(s, [&](auto window) {
        using W = decltype(window);
        forward_known<Op, W::K, W::S, W::P>(s, x, y, begin, end, finish);
      })) {
    return;
  }
  const int64_t band = band_of(s);
  const bool far = is_far(s);
  const Phases<A> split(s.w, Op::template none<A>, band);
  const T** row = array<const T*>(3, s.h.kernel + s.w.kernel);
  const A** tap = reinterpret_cast<const A**>(row + s.h.kernel);
  for (int64_t plane = begin; plane < end; plane++) {
    const T* from = x + plane * s.h.in * s.w.in;
    for (int64_t oh0 = 0; oh0 < s.h.out; oh0 += band) {
      const int64_t oh1 = at_most(oh0 + band, s.h.out);
      for (int64_t oh = oh0; oh < oh1; oh++) {
        int64_t rows = 0;
        for (int64_t ih = s.h.start(oh); ih < s.h.stop(oh); ih += s.h.dilation) row[rows++] = from + ih * s.w.in;
        if (far) prefetch<0>(row[0], s.h.stride * s.w.in);
        split.template write<Op>(row, rows, split.row(oh - oh0));
      }
      for (int64_t oh = oh0; oh < oh1; oh++) {
        T* to = y + (plane * s.h.out + oh) * s.w.out;
        for (int64_t kw = 0; kw < s.w.kernel; kw++) tap[kw] = split.row(oh - oh0) + split.tap[kw];
        fold<Op, 1>(tap, s.w.kernel, s.w.out,
                    [&](int64_t ow, const vec<A>* v, int64_t count)
                        __attribute__((always_inline)) { store_up_to(to + ow, finish(oh, ow, v[0]), count); });
      }
    }
  }
}

// Where maxima stand, too: taps in row-major order, among equals the first. What a window begins with is its first pixel.
template <Keep keep, class T>
void max_where(const Pool2dShape& s, const T* x, T* y, const pool2d::Where& where, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  if (pool2d::with_window(s, [&](auto window) {
        using W = decltype(window);
        where_known<W::K, W::S, W::P>(s, x, y, where, begin, end);
      })) {
    return;
  }
  constexpr int64_t L = Vec<A>::size;
  const int64_t band = band_of(s), width = round_up(s.w.out, L);
  const int64_t most_rows = (band - 1) * s.h.stride + (s.h.kernel - 1) * s.h.dilation + 1;
  const lanes<A> kw_step = lanes<A>{} + (keep == taps ? 1 : lane<A>(s.w.dilation));
  const lanes<A> kh_step = lanes<A>{} + lane<A>(keep == taps ? s.w.kernel : s.h.dilation * s.w.in);
  const bool far = is_far(s);
  const Phases<A> split(s.w, Larger::none<A>, most_rows);
  const A** row = array<const A*>(3, s.h.kernel);
  lane<A>* origin = array<lane<A>>(2, 2 * width);  // (width,) where tap 0 stands, of an index
  lane<A>* first = origin + width;                 // (width,) the first pixel, counted from there
  for (int64_t ow = 0; ow < width; ow++) {
    const int64_t at = ow * s.w.stride - s.w.padding;
    origin[ow] = lane<A>(at);
    first[ow] = lane<A>(keep == taps ? (s.w.start(ow) - at) / s.w.dilation : s.w.start(ow) - at);
  }

  for (int64_t plane = begin; plane < end; plane++) {
    for (int64_t oh0 = 0; oh0 < s.h.out; oh0 += band) {
      const int64_t oh1 = at_most(oh0 + band, s.h.out);
      const int64_t top = s.h.start(oh0), bottom = s.h.stop(oh1 - 1);
      for (int64_t ih = top; ih < bottom; ih++) {
        const T* from = x + (plane * s.h.in + ih) * s.w.in;
        if (far) prefetch<0>(from, s.w.in);
        split.template write<Larger>(&from, 1, split.row(ih - top));
      }
      for (int64_t oh = oh0; oh < oh1; oh++) {
        const int64_t start = s.h.start(oh), out = (plane * s.h.out + oh) * s.w.out;
        int64_t rows = 0;
        for (int64_t ih = start; ih < s.h.stop(oh); ih += s.h.dilation) row[rows++] = split.row(ih - top);
        const lane<A> row0 = lane<A>(keep == taps ? (start + s.h.padding - oh * s.h.stride) / s.h.dilation * s.w.kernel
                                                  : start * s.w.in);
        with_int<most_known>(s.w.kernel, [&](auto known) __attribute__((always_inline)) {
          constexpr int R = decltype(known)::value;
          int64_t tap[R];
          for (int kw = 0; kw < R; kw++) tap[kw] = split.tap[kw];
          for_steps(s.w.out, L, [&](int64_t ow, int64_t count) __attribute__((always_inline)) {
            vec<A> best = load(row[0] + tap[0] + ow);
            lanes<A> at = load(first + ow);
            lanes<A> row_at = {};
            for (int64_t kh = 0; kh < rows; kh++, row_at += kh_step) {
              const A* from = row[kh] + ow;
              lanes<A> here = row_at;
              _Pragma("GCC unroll 4") for (int kw = 0; kw < R; kw++, here += kw_step) {
                take_larger<A>(load(from + tap[kw]), here, best, at);
              }
              for (int64_t kw = R; R == most_known && kw < s.w.kernel; kw++, here += kw_step) {
                take_larger<A>(load(from + split.tap[kw]), here, best, at);
              }
            }
            store_up_to(y + out + ow, best, count);
            put<keep, A>(where, out + ow, keep == taps ? at + row0 : at + row0 + load(origin + ow), count);
          });
        });
      }
    }
  }
}

template <Keep keep, class T>
void max_fwd(const Pool2dShape& s, const T* x, T* y, const pool2d::Where& where) {
  for_planes(s, [&](int64_t begin, int64_t end) {
    if constexpr (keep == nothing) {
      forward<Larger>(s, x, y, begin, end, [](int64_t, int64_t, vec<acc_t<T>> v) { return v; });
    } else {
      max_where<keep>(s, x, y, where, begin, end);
    }
  });
}

template <class T>
void avg_fwd(const Pool2dShape& s, const T* x, T* y) {
  using A = acc_t<T>;
  for_planes(s, [&](int64_t begin, int64_t end) {
    const A* across = divisors_across<A>(s);
    forward<Sum>(s, x, y, begin, end, [&](int64_t oh, int64_t ow, vec<A> sum) {
      return sum / (load(across + ow) * divisor_down<A>(s, oh));
    });
  });
}

template <Keep keep, class T>
void max_bwd(const Pool2dShape& s, const T* dy, const pool2d::WhereWas& where, T* dx) {
  keep == taps ? max_bwd_from_taps(s, dy, where, dx) : scatter<indices>(s, dy, where, dx);
}

// Separably: the rows of dy that see a row of dx first. Rows of dx that the same windows see are the same.
template <class T>
void avg_bwd(const Pool2dShape& s, const T* dy, T* dx) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Gradient<T> g(s);
    const int64_t width = g.left + (s.w.in + s.w.padding - 1) / s.w.stride + 1;  // of what a row of dx reads
    A* down = array<A>(1, s.h.out + g.band * s.h.stride * g.pitch);              // (OH,) reciprocals of divisors
    A* total = down + s.h.out;  // (band * SH, pitch) of the rows of dy that see a row of dx
    A* across = divisors_across<A>(s);
    const A** row = array<const A*>(3, g.up + g.left + 2);
    const A** tap = row + g.up + 1;
    for (int64_t oh = 0; oh < s.h.out; oh++) down[oh] = 1 / divisor_down<A>(s, oh);
    for (int64_t ow = 0; ow < s.w.out; ow++) across[ow] = 1 / across[ow];
    for (int64_t plane = begin; plane < end; plane++) {
      const auto bring = [&](int64_t oh, int64_t at) {
        const T* from = dy + (plane * s.h.out + oh) * s.w.out;
        for_steps(s.w.out, L, [&](int64_t ow, int64_t count) __attribute__((always_inline)) {
          store_up_to(g.rows + at + ow, load_up_to(from + ow, count) * load(across + ow) * down[oh], count);
        });
      };
      const auto above = [&](int64_t, int64_t phase, int64_t at, int64_t into) {
        const int64_t rows = g.rows_at[phase];
        if (rows < 2) return;
        for (int64_t t = 0; t < rows; t++) row[t] = g.rows + at - g.left - (rows - 1 - t) * g.pitch;
        fold<Sum, 1>(row, rows, width, [&](int64_t i, const vec<A>* v, int64_t n) __attribute__((always_inline)) {
          store_up_to(total + into * g.pitch + i, v[0], n);
        });
      };
      g.plane(bring, above, [&](int64_t ih, int64_t phase, int64_t at, int64_t which) {
        const int64_t rows = g.rows_at[phase];
        if (ih > 0 && phase > 0 && g.rows_at[phase - 1] == rows && rows < 2) return;  // written with the row above
        int64_t copies = 1;
        while (rows < 2 && ih + copies < s.h.in && phase + copies < s.h.stride && g.rows_at[phase + copies] == rows) {
          copies++;
        }
        const A* sum = rows > 1 ? total + which * g.pitch + g.left : g.rows + at;
        g.write(dx + (plane * s.h.in + ih) * s.w.in, copies,
                [&](int64_t c, const auto& put) __attribute__((always_inline)) {
                  const int64_t taps = rows ? g.taps_at[c] : 0;
                  if (taps == 0) return for_steps(g.columns[c], L, [&](int64_t i, int64_t n) { put(i, vec<A>{}, n); });
                  for (int64_t t = 0; t < taps; t++) tap[t] = sum + g.shift[c] - (taps - 1 - t);
                  fold<Sum, 1>(tap, taps, g.columns[c],
                               [&](int64_t i, const vec<A>* v, int64_t n)
                                   __attribute__((always_inline)) { put(i, v[0], n); });
                });
      });
    }
  });
}

}  // namespace

#include "cpu/pool2d/passes.h"

}  // namespace pool2d_rows

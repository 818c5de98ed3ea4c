// pool2d / rows.
// Computes  maxima with where they stand, means, and both gradients, of plain windows. Separably: a row of x is reduced over
//           KW once, and the KH row results of a window are then combined: KH + KW steps a window, not KH*KW. Columns
//           first, then rows, keeps reference.cpp's choice among equals; a mean adds in another order than it
// Shapes    x (N,C,IH,IW), y and where (N,C,OH,OW): NCHW, lanes are columns of y.
//           A padded row is split by column modulo SW into phases (SW, length): column p lies at phases[p % SW][p / SW],
//           so that tap kw meets ow at phases[kw*DW % SW][ow + kw*DW / SW], contiguous in ow for every stride
// Tiling    thread: planes in ascending order; one split row and a ring of row results, all in L1 for common widths
// Cost      forward, per row of x: one copy and KW vector steps per L outputs; per row of y: KH more
// Limits    NCHW, planes below 2^31 pixels, no adaptive windows (max's backward from indices, a scatter, takes any)
// Source    reference.cpp; separable windows as in van Herk, Pattern Recognition Letters 13(7), 1992

namespace pool2d_rows {
namespace {

#include "cpu/pool2d/phases.h"
#include "cpu/pool2d/where.h"

constexpr int64_t serial_pixels = 16384;  // pixels below which one thread is enough

// planes(begin, end) of the N*C planes.
template <class Planes>
void for_planes(const Pool2dShape& s, const Planes& planes) {
  parallel_for(s.N * s.C, divide_up(serial_pixels, s.h.in * s.w.in), planes);
}

// What the forward passes share: the split row, where its taps lie, and the ring of rows of x already reduced.
template <class T>
struct Windows {
  using A = acc_t<T>;
  const PoolAxis h, w;
  const int64_t width, ring;  // a row result is `width` wide; the rows of one window fit the ring
  int64_t* const table;       // the four tables below
  const Phases<A> row;
  int64_t* const tap;    // (KW,) where each tap lies in phases
  int64_t* const holds;  // (ring,) the row of x in each slot
  int64_t* const place;  // (KH,) where the rows of the present window lie in reduced
  A* const phases;       // (SW, row.length), of one row of x
  A* const reduced;      // (ring, width)

  Windows(const Pool2dShape& s, A padding_value)
      : h(s.h),
        w(s.w),
        width(round_up(w.out, Vec<A>::size)),
        ring((h.kernel - 1) * h.dilation + 1),
        table(array<int64_t>(3, w.stride + w.kernel + ring + h.kernel)),
        row(w, at_least(width + (w.kernel - 1) * w.dilation / w.stride, (w.padding + w.in - 1) / w.stride + 1), table),
        tap(table + w.stride),
        holds(tap + w.kernel),
        place(holds + ring),
        phases(array<A>(0, w.stride * row.length + 2 * Vec<A>::size)),
        reduced(array<A>(1, ring * width)) {
    for (int64_t i = 0; i < w.stride * row.length; i++) phases[i] = padding_value;
    for (int64_t kw = 0; kw < w.kernel; kw++) tap[kw] = row.at(kw * w.dilation);
  }

  void new_plane() const {
    for (int64_t slot = 0; slot < ring; slot++) holds[slot] = -1;
  }

  // The number of rows in the window of oh, all of them in the ring: a new one is split, then reduced into its slot.
  template <class Reduce>
  int64_t bring(const T* x, int64_t oh, const Reduce& reduce) const {
    int64_t rows = 0;
    for (int64_t ih = h.start(oh); ih < h.stop(oh); ih += h.dilation, rows++) {
      const int64_t slot = ih % ring;
      place[rows] = slot * width;
      if (holds[slot] == ih) continue;
      row.split(x + ih * w.in, phases);
      reduce(place[rows]);
      holds[slot] = ih;
    }
    return rows;
  }
};

// Where a row's maximum stands: as a column of x, or as a tap of its window.
template <Keep keep, class T>
void max_fwd(const Pool2dShape& s, const T* x, T* y, const pool2d::Where& where) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const lane<A> step = keep == taps ? 1 : lane<A>(s.w.dilation);
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Windows<T> f(s, -A(__builtin_inff()));
    lane<A>* columns = array<lane<A>>(2, (f.ring + 2) * f.width);  // (ring, width)
    lane<A>* origin = columns + f.ring * f.width;                  // (width,) of tap 0
    lane<A>* first = origin + f.width;                             // (width,) of each window's first pixel
    for (int64_t ow = 0; ow < f.width; ow++) {
      const int64_t at = ow * s.w.stride - s.w.padding;
      origin[ow] = keep == taps ? 0 : lane<A>(at);
      first[ow] = lane<A>(keep == taps ? (s.w.start(ow) - at) / s.w.dilation : s.w.start(ow));
    }

    const auto reduce = [&](int64_t place) {
      for (int64_t ow = 0; ow < f.width; ow += L) {
        vec<A> best = vec<A>{} - A(__builtin_inff());
        lanes<A> column = load(first + ow);
        const lanes<A> from = load(origin + ow);
        for (int64_t kw = 0; kw < s.w.kernel; kw++) {
          take_larger<keep, A>(load(f.phases + f.tap[kw] + ow), from + lane<A>(kw) * step, best, column);
        }
        store(f.reduced + place + ow, best);
        if (keep != nothing) store(columns + place + ow, column);
      }
    };

    int64_t out = begin * s.h.out * s.w.out;
    for (int64_t plane = begin; plane < end; plane++) {
      f.new_plane();
      for (int64_t oh = 0; oh < s.h.out; oh++, out += s.w.out) {
        const int64_t rows = f.bring(x + plane * s.h.in * s.w.in, oh, reduce), top = s.h.start(oh);
        const int64_t row0 =
            keep == taps ? (top + s.h.padding - oh * s.h.stride) / s.h.dilation * s.w.kernel : top * s.w.in;
        const int64_t row_step = keep == taps ? s.w.kernel : s.h.dilation * s.w.in;
        for (int64_t ow = 0; ow < s.w.out; ow += L) {
          vec<A> best = load(f.reduced + f.place[0] + ow);
          lanes<A> at = {};
          if (keep != nothing) at = load(columns + f.place[0] + ow) + lane<A>(row0);
          for (int64_t kh = 1; kh < rows; kh++) {
            lanes<A> here = {};
            if (keep != nothing) here = load(columns + f.place[kh] + ow) + lane<A>(row0 + kh * row_step);
            take_larger<keep, A>(load(f.reduced + f.place[kh] + ow), here, best, at);
          }
          store_up_to(y + out + ow, best, s.w.out - ow);
          put<keep, A>(where, out + ow, at, s.w.out - ow);
        }
      }
    }
  });
}

// (width,) columns each window counts, or 1 where the divisor is given or there is no window.
template <class A>
A* divisors_across(const Pool2dShape& s, int64_t width) {
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

template <class T>
void avg_fwd(const Pool2dShape& s, const T* x, T* y) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Windows<T> f(s, 0);
    const A* across = divisors_across<A>(s, f.width);

    const auto reduce = [&](int64_t place) {
      for (int64_t ow = 0; ow < f.width; ow += L) {
        vec<A> sum = {};
        for (int64_t kw = 0; kw < s.w.kernel; kw++) sum += load(f.phases + f.tap[kw] + ow);
        store(f.reduced + place + ow, sum);
      }
    };

    int64_t out = begin * s.h.out * s.w.out;
    for (int64_t plane = begin; plane < end; plane++) {
      f.new_plane();
      for (int64_t oh = 0; oh < s.h.out; oh++, out += s.w.out) {
        const int64_t rows = f.bring(x + plane * s.h.in * s.w.in, oh, reduce);
        const A down = divisor_down<A>(s, oh);
        for (int64_t ow = 0; ow < s.w.out; ow += L) {
          vec<A> sum = {};
          for (int64_t kh = 0; kh < rows; kh++) sum += load(f.reduced + f.place[kh] + ow);
          store_up_to(y + out + ow, sum / (load(across + ow) * down), s.w.out - ow);
        }
      }
    }
  });
}

// What the gradients share: rows of dy, each between zeros, in a ring; their windows' columns, phase by phase, added up
// in one split row of dx.
template <class T>
struct Gradient {
  using A = acc_t<T>;
  static constexpr int64_t L = Vec<A>::size;
  const PoolAxis h, w;
  const int64_t reach, length, ring, pitch;  // reach: windows that hold a column, less one
  int64_t* const holds;                      // (ring,) the row of dy in each slot
  int64_t *const place, *const tap;          // (ring,) of the windows that hold a row of dx: their rows of dy, their kh
  const Phases<A> row;
  A* const phases;  // (SW, length) the row of dx
  A* const rows;    // (ring, pitch): `reach` zeros, then a row of dy, then zeros

  explicit Gradient(const Pool2dShape& s)
      : h(s.h),
        w(s.w),
        reach((w.kernel - 1) / w.stride),
        length(round_up((w.padding + w.in - 1) / w.stride + 1, L)),
        ring(divide_up(h.kernel, h.stride)),
        pitch(reach + at_least(length, round_up(w.out, L))),
        holds(array<int64_t>(3, 3 * ring + w.stride)),
        place(holds + ring),
        tap(place + ring),
        row(w, length, tap + ring),
        phases(array<A>(0, w.stride * length + 2 * L + ring * pitch)),
        rows(phases + w.stride * length + 2 * L) {
    for (int64_t i = 0; i < ring * pitch; i++) rows[i] = 0;
  }

  // dx of a plane: bring(oh, at) puts a row of dy into the ring, at `rows` + at; add(at, tap, sum) adds the windows whose
  // outputs stand at `rows` + at, to which the pixels are that tap.
  template <class Bring, class Add>
  inline __attribute__((always_inline)) void plane(T* dx, const Bring& bring, const Add& add) const {
    for (int64_t slot = 0; slot < ring; slot++) holds[slot] = -1;
    for (int64_t ih = 0; ih < h.in; ih++) {
      const int64_t first = h.first_output(ih), last = h.last_output(ih);
      for (int64_t oh = first; oh <= last; oh++) {
        const int64_t slot = oh % ring;
        place[oh - first] = slot * pitch + reach;
        tap[oh - first] = (ih + h.padding - oh * h.stride) * w.kernel;
        if (holds[slot] != oh) bring(oh, place[oh - first]);
        holds[slot] = oh;
      }
      for (int64_t phase = 0; phase < w.stride; phase++) {
        const int64_t taps_here = phase < w.kernel ? (w.kernel - 1 - phase) / w.stride + 1 : 0;
        for (int64_t j = 0; j < length; j += L) {
          vec<A> sum = {};
          for (int64_t k = 0; k <= last - first; k++) {
            for (int64_t t = 0; t < taps_here; t++) add(place[k] + j - t, tap[k] + phase + t * w.stride, sum);
          }
          store(phases + phase * length + j, sum);
        }
      }
      row.join(phases, dx + ih * w.in);
    }
  }
};

template <class T>
void avg_bwd(const Pool2dShape& s, const T* dy, T* dx) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Gradient<T> g(s);
    const A* across = divisors_across<A>(s, round_up(s.w.out, L));
    for (int64_t plane = begin; plane < end; plane++) {
      const T* from = dy + plane * s.h.out * s.w.out;
      g.plane(
          dx + plane * s.h.in * s.w.in,
          [&](int64_t oh, int64_t at) {
            const A down = divisor_down<A>(s, oh);
            for (int64_t ow = 0; ow < s.w.out; ow += L) {
              const vec<A> row = load_up_to(from + oh * s.w.out + ow, s.w.out - ow);
              store(g.rows + at + ow, row / (load(across + ow) * down));
            }
          },
          [&](int64_t at, int64_t, vec<A>& sum) { sum += load(g.rows + at); });
    }
  });
}

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

template <Keep keep, class T>
void max_bwd(const Pool2dShape& s, const T* dy, const pool2d::WhereWas& where, T* dx) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  if constexpr (keep == indices) return scatter(s, dy, where.indices, dx);
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Gradient<T> g(s);
    uint8_t* tap = array<uint8_t>(1, g.ring * g.pitch + L);  // beside g.rows
    for (int64_t plane = begin; plane < end; plane++) {
      const int64_t from = plane * s.h.out * s.w.out;
      g.plane(
          dx + plane * s.h.in * s.w.in,
          [&](int64_t oh, int64_t to) {
            const int64_t row = from + oh * s.w.out;
            for (int64_t ow = 0; ow < s.w.out; ow += L) {
              store(g.rows + to + ow, load_up_to(dy + row + ow, s.w.out - ow));
            }
            __builtin_memcpy(tap + to, where.taps + row, size_t(s.w.out));
          },
          [&](int64_t at, int64_t tap_here, vec<A>& sum) {
            sum += get<A>(tap + at, L) == lanes<A>{} + lane<A>(tap_here) ? load(g.rows + at) : vec<A>{};
          });
    }
  });
}

}  // namespace

#include "cpu/pool2d/passes.h"

}  // namespace pool2d_rows

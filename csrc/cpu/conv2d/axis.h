// What a direct convolution does along one axis, the same for the forward pass and for the phases of an input gradient.
#pragma once
#include "common/shape.h"

namespace pyconv {
namespace {  // one copy per object: what is compiled per ISA may share no function with the program

// One axis of a convolution-like problem: output position o stands at `out0 + o * out_step` of its image and sees the
// source at o * step + offset(t) for every tap t. fwd is one of these; bwd_input is one per phase of the stride.
struct Axis {
  int64_t out, out0, out_step, step;
  int64_t taps, tap0, tap_step;  // kernel taps tap0, tap0 + tap_step, ...
  int64_t offset0, offset_step;  // offset(t) = offset0 + t * offset_step
  int64_t source;                // source size

  int64_t offset(int64_t t) const { return offset0 + t * offset_step; }
  int64_t lowest() const { return taps == 0 ? 0 : at_most(offset0, offset0 + (taps - 1) * offset_step); }
  int64_t reach() const { return taps == 0 ? 0 : at_least(offset_step, -offset_step) * (taps - 1); }
};

inline Axis forward_axis(int64_t out, int64_t k, int64_t stride, int64_t padding, int64_t dilation, int64_t in) {
  return {out, 0, 1, stride, k, 0, 1, -padding, dilation, in};
}

// Input pixels i = phase - P + S*t (from the first that is >= 0) meet taps k with k*D = phase mod S, at dy row
// t + (phase - k*D) / S.
inline Axis phase_axis(int64_t phase, int64_t in, int64_t k, int64_t stride, int64_t padding, int64_t dilation,
                       int64_t out) {
  const int64_t first = phase >= padding ? 0 : divide_up(padding - phase, stride);  // first t
  const int64_t out0 = phase - padding + stride * first;
  Axis a = {out0 < in ? divide_up(in - out0, stride) : 0, out0, stride, 1, 0, 0, 1, 0, 0, out};
  int64_t second = -1;
  for (int64_t t = 0; t < k; t++) {
    if ((phase - t * dilation) % stride != 0) continue;
    if (a.taps == 0) a.tap0 = t;
    if (a.taps == 1) second = t;
    a.taps++;
  }
  if (second >= 0) a.tap_step = second - a.tap0;
  a.offset0 = first + (phase - a.tap0 * dilation) / stride;
  a.offset_step = -a.tap_step * dilation / stride;
  return a;
}

inline int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -divide_up(-a, b); }

// One axis. Position o of an output phase meets, through a tap, position o + q of a source phase, q in [low, high].
// fwd: one output phase, a source phase per step of the stride. bwd_input: the other way round.
struct Grid {
  bool gradient;
  int64_t source, total, kernel, stride, padding, dilation;  // total: output size, all phases
  int64_t source_phases, phases, low, high;

  Grid(bool gradient, int64_t source, int64_t total, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation)
      : gradient(gradient),
        source(source),
        total(total),
        kernel(kernel),
        stride(stride),
        padding(padding),
        dilation(dilation),
        source_phases(gradient ? 1 : stride),
        phases(gradient ? stride : 1),
        low(INT64_MAX),
        high(INT64_MIN) {
    for (int64_t p = 0; p < phases; p++) {
      const Axis a = axis(p);
      if (a.taps == 0) continue;
      const int64_t first = floor_divide(a.offset(0), source_phases);
      const int64_t last = floor_divide(a.offset(a.taps - 1), source_phases);
      low = at_most(low, at_most(first, last));
      high = at_least(high, at_least(first, last));
    }
  }
  // Neighbouring taps meet neighbouring rows, of at most two phases.
  bool consecutive() const { return dilation == 1 && source_phases <= 2; }
  // The phase whose first output is p.
  Axis axis(int64_t p) const {
    return gradient ? phase_axis((p + padding) % stride, total, kernel, stride, padding, dilation, source)
                    : forward_axis(total, kernel, stride, padding, dilation, source);
  }
  int64_t out() const { return divide_up(total, phases); }              // of the longest phase
  int64_t columns() const { return divide_up(source, source_phases); }  // of the longest source phase
  int64_t q(const Axis& a, int64_t t) const { return floor_divide(a.offset(t), source_phases); }
  int64_t source_phase(const Axis& a, int64_t t) const { return a.offset(t) - q(a, t) * source_phases; }
};

inline Grid height(const Conv2dShape& s, bool gradient) {
  return {gradient, gradient ? s.OH : s.IH, gradient ? s.IH : s.OH, s.KH, s.SH, s.PH, s.DH};
}
inline Grid width(const Conv2dShape& s, bool gradient) {
  return {gradient, gradient ? s.OW : s.IW, gradient ? s.IW : s.OW, s.KW, s.SW, s.PW, s.DW};
}

// One phase along one axis: taps in ascending order of what they meet, output o meeting o * step + low + t * apart.
struct Line {
  int64_t out, out0, out_step, step, taps, low, apart, source;
  bool descending;  // tap t of this order is tap taps - 1 - t of the phase

  explicit Line(const Axis& a)
      : out(a.out),
        out0(a.out0),
        out_step(a.out_step),
        step(a.step),
        taps(a.taps),
        low(a.offset0 + (a.offset_step < 0 ? (a.taps - 1) * a.offset_step : 0)),
        apart(at_least(a.offset_step, -a.offset_step)),
        source(a.source),
        descending(a.offset_step < 0) {}
  // Taps [first, last) that output o meets inside the image.
  void inside(int64_t o, int64_t& first, int64_t& last) const {
    first = 0, last = taps;
    const auto outside = [&](int64_t t) {
      return o * step + low + t * apart < 0 || o * step + low + t * apart >= source;
    };
    while (first < last && outside(first)) first++;
    while (first < last && outside(last - 1)) last--;
  }
};

// Bit i says whether from + i * step lies in [0, size), for i < count < 64.
inline uint64_t bits_inside(int64_t from, int64_t step, int64_t count, int64_t size) {
  const int64_t first = from >= 0 ? 0 : at_most(divide_up(-from, step), count);
  const int64_t last = from >= size ? first : at_least(at_most(divide_up(size - from, step), count), first);
  return ((uint64_t(1) << (last - first)) - 1) << first;
}

// Taps of a tile of neighbouring outputs along one axis: three that share pixels, or one. Pixel j of the tile's stands at
// `at` + j * apart; bit j says whether it is in the image.
struct Run {
  int64_t taps, at, apart;
  uint64_t inside;
};

// The tiles of one axis and their runs, the same for every line across it.
struct Tiles {
  int64_t n, size;  // of them, and most runs of one
  int64_t* first;   // (n + 1) outputs
  int64_t* counts;  // (n) of runs
  Run* runs;        // (n, size)

  static int64_t bytes(int64_t out, int64_t taps, int64_t most) {
    return divide_up(out, most) * (taps * sizeof(Run) + 2 * sizeof(int64_t)) + sizeof(int64_t);
  }
  Tiles(const Line& line, int64_t most, char* memory)
      : n(divide_up(line.out, most)),
        size(line.taps),
        first(reinterpret_cast<int64_t*>(memory)),
        counts(first + n + 1),
        runs(reinterpret_cast<Run*>(counts + n)) {}
  // Tiles of `most` outputs, the last of what is left; `pitch`: from one pixel to the next. Only if `always`, and in
  // whole tiles, do taps go together that share pixels.
  void list(const Line& line, int64_t most, int64_t shared_step, bool always, int64_t pitch) {
    for (int64_t i = 0; i <= n; i++) first[i] = at_most(i * most, line.out);
    for (int64_t i = 0; i < n; i++) {
      const int64_t count = first[i + 1] - first[i];
      const bool shared = line.apart == 1 && line.step <= shared_step && (always || count == most);
      counts[i] = 0;
      for (int64_t t = 0, K; t < line.taps; t += K, counts[i]++) {
        K = shared && line.taps - t >= 3 ? 3 : 1;
        const int64_t from = first[i] * line.step + line.low + t * line.apart, step = K == 1 ? line.step : 1;
        const int64_t pixels = K == 1 ? count : (count - 1) * line.step + K;
        runs[i * size + counts[i]] = {K, from * pitch, step * pitch, bits_inside(from, step, pixels, line.source)};
      }
    }
  }
};

// What the rows of a band of output meet: [low, low + extent(n)) for n rows of the longest phase.
struct Reach {
  int64_t step, low, high, source;
  explicit Reach(const Grid& g) : step(g.source_phases), low(g.low), high(g.high), source(g.source) {
    if (g.gradient) return;
    low = g.axis(0).lowest(), high = low + g.axis(0).reach();
  }
  int64_t extent(int64_t n) const { return at_most((n - 1) * step + high - low + 1, source); }
  // Rows [top, bottom) of the image that rows [o, o + n) meet.
  int64_t top(int64_t o) const { return at_most(at_least(o * step + low, 0), source); }
  int64_t bottom(int64_t o, int64_t n) const {
    return at_least(at_most((o + n - 1) * step + high + 1, source), top(o));
  }
};

}  // namespace
}  // namespace pyconv

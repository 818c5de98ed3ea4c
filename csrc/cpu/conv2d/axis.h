// What a direct convolution does along one axis, the same for the forward pass and for the phases of an input gradient.
#pragma once
#include "common/shape.h"

namespace pyconv {

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

}  // namespace pyconv

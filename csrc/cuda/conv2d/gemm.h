// The three passes of conv2d as one matrix product D[row, column] = sum over terms of A[row, term] * B[term, column], made
// of data alone: rows are channels, one of columns and terms counts pixels and the other taps of the window. Both are
// numbers of three digits, and a step along a digit moves each operand by a constant:
//
//   pass        row  column        term          A   B                        D
//   fwd         oc   (n, oh, ow)   (ic, kh, kw)  w   x gathered by windows    y
//   bwd_input   ic   (n, ih, iw)   (oc, kh, kw)  w   dy gathered by windows   dx, one product per phase of the stride
//   bwd_weight  oc   (ic, kh, kw)  (n, oh, ow)   dy  x gathered by windows    dw
//
// so that one kernel does all three in both layouts, at any stride, padding, dilation and number of groups. Host code: no
// CUDA here.
#pragma once
#include "common/shape.h"

namespace pyconv::cuda::conv2d {

// What one step along a digit adds: to the offsets into A, B and D, and to the row and column of B's image.
struct Digit {
  int radix = 1;
  int a = 0, b = 0, d = 0, h = 0, w = 0;
};

struct Gemm {
  int M = 0, N = 0, K = 0;                // rows, columns, terms
  int row_a = 0, row_d = 0;               // from one row to the next
  Digit column[3], term[3];               // the fastest digit first
  int a = 0, b = 0, d = 0, h = 0, w = 0;  // where row 0, column 0, term 0 starts
  int H = 0, W = 0;                       // B's image: outside it is zero
  int groups = 1, group_a = 0, group_b = 0, group_d = 0;
  int splits = 1;         // the terms are cut into this many sums,
  int split_d = 0;        // each with a D of its own, this far apart
  bool a_by_term = true;  // whether neighbouring terms, else rows, of A are neighbours in memory
  bool b_by_term = true;  // whether neighbouring terms, else columns, of B are
};

// Digits of the taps of a window, in the order in which weights lie in memory.
inline void set_taps(Digit (&digits)[3], Layout layout, const Digit& channel, const Digit& kh, const Digit& kw) {
  if (layout == Layout::nchw) {
    digits[0] = kw, digits[1] = kh, digits[2] = channel;
  } else {
    digits[0] = channel, digits[1] = kw, digits[2] = kh;
  }
}

inline Gemm gemm_fwd(const Conv2dShape& s) {
  const Index4 X = s.x_index(), W = s.w_index(), Y = s.y_index();
  Gemm g;
  g.M = int(s.oc_per_group());
  g.N = int(s.N * s.OH * s.OW);
  g.K = int(s.ic_per_group() * s.KH * s.KW);
  g.row_a = int(W.n), g.row_d = int(Y.c);
  g.column[0] = {int(s.OW), 0, int(s.SW * X.w), int(Y.w), 0, int(s.SW)};
  g.column[1] = {int(s.OH), 0, int(s.SH * X.h), int(Y.h), int(s.SH), 0};
  g.column[2] = {int(s.N), 0, int(X.n), int(Y.n), 0, 0};
  set_taps(g.term, s.layout, {int(s.ic_per_group()), int(W.c), int(X.c), 0, 0, 0},
           {int(s.KH), int(W.h), int(s.DH * X.h), 0, int(s.DH), 0},
           {int(s.KW), int(W.w), int(s.DW * X.w), 0, 0, int(s.DW)});
  g.h = -int(s.PH), g.w = -int(s.PW), g.b = int(-s.PH * X.h - s.PW * X.w);
  g.H = int(s.IH), g.W = int(s.IW);
  g.groups = int(s.G);
  g.group_a = int(s.oc_per_group() * W.n);
  g.group_b = int(s.ic_per_group() * X.c);
  g.group_d = int(s.oc_per_group() * Y.c);
  g.b_by_term = s.layout == Layout::nhwc;
  return g;
}

inline Gemm gemm_bwd_weight(const Conv2dShape& s) {
  const Index4 X = s.x_index(), W = s.w_index(), Y = s.y_index();
  Gemm g;
  g.M = int(s.oc_per_group());
  g.N = int(s.ic_per_group() * s.KH * s.KW);
  g.K = int(s.N * s.OH * s.OW);
  g.row_a = int(Y.c), g.row_d = int(W.n);
  set_taps(g.column, s.layout, {int(s.ic_per_group()), 0, int(X.c), int(W.c), 0, 0},
           {int(s.KH), 0, int(s.DH * X.h), int(W.h), int(s.DH), 0},
           {int(s.KW), 0, int(s.DW * X.w), int(W.w), 0, int(s.DW)});
  g.term[0] = {int(s.OW), int(Y.w), int(s.SW * X.w), 0, 0, int(s.SW)};
  g.term[1] = {int(s.OH), int(Y.h), int(s.SH * X.h), 0, int(s.SH), 0};
  g.term[2] = {int(at_least(s.N, 1)), int(Y.n), int(X.n), 0, 0, 0};
  g.h = -int(s.PH), g.w = -int(s.PW), g.b = int(-s.PH * X.h - s.PW * X.w);
  g.H = int(s.IH), g.W = int(s.IW);
  g.groups = int(s.G);
  g.group_a = int(s.oc_per_group() * Y.c);
  g.group_b = int(s.ic_per_group() * X.c);
  g.group_d = int(s.oc_per_group() * W.n);
  g.a_by_term = g.b_by_term = s.layout == Layout::nchw;
  return g;
}

// One axis of one phase of the stride: the pixels i = pixel + S*q, q < pixels, all see the same taps k = tap + step*j,
// j < taps, and tap j of pixel q sees the output o = output + q - backward*j.
struct Phase {
  int pixel, pixels, tap, step, taps, output, backward;
};

inline Phase phase_of(int64_t r, int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  int64_t common = stride, rest = dilation;  // greatest common divisor
  while (rest != 0) {
    const int64_t next = common % rest;
    common = rest;
    rest = next;
  }
  const int64_t step = stride / common, pixel = ((r - padding) % stride + stride) % stride;
  Phase p = {
      int(pixel), pixel < in ? int(divide_up(in - pixel, stride)) : 0, 0, int(step), 0, 0, int(dilation / common)};
  for (int64_t tap = 0; tap < at_most(step, kernel); tap++) {
    if ((pixel + padding - tap * dilation) % stride != 0) continue;
    p.tap = int(tap);
    p.taps = int(divide_up(kernel - tap, step));
    p.output = int((pixel + padding - tap * dilation) / stride);
  }
  return p;
}

// launch(rh, rw) for every phase of the stride, to the first that fails: its error.
template <class Launch>
int launch_phases(const Conv2dShape& s, const Launch& launch) {
  for (int64_t rh = 0; rh < s.SH; rh++) {
    for (int64_t rw = 0; rw < s.SW; rw++) {
      if (const int error = launch(rh, rw)) return error;
    }
  }
  return 0;
}

// Of the pixels (ih + PH) % SH == rh and (iw + PW) % SW == rw.
inline Gemm gemm_bwd_input(const Conv2dShape& s, int64_t rh, int64_t rw) {
  const Index4 X = s.x_index(), W = s.w_index(), Y = s.y_index();
  const Phase h = phase_of(rh, s.IH, s.KH, s.SH, s.PH, s.DH), w = phase_of(rw, s.IW, s.KW, s.SW, s.PW, s.DW);
  Gemm g;
  g.M = int(s.ic_per_group());
  g.N = int(s.N) * h.pixels * w.pixels;
  g.K = int(s.oc_per_group()) * h.taps * w.taps;
  g.row_a = int(W.c), g.row_d = int(X.c);
  const auto radix = [](int count) { return count > 0 ? count : 1; };
  g.column[0] = {radix(w.pixels), 0, int(Y.w), int(s.SW * X.w), 0, 1};
  g.column[1] = {radix(h.pixels), 0, int(Y.h), int(s.SH * X.h), 1, 0};
  g.column[2] = {radix(int(s.N)), 0, int(Y.n), int(X.n), 0, 0};
  set_taps(g.term, s.layout, {int(s.oc_per_group()), int(W.n), int(Y.c), 0, 0, 0},
           {radix(h.taps), int(h.step * W.h), int(-h.backward * Y.h), 0, -h.backward, 0},
           {radix(w.taps), int(w.step * W.w), int(-w.backward * Y.w), 0, 0, -w.backward});
  g.a = int(h.tap * W.h + w.tap * W.w);
  g.h = h.output, g.w = w.output, g.b = int(h.output * Y.h + w.output * Y.w);
  g.d = int(h.pixel * X.h + w.pixel * X.w);
  g.H = int(s.OH), g.W = int(s.OW);
  g.groups = int(s.G);
  g.group_a = int(s.oc_per_group() * W.n);
  g.group_b = int(s.oc_per_group() * Y.c);
  g.group_d = int(s.ic_per_group() * X.c);
  g.a_by_term = s.layout == Layout::nchw;
  g.b_by_term = s.layout == Layout::nhwc;
  return g;
}

// g, with D where that of `other` lies, which has the same rows and columns.
inline Gemm with_d_of(Gemm g, const Gemm& other) {
  for (int i = 0; i < 3; i++) g.column[i].d = other.column[i].d;
  g.row_d = other.row_d, g.d = other.d, g.group_d = other.group_d;
  return g;
}

// Blocks that keep a GPU busy: two for each of the 108 multiprocessors of an A100. Arithmetic, not a measurement.
constexpr int64_t enough_blocks = 216;

// Into how many sums the weight gradient's terms are cut, where `tiles` blocks have all of them. A function of the shape
// alone, so that every GPU adds in the same order; each sum has `least` terms or more, so that writing and adding up the
// parts stays cheap beside making them.
inline int64_t splits_for(const Conv2dShape& s, int64_t tiles, int64_t least) {
  const int64_t wanted = at_most(divide_up(enough_blocks, tiles), divide_up(s.N * s.OH * s.OW, least));
  return at_least(at_most(wanted, 65535 / s.G), 1);
}

inline int64_t splits_of(const Conv2dShape& s) {
  return splits_for(s, s.G * divide_up(s.oc_per_group(), 64) * divide_up(s.ic_per_group() * s.KH * s.KW, 64), 256);
}

// Of the weight gradient, what a thread of the kernels for few channels has: rows and taps of `direct`, taps where there is
// one row, and of `depthwise` for each of its channels. Sums of 16 terms in a thread and more.
constexpr int direct_rows = 8, direct_taps = 4, direct_depthwise_taps = 9, depthwise_taps = 9;

inline int64_t direct_splits_of(const Conv2dShape& s) {
  const int64_t terms = s.ic_per_group() * s.KH * s.KW, rows = s.oc_per_group();
  const int64_t tiles = rows == 1 ? divide_up(terms, direct_depthwise_taps)
                                  : divide_up(rows, direct_rows) * divide_up(terms, direct_taps);
  return splits_for(s, s.G * tiles, 16 * 128);
}

inline int64_t depthwise_splits_of(const Conv2dShape& s) {
  const int64_t channels = 128 / size_of(s.dtype);
  return splits_for(s, divide_up(s.G, channels) * divide_up(s.KH * s.KW, depthwise_taps), 16 * 16);
}

inline int64_t weight_count(const Conv2dShape& s) { return s.OC * s.ic_per_group() * s.KH * s.KW; }

// What the weight gradient's sums take in the workspace, and a copy of `count` values in channels_last, where one is needed.
inline int64_t parts_bytes(const Conv2dShape& s, int64_t splits) {
  return round_up(splits * weight_count(s) * int64_t(sizeof(float)), 16);
}
inline int64_t turned_bytes(const Conv2dShape& s, int64_t count) {
  return s.layout == Layout::nhwc ? 0 : round_up(count * size_of(s.dtype), 16);
}

}  // namespace pyconv::cuda::conv2d

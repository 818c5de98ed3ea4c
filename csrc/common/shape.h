// The alphabet of the project, declared once.
//
//   N  images             G  groups
//   IC IH IW  channels, height, width of the input    OC OH OW  of the output
//   KH KW  kernel   SH SW  stride   PH PW  padding before the first row/column   DH DW  dilation
//
// A loop index is the lower-case letter of its extent. x w b y are the operands, dx dw db dy their gradients.
// A shape is a POD with sizes, storage type and layout; it travels by const reference beside raw pointers. What a kernel
// may ask of it is constexpr: CUDA code may call that too.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace pyconv {

// Dense layouts of a logical (N, C, H, W) tensor; nhwc is torch's channels_last. All tensors of a call share one.
enum class Layout { nchw, nhwc };

inline const char* name_of(Layout layout) { return layout == Layout::nchw ? "NCHW" : "channels_last"; }

// offset = index(n, c, h, w) into a dense tensor of C channels of H x W.
struct Index4 {
  int64_t n, c, h, w;  // strides, in elements
  constexpr int64_t operator()(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return in * n + ic * c + ih * h + iw * w;
  }
};

// Code compiled per ISA may share no function with the program: what it calls is inlined, whatever its size.
#define PYCONV_INLINED inline __attribute__((always_inline))

PYCONV_INLINED constexpr Index4 index_of(Layout layout, int64_t C, int64_t H, int64_t W) {
  if (layout == Layout::nchw) return {C * H * W, H * W, W, 1};
  return {H * W * C, 1, W * C, C};
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// What a forward pass makes of its sums: y = act(sum + bias + residual), rounded once.
struct Epilogue {
  const void* bias = nullptr;      // (OC,), or null
  const void* residual = nullptr;  // of y's shape, type and layout, or null
  bool relu = false;
  double ceiling = __builtin_nan("");  // of a relu: what exceeds it becomes it. NaN, which nothing exceeds, for none
};

// What batch norm has per channel, of type acc_t<dtype>: a null weight means 1, a null bias 0.
struct Affine {
  const void *weight, *bias;
};
struct Statistics {
  const void *mean, *var;
};
// What comes back: dy, and after a relu its output y, which says where it let something pass: above 0 and below its
// ceiling, NaN for none; else null.
struct Upstream {
  const void *dy, *y = nullptr;
  double ceiling = __builtin_nan("");
};
struct Gradients {
  void *dx, *dweight, *dbias;
  void* dresidual = nullptr;  // of dx's shape, or null
};

struct Conv2dShape {
  int64_t N, G;
  int64_t IC, IH, IW;  // x (N, IC, IH, IW)
  int64_t OC, KH, KW;  // w (OC, IC/G, KH, KW)
  int64_t OH, OW;      // y (N, OC, OH, OW)
  int64_t SH, SW, PH, PW, DH, DW;
  DType dtype;
  Layout layout;

  constexpr int64_t ic_per_group() const { return IC / G; }
  constexpr int64_t oc_per_group() const { return OC / G; }
  PYCONV_INLINED constexpr Index4 x_index() const { return index_of(layout, IC, IH, IW); }
  PYCONV_INLINED constexpr Index4 w_index() const { return index_of(layout, ic_per_group(), KH, KW); }
  PYCONV_INLINED constexpr Index4 y_index() const { return index_of(layout, OC, OH, OW); }
  // Of any of the three passes; padding counts as work.
  int64_t flops() const { return 2 * N * OC * OH * OW * ic_per_group() * KH * KW; }
  // Compulsory traffic: every operand once.
  PYCONV_INLINED int64_t bytes() const {
    return size_of(dtype) * (N * IC * IH * IW + OC * ic_per_group() * KH * KW + N * OC * OH * OW);
  }
};

// A pooling window along one axis: output o reads the inputs start(o), start(o) + step(), ... below stop(o); there may
// be none where a dilated window steps over a small image. Adaptive pooling (kernel == 0) covers the inputs
// [floor(o*in/out), ceil((o+1)*in/out)).
struct PoolAxis {
  int64_t in, out, kernel, stride, padding, dilation;

  constexpr bool adaptive() const { return kernel == 0; }
  constexpr int64_t step() const { return adaptive() ? 1 : dilation; }
  // First input of the window inside the image, and one past the last it may read.
  constexpr int64_t start(int64_t o) const {
    if (adaptive()) return o * in / out;
    const int64_t first = o * stride - padding;
    return first >= 0 ? first : first + divide_up(-first, dilation) * dilation;
  }
  constexpr int64_t stop(int64_t o) const {
    if (adaptive()) return divide_up((o + 1) * in, out);
    return at_most(o * stride - padding + (kernel - 1) * dilation + 1, in);
  }
  // Inputs an undilated window counts: those in the image and, if asked, those in the padding, but never what a
  // ceil_mode window reaches beyond the padding.
  constexpr int64_t count(int64_t o, bool include_pad) const {
    if (adaptive() || !include_pad) return stop(o) - start(o);
    const int64_t first = o * stride - padding;
    return at_most(first + kernel, in + padding) - first;
  }
  // The outputs whose window may hold input i: all of them if dilation == 1, else the window must still be asked.
  constexpr int64_t first_output(int64_t i) const {
    if (adaptive()) return i * out / in;
    const int64_t reach = i + padding - (kernel - 1) * dilation;
    return reach <= 0 ? 0 : divide_up(reach, stride);
  }
  constexpr int64_t last_output(int64_t i) const {
    if (adaptive()) return at_most(divide_up((i + 1) * out, in), out) - 1;
    return at_most((i + padding) / stride, out - 1);
  }
};

struct Pool2dShape {
  int64_t N, C;
  PoolAxis h, w;  // x (N, C, h.in, w.in), y and indices (N, C, h.out, w.out)
  DType dtype;
  Layout layout;
  bool count_include_pad = true;  // of average pooling
  int64_t divisor_override = 0;   // of average pooling; 0 counts the window

  PYCONV_INLINED constexpr Index4 x_index() const { return index_of(layout, C, h.in, w.in); }
  PYCONV_INLINED constexpr Index4 y_index() const { return index_of(layout, C, h.out, w.out); }
  constexpr int64_t divisor(int64_t oh, int64_t ow) const {
    if (divisor_override) return divisor_override;
    return h.count(oh, count_include_pad) * w.count(ow, count_include_pad);
  }
  // Compulsory traffic of one direction, without indices.
  PYCONV_INLINED int64_t bytes() const { return size_of(dtype) * N * C * (h.in * w.in + h.out * w.out); }
};

// Batch norm sees (N, C, H, W) as C channels of N*H*W values each; what it keeps per channel, statistics and
// parameters, is of type acc_t<dtype>.
struct NormShape {
  int64_t N, C, H, W;
  DType dtype;
  Layout layout;
  double eps;
  bool training;  // the statistics are the batch's own, so that their gradient flows into dx

  constexpr int64_t plane() const { return H * W; }
  constexpr int64_t per_channel() const { return N * H * W; }
  constexpr Index4 x_index() const { return index_of(layout, C, H, W); }
};

}  // namespace pyconv

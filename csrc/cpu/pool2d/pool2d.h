// Pooling on the CPU: the kernels and the lists that choose among them (list.cpp). Adaptive pooling is the same list
// with other windows.
#pragma once
#include <string>
#include <vector>

#include "common/kernel_list.h"
#include "common/shape.h"

namespace pyconv::pool2d {

// Where maxima stand, (N, C, OH, OW), in one of two ways or, where nobody asks, neither: indices are offsets ih*IW + iw
// into the plane, -1 where a window holds no pixel; taps are kh*KW + kw of plain undilated windows, one byte each.
struct Where {
  int64_t* indices;
  uint8_t* taps;
};
struct WhereWas {
  const int64_t* indices;
  const uint8_t* taps;
};
constexpr int64_t most_taps = 255;

// Operands are dense in s.layout and of type s.dtype; outputs are written whole.
using MaxFwd = void(const Pool2dShape& s, const void* x, void* y, const Where& where);
using MaxBwd = void(const Pool2dShape& s, const void* dy, const WhereWas& where, void* dx);
using AvgFwd = void(const Pool2dShape& s, const void* x, void* y);
using AvgBwd = void(const Pool2dShape& s, const void* dy, void* dx);
// Between a pooled tensor (h.out, w.out) and the planes (h.in, w.in) that indices point into. False if an index points
// elsewhere: no kernel follows it. -1 is no index, and only FromPlane may meet it.
using ToPlane = bool(const Pool2dShape& s, const void* pooled, const int64_t* indices, void* plane);
using FromPlane = bool(const Pool2dShape& s, const void* plane, const int64_t* indices, void* pooled);

// K x K windows of stride S and padding P, for those that rows.h is compiled for: the ones of most networks.
template <int k, int s, int p>
struct Window {
  static constexpr int K = k, S = s, P = p;
};
// Calls body(Window()), or returns false.
template <class Body>
PYCONV_INLINED bool with_window(const Pool2dShape& s, const Body& body) {
  const PoolAxis &h = s.h, &w = s.w;
  const bool square = h.kernel == w.kernel && h.stride == w.stride && h.padding == w.padding;
  if (!square || h.dilation > 1 || w.dilation > 1) return false;
  if (h.kernel == 2 && h.stride == 2 && h.padding == 0) return body(Window<2, 2, 0>()), true;
  if (h.kernel == 3 && h.stride == 2 && h.padding == 0) return body(Window<3, 2, 0>()), true;
  if (h.kernel == 3 && h.stride == 2 && h.padding == 1) return body(Window<3, 2, 1>()), true;
  if (h.kernel == 3 && h.stride == 1 && h.padding == 1) return body(Window<3, 1, 1>()), true;
  return false;
}

using WhyNot = std::string(const Pool2dShape&, Pass, Ask);

struct MaxKernel {
  const char* name;
  const char* source;  // file, relative to the repository
  WhyNot* why_not;
  MaxFwd* fwd;
  MaxBwd* bwd;  // dx[index] += dy
};
struct AvgKernel {
  const char* name;
  const char* source;
  WhyNot* why_not;
  AvgFwd* fwd;
  AvgBwd* bwd;
};
struct UnpoolKernel {
  const char* name;
  const char* source;
  WhyNot* why_not;
  ToPlane* fwd;    // y[index] = x, zero elsewhere
  FromPlane* bwd;  // dx = dy[index]
};

// `op` is the name a refusal speaks of: max_pool2d or adaptive_max_pool2d.
const MaxKernel& choose_max(const char* op, const Pool2dShape& s, Pass pass, const std::string& algorithm);
const AvgKernel& choose_avg(const char* op, const Pool2dShape& s, Pass pass, const std::string& algorithm);
const UnpoolKernel& choose_unpool(const char* op, const Pool2dShape& s, Pass pass, const std::string& algorithm);

std::vector<std::string> max_algorithms();
std::vector<std::string> avg_algorithms();
std::vector<std::string> unpool_algorithms();
std::vector<Answer> ask_max(const Pool2dShape& s, Pass pass, Ask what);
std::vector<Answer> ask_avg(const Pool2dShape& s, Pass pass, Ask what);
std::vector<Answer> ask_unpool(const Pool2dShape& s, Pass pass, Ask what);

// reference.cpp: the formula, any type, any window.
WhyNot reference_why_not;
MaxFwd reference_max_fwd;
MaxBwd reference_max_bwd;
AvgFwd reference_avg_fwd;
AvgBwd reference_avg_bwd;
ToPlane reference_unpool_fwd;
FromPlane reference_unpool_bwd;

// channels.cpp: channels_last, lanes are channels.
WhyNot channels_max_why_not, channels_avg_why_not;
MaxFwd channels_max_fwd;
MaxBwd channels_max_bwd;
AvgFwd channels_avg_fwd;
AvgBwd channels_avg_bwd;

// rows.cpp: NCHW, lanes are columns of the output.
WhyNot rows_max_why_not, rows_avg_why_not;
MaxFwd rows_max_fwd;
MaxBwd rows_max_bwd;
AvgFwd rows_avg_fwd;
AvgBwd rows_avg_bwd;

// transposed.cpp: small planes of NCHW, lanes are planes.
WhyNot transposed_max_why_not, transposed_avg_why_not;
MaxFwd transposed_max_fwd;
MaxBwd transposed_max_bwd;
AvgFwd transposed_avg_fwd;
AvgBwd transposed_avg_bwd;

// unpool.cpp: any type, any layout.
ToPlane offsets_unpool_fwd;
FromPlane offsets_unpool_bwd;

// planes.cpp: float32 NCHW, the mean of whole planes.
WhyNot planes_avg_why_not;
AvgFwd planes_avg_fwd;
AvgBwd planes_avg_bwd;

}  // namespace pyconv::pool2d

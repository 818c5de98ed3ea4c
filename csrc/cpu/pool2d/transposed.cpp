// Instances of transposed.h for every ISA and storage type, and when they can run.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/pool2d/transposed.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::pool2d {

namespace {

// `largest`: bytes of the narrowest tile with 64-byte vectors. An adaptive window has no other kernel.
std::string why_not(const Pool2dShape& s, Ask ask, int64_t largest) {
  if (s.layout != Layout::nchw) return "it turns planes, which in channels_last lie turned already";
  const bool adaptive = s.h.adaptive() || s.w.adaptive();
  if (ask == Ask::chosen && !adaptive && (s.h.in * s.w.in + s.h.out * s.w.out) * 64 > largest) {
    return "planes this large fill the lanes of rows, which turns nothing";
  }
  return "";
}

}  // namespace

// rows.h takes 1.4 times as long as this for 3x3 windows of stride 2 over 28 x 28, and 0.6 times for 3x3 windows of stride 1.
std::string transposed_avg_why_not(const Pool2dShape& s, Pass, Ask ask) { return why_not(s, ask, 98304); }

// Of gradients of maxima rows.h takes 1.3 times as long over 14 x 14, and 0.7 times over 28 x 28 (2x2 windows, Zen 5).
std::string transposed_max_why_not(const Pool2dShape& s, Pass pass, Ask ask) {
  if (s.h.in * s.w.in > INT32_MAX) return "its indices are 32-bit and the plane has 2^31 pixels or more";
  return why_not(s, ask, pass == Pass::bwd_input ? 49152 : 98304);
}

void transposed_max_fwd(const Pool2dShape& s, const void* x, void* y, const Where& where) {
  PYCONV_PER_ISA(pool2d_transposed::max_fwd)(s, x, y, where);
}

void transposed_max_bwd(const Pool2dShape& s, const void* dy, const WhereWas& where, void* dx) {
  if (s.h.adaptive() || s.w.adaptive()) return rows_max_bwd(s, dy, where, dx);  // a scatter
  PYCONV_PER_ISA(pool2d_transposed::max_bwd)(s, dy, where, dx);
}

void transposed_avg_fwd(const Pool2dShape& s, const void* x, void* y) {
  PYCONV_PER_ISA(pool2d_transposed::avg_fwd)(s, x, y);
}

void transposed_avg_bwd(const Pool2dShape& s, const void* dy, void* dx) {
  PYCONV_PER_ISA(pool2d_transposed::avg_bwd)(s, dy, dx);
}

}  // namespace pyconv::pool2d

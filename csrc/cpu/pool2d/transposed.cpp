// Instances of transposed.h for every ISA and storage type, and when they can run.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/pool2d/transposed.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::pool2d {

// `largest`: bytes of the narrowest tile with 64-byte vectors, beyond which rows.h is faster (Zen 5): windows that it knows
// take 0.4 to 0.9 times as long there over 28 x 28, as long over 14 x 14, twice as long over 8 x 8; windows that it does not
// know 1.4 times over 28 x 28. An adaptive window has no other kernel.
std::string transposed_avg_why_not(const Pool2dShape& s, Pass pass, Ask ask) {
  if (s.layout != Layout::nchw) return "it turns planes, which in channels_last lie turned already";
  const bool adaptive = s.h.adaptive() || s.w.adaptive();
  const bool known = pass == Pass::fwd && with_window(s, [](auto) {});
  const int64_t largest = known ? 32768 : 98304;
  if (ask == Ask::chosen && !adaptive && (s.h.in * s.w.in + s.h.out * s.w.out) * 64 > largest) {
    return "planes this large fill the lanes of rows, which turns nothing";
  }
  return "";
}

// Gradients of maxima as forward passes, though rows.h is 1.1 to 2 times as slow up to 14 x 14.
std::string transposed_max_why_not(const Pool2dShape& s, Pass pass, Ask ask) {
  if (s.h.in * s.w.in > INT32_MAX) return "its indices are 32-bit and the plane has 2^31 pixels or more";
  const bool gathered = pass == Pass::bwd_input && with_window(s, [](auto) {});
  return transposed_avg_why_not(s, gathered ? Pass::fwd : pass, ask);
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

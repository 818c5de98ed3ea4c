// Instances of channels.h for every ISA and storage type, and when they can run.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/pool2d/channels.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::pool2d {

std::string channels_avg_why_not(const Pool2dShape& s, Pass, Ask) {
  if (s.layout != Layout::nhwc) return "its lanes are channels, which lie apart in NCHW";
  return "";
}

std::string channels_max_why_not(const Pool2dShape& s, Pass pass, Ask ask) {
  if (s.h.in * s.w.in > INT32_MAX) return "its indices are 32-bit and the plane has 2^31 pixels or more";
  return channels_avg_why_not(s, pass, ask);
}

void channels_max_fwd(const Pool2dShape& s, const void* x, void* y, const Where& where) {
  PYCONV_PER_ISA(pool2d_channels::max_fwd)(s, x, y, where);
}

void channels_max_bwd(const Pool2dShape& s, const void* dy, const WhereWas& where, void* dx) {
  PYCONV_PER_ISA(pool2d_channels::max_bwd)(s, dy, where, dx);
}

void channels_avg_fwd(const Pool2dShape& s, const void* x, void* y) {
  PYCONV_PER_ISA(pool2d_channels::avg_fwd)(s, x, y);
}

void channels_avg_bwd(const Pool2dShape& s, const void* dy, void* dx) {
  PYCONV_PER_ISA(pool2d_channels::avg_bwd)(s, dy, dx);
}

}  // namespace pyconv::pool2d

// Instances of channels.h for every ISA, and when they can run.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/pool2d/channels.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::pool2d {

std::string channels_avg_why_not(const Pool2dShape& s, Pass, Ask) {
  if (s.dtype != DType::f32) return std::string("it computes in float32, not ") + name_of(s.dtype);
  if (s.layout != Layout::nhwc) return "its lanes are channels, which lie apart in NCHW";
  return "";
}

std::string channels_max_why_not(const Pool2dShape& s, Pass pass, Ask ask) {
  if (s.h.in * s.w.in > INT32_MAX) return "its indices are 32-bit and the plane has 2^31 pixels or more";
  if (pass == Pass::bwd_input && s.h.adaptive()) return "it finds windows by stride; adaptive ones have none";
  return channels_avg_why_not(s, pass, ask);
}

void channels_max_fwd(const Pool2dShape& s, const void* x, void* y, int64_t* indices) {
  PYCONV_PER_ISA(pool2d_channels::max_fwd)
  (s, static_cast<const float*>(x), static_cast<float*>(y), indices);
}

void channels_max_bwd(const Pool2dShape& s, const void* dy, const int64_t* indices, void* dx) {
  PYCONV_PER_ISA(pool2d_channels::max_bwd)
  (s, static_cast<const float*>(dy), indices, static_cast<float*>(dx));
}

void channels_avg_fwd(const Pool2dShape& s, const void* x, void* y) {
  PYCONV_PER_ISA(pool2d_channels::avg_fwd)(s, static_cast<const float*>(x), static_cast<float*>(y));
}

void channels_avg_bwd(const Pool2dShape& s, const void* dy, void* dx) {
  PYCONV_PER_ISA(pool2d_channels::avg_bwd)(s, static_cast<const float*>(dy), static_cast<float*>(dx));
}

}  // namespace pyconv::pool2d

// Instances of depthwise_planes.h for every ISA and storage type, and when to use it.
#include "cpu/conv2d/axis.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/conv2d/depthwise_planes.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::conv2d {

std::string depthwise_planes_why_not(const Conv2dShape& s, Pass pass, Ask) {
  if (s.ic_per_group() != 1 || s.oc_per_group() != 1) {
    return "needs one input and one output channel per group, got " + std::to_string(s.ic_per_group()) + " and " +
           std::to_string(s.oc_per_group());
  }
  if (s.layout != Layout::nchw && s.IC > 1) return "needs NCHW tensors, got channels_last";
  if (pass != Pass::bwd_input && s.SW != 1 && (s.SW != 2 || s.SH != 2)) {
    return "needs a horizontal stride of 1 or a stride of (2, 2), got (" + std::to_string(s.SH) + ", " +
           std::to_string(s.SW) + ")";
  }
  return "";
}

void depthwise_planes_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  PYCONV_PER_ISA(depthwise_planes::fwd)(s, x, w, e, y);
}

void depthwise_planes_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  PYCONV_PER_ISA(depthwise_planes::bwd_input)(s, dy, w, dx);
}

void depthwise_planes_bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  PYCONV_PER_ISA(depthwise_planes::bwd_weight)(s, dy, x, dw);
}

}  // namespace pyconv::conv2d

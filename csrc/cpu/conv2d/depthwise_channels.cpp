// Instances of depthwise_channels.h for every ISA and storage type, and when to use it.
#include "cpu/conv2d/axis.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/conv2d/depthwise_channels.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::conv2d {

std::string depthwise_channels_why_not(const Conv2dShape& s, Pass, Ask ask) {
  if (s.ic_per_group() != 1 || s.oc_per_group() != 1) {
    return "needs one input and one output channel per group, got " + std::to_string(s.ic_per_group()) + " and " +
           std::to_string(s.oc_per_group());
  }
  if (ask == Ask::able || s.layout == Layout::nhwc) return "";
  // In NCHW against depthwise_planes, one thread: 14x14 1.5 to 2 times faster, 7x7 2 to 3, 56x56 with 64 to 240 channels
  // 1 to 3, 112x112 with 32 to 96 channels 1.5 to 3; but 24 channels, of whose 32 lanes a quarter idle, 0.7 to 1, and
  // 224x224 0.6 to 1.2.
  if (s.IH * s.IW > 128 * 128) return "pays in NCHW up to 128x128 pixels, got " + std::to_string(s.IH * s.IW);
  if ((s.IC + 15) / 16 * 64 > s.IC * 5) {
    return "pays in NCHW where channels fill 4/5 of their vectors, got " + std::to_string(s.IC);
  }
  return "";
}

void depthwise_channels_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  PYCONV_PER_ISA(depthwise_channels::fwd)(s, x, w, e, y);
}

void depthwise_channels_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  PYCONV_PER_ISA(depthwise_channels::bwd_input)(s, dy, w, dx);
}

void depthwise_channels_bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  PYCONV_PER_ISA(depthwise_channels::bwd_weight)(s, dy, x, dw);
}

}  // namespace pyconv::conv2d

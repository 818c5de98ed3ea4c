// Instances of depthwise_channels.h for every ISA and storage type.
#include "cpu/conv2d/axis.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/conv2d/depthwise_channels.h"
#define PYCONV_KERNEL_FOR_BF16
#include "cpu/for_each_isa.inc"

namespace pyconv::conv2d {

void depthwise_channels_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  PYCONV_PER_ISA_OR_BF16(s.dtype, depthwise_channels::fwd)(s, x, w, e, y);
}

void depthwise_channels_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  PYCONV_PER_ISA_OR_BF16(s.dtype, depthwise_channels::bwd_input)(s, dy, w, dx);
}

void depthwise_channels_bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  PYCONV_PER_ISA_OR_BF16(s.dtype, depthwise_channels::bwd_weight)(s, dy, x, dw);
}

}  // namespace pyconv::conv2d

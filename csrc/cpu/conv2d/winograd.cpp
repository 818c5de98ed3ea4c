// Instances of winograd.h for every ISA and storage type.
#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/toom_cook.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/conv2d/winograd.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::conv2d {

void winograd_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  PYCONV_PER_ISA(winograd::fwd)(s, x, w, e, y);
}

void winograd_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  PYCONV_PER_ISA(winograd::bwd_input)(s, dy, w, dx);
}

void winograd_bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  PYCONV_PER_ISA(winograd::bwd_weight)(s, dy, x, dw);
}

}  // namespace pyconv::conv2d

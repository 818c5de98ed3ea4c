// Instances of direct_channels.h for every ISA and storage type, and when to use it.
#include "cpu/conv2d/axis.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/conv2d/direct_channels.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::conv2d {

std::string direct_channels_why_not(const Conv2dShape& s, Pass pass, Ask ask) {
  if (ask == Ask::able) return "";
  const bool gradient = pass == Pass::bwd_input;
  const int64_t C = gradient ? s.oc_per_group() : s.ic_per_group(), M = gradient ? s.ic_per_group() : s.oc_per_group();
  const int64_t pixels = gradient ? s.IH * s.IW : s.OH * s.OW;
  // Zen 5 with AVX-512, one thread, float32, over direct_planes and over implicit_gemm: stems of 1 to 4 channels and 32
  // to 96 filters fwd 1.2 to 2.3 and 1.1 to 1.7, bwd_weight 1.3 to 2.7 and 1.15 to 1.6; LeNet c3 and 3x3 with stride 2,
  // 8 to 32 channels, 1.3 to 2 and 1 to 1.3. Filters that leave lanes idle lose: LeNet c1, 6 of them, 0.3 to 0.5;
  // simple_cnn c1, 8, 0.5 to 0.7. So do few pixels: 4x4 and 2x2 outputs 0.8 to 0.9 of implicit_gemm. In NCHW with its
  // copies 2x2 to 20x20 outputs 1.1 to 4.7, but 32x32 of 3 channels 0.8 of either, and 112x112 0.7 to 1.
  if (M < 12) return "pays from 12 channels on that could fill vectors, got " + std::to_string(M);
  if (C > 64) return "pays up to 64 channels to sum over, got " + std::to_string(C);
  if (s.layout == Layout::nhwc && pixels < 36) return "pays from 36 pixels an image on, got " + std::to_string(pixels);
  if (s.layout == Layout::nchw && pixels > 512) {
    return "pays in NCHW up to 512 pixels an image, got " + std::to_string(pixels);
  }
  return "";
}

void direct_channels_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  PYCONV_PER_ISA(direct_channels::fwd)(s, x, w, e, y);
}

void direct_channels_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  PYCONV_PER_ISA(direct_channels::bwd_input)(s, dy, w, dx);
}

void direct_channels_bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  PYCONV_PER_ISA(direct_channels::bwd_weight)(s, dy, x, dw);
}

}  // namespace pyconv::conv2d

// Instances of direct_planes.h for every ISA and storage type, and when to use it.
#include "cpu/conv2d/axis.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/conv2d/direct_planes.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::conv2d {

// Thresholds measured on Zen 5 with AVX-512, one thread, both layouts, float32, against implicit_gemm, which fills its
// vectors with output channels and needs no gaps: `python -m pyconv bench` of the LeNet, CIFAR, ResNet, AlexNet, VGG,
// DQN, ConvNeXt and DeepSpeech2 stems, of groups of 2 to 16 channels and of dense layers of 1 to 24 channels.
std::string direct_planes_why_not(const Conv2dShape& s, Pass pass, Ask ask) {
  if (ask == Ask::able) return "";
  const bool gradient = pass == Pass::bwd_input, weight = pass == Pass::bwd_weight, nchw = s.layout == Layout::nchw;
  const int64_t C = gradient ? s.oc_per_group() : s.ic_per_group();
  const int64_t M = gradient ? s.ic_per_group() : s.oc_per_group();
  const int64_t terms = C * s.KH * s.KW, pixels = s.OH * s.OW;
  const auto slower = [](const char* where, int64_t got) {
    return "is slower than implicit_gemm " + std::string(where) + ", got " + std::to_string(got);
  };
  // 24 channels fill 3/4 of a tile of implicit_gemm. Beyond, in NCHW, windows of few channels still win: r18.stem, ds2.c1
  // and vgg16.c1_1 fwd and bwd_weight 1.02 to 1.25, ConvNeXt's stem and 3 to 64 channels at 32x32 bwd_weight 0.7;
  // r18.l2.down, alexnet.c2g2, segnet.7x7 and 5x5 of 32 and 64 channels fwd 1.04 to 1.4, bwd_input 1.05 to 1.7.
  const bool window = s.KH * s.KW > 1 && C <= 128 && M <= 128;
  const bool stem = weight ? terms <= 160 && pixels >= 10000 : nchw ? window : !gradient && C <= 3;
  if (M > 24 && !stem) return slower("from 25 channels per group that could fill vectors", M);
  // simple_cnn c2, 7x7 outputs in channels_last: 0.7; 16 channels of 7x7: 0.4 as weight gradient, whose every sum is
  // loaded and stored once an image.
  if (weight && pixels < 196 && !(nchw && M * terms <= 288)) return slower("below 196 pixels an image", pixels);
  if (!weight && !gradient && pixels < (nchw ? 36 : 100)) return slower("where few pixels fill no vectors", pixels);
  return "";
}

void direct_planes_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  PYCONV_PER_ISA(direct_planes::fwd)(s, x, w, e, y);
}

void direct_planes_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  PYCONV_PER_ISA(direct_planes::bwd_input)(s, dy, w, dx);
}

void direct_planes_bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  PYCONV_PER_ISA(direct_planes::bwd_weight)(s, dy, x, dw);
}

}  // namespace pyconv::conv2d

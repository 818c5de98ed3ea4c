// When each kernel of the list refuses: for good (Ask::able) or because another is faster (Ask::chosen), with the
// measurement that says so.
#include "cpu/conv2d/conv2d.h"

namespace pyconv::conv2d {

std::string winograd_why_not(const Conv2dShape& s, Pass, Ask ask) {
  const auto pair = [](int64_t a, int64_t b, const char* sign) { return std::to_string(a) + sign + std::to_string(b); };
  if (!allow_winograd) return "pyconv.backends.allow_winograd is False";
  if (s.KH != 3 || s.KW != 3 || s.SH != 1 || s.SW != 1 || s.DH != 1 || s.DW != 1) {
    return "needs a 3x3 kernel with stride 1 and dilation 1, got " + pair(s.KH, s.KW, "x") + " with stride (" +
           pair(s.SH, s.SW, ", ") + ") and dilation (" + pair(s.DH, s.DW, ", ") + ")";
  }
  if (ask == Ask::able) return "";
  // Speed over implicit_gemm as it was before its panels, and over torch: 1 thread on a busy machine, AVX-512, float32,
  // all directions and layouts.
  // 8 channels at 32x32, N = 32: 1.3 to 2.4, and 1.0 to 2.4; 12 channels at 56x56: 2.2 to 3.1, and 1.4 to 5.7; but 3 in
  // and 64 out: 0.4 to 0.6 of torch forward. No lower bound on the image: 64 channels at 4x4 are 3.8 to 13 times
  // implicit_gemm. Torch wins the smallest in channels_last: forward, N = 1, 64 at 4x4 0.77, 512 at 2x2 0.38.
  if (s.ic_per_group() < 8 || s.oc_per_group() < 8) {
    return "pays from 8 input and 8 output channels per group on, got " + std::to_string(s.ic_per_group()) + " and " +
           std::to_string(s.oc_per_group());
  }
  return "";
}

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
  // A window of one pixel is a plain matrix product; two threads, over implicit_gemm: fwd 0.81, 0.94 and 1.00, bwd_weight
  // 0.81 to 1.05 (r18.l2.short, regr.67797, mbv2.pw); but bwd_input 1.38 and 1.45 (r50.reduce, mbv2.pw).
  if (s.KH * s.KW == 1 && !gradient) return "is no faster than implicit_gemm for a 1x1 kernel";
  if (M < 12) return "pays from 12 channels on that could fill vectors, got " + std::to_string(M);
  if (C > 64) return "pays up to 64 channels to sum over, got " + std::to_string(C);
  if (s.layout == Layout::nhwc && pixels < 36) return "pays from 36 pixels an image on, got " + std::to_string(pixels);
  if (s.layout == Layout::nchw && pixels > 512) {
    return "pays in NCHW up to 512 pixels an image, got " + std::to_string(pixels);
  }
  return "";
}

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
  // A window of one pixel is a plain matrix product: regr.67797 bwd_weight 0.57, mbv2.pw bwd_input 0.87 and 0.99. So is
  // one that no other overlaps: ConvNeXt's stem, 4x4 with stride 4, fwd 0.83 in NCHW (two threads).
  if (s.KH * s.KW == 1 && C > 16) return slower("for a 1x1 kernel over more than 16 channels", C);
  if (!weight && !gradient && s.KH * s.KW > 1 && s.SH >= s.KH && s.SW >= s.KW) {
    return slower("where windows do not overlap", s.SH);
  }
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

std::string implicit_gemm_why_not(const Conv2dShape&, Pass, Ask) { return ""; }

}  // namespace pyconv::conv2d

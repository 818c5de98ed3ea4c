// When each kernel of the list refuses: for good (Ask::able) or because another is faster (Ask::chosen), with the
// measurement that says so.
#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/toom_cook.h"
#include "cpu/isa.h"

namespace pyconv::conv2d {
namespace {

std::string pair(int64_t a, int64_t b, const char* sign) { return std::to_string(a) + sign + std::to_string(b); }

// Two threads of Zen 5 with AVX-512, float32, forward / input gradient / weight gradient over what runs without it, NCHW
// and channels_last. 3x3 with stride 2 loses: 64 -> 128 channels at 56x56 0.84 / 0.87 / 1.12 and 0.83 / 0.85 / 1.13, 16 ->
// 32 at 32x32 0.5 to 0.8; so do 4x4 with 2 and 8x8 with 4: 0.6 to 1.04, but 1.65 as weight gradient.
// 5x5 with 2 at 56x56: 16 -> 16 channels 1.03 / 0.91 / 1.85 and 1.19 / 1.15 / 1.23, 16 -> 32 1.35 / 1.21 / 1.90 and 1.32 /
// 1.32 / 1.35; 7x7 with 2 and 11x11 with 4, 16 -> 16 1.27 to 4.5. Stems of 3 channels, 7x7 with 2: 16 filters 0.65 to 0.93,
// 32 0.91 to 1.25, 64 1.02 to 1.37, 96 1.24 to 1.43; 11x11 with 4 64 filters 1.4 to 1.7; of 1 channel 0.4 to 1.
// 256 channels at 7x7, whose filters outweigh 16 pixels, 0.4 to 1.7; 64 at 14x14 1.25 to 2.2.
std::string winograd_strided_why_not(const Conv2dShape& s) {
  const int64_t C = s.ic_per_group(), M = s.oc_per_group(), taps = s.KH * s.KW;
  if (s.KH < 5 || s.KW < 5 || s.SH * s.SW * 6 > taps) {
    return "pays with a stride from 5x5 with (2, 2) on, got " + pair(s.KH, s.KW, "x") + " with (" +
           pair(s.SH, s.SW, ", ") + ")";
  }
  const int64_t channels = taps < 49 ? C * M : 512;
  if (!(C >= 16 && M >= 16 && channels >= 512) && !(C >= 3 && M >= 64 && taps >= 49)) {
    return "pays with a stride from 16 -> 32 channels per group on, 3 -> 64 for 7x7, got " + pair(C, M, " -> ");
  }
  if (s.OH * s.OW < 49) return "pays with a stride from 49 pixels on, got " + std::to_string(s.OH * s.OW);
  return "";
}

// implicit_gemm multiplies pairs of bf16, at twice the rate of the others' float32. Thresholds for it: two threads of
// Zen 5, bfloat16, layers of benchmarks/conv2d.txt and some of 3 to 64 channels.
bool in_pairs(const Conv2dShape& s) { return s.dtype == DType::bf16 && isa() == Isa::avx512_bf16; }

// Where vectors of neighbouring pixels beat the transpose of NCHW planes to vectors of channels: microseconds of channels
// over those of planes, 64 channels, one thread of Zen 5 with AVX-512, forward / input gradient. Square windows, float32:
// 3x3 17 wide 0.96 / 0.82, 22 1.10 / 0.96, 24 1.20 / 1.04, 28 1.35 / 1.2, 33 1.08 / 1.03, 40 1.17 / 1.11, 56 1.46 / 1.42, 64
// 1.9 / 1.9, 112 1.7 / 1.6; to 56 and 28 pixels with stride 2 1.4 and 1.1, input gradient 1.1 and 0.9; 5x5 whole vectors of
// 32 1.48 / 1.38, 40 0.78 / 0.76, 56 1.03 / 1.00, 7x7 32 1.38 / 1.29, 56 1.01 / 0.98. float64 3x3 28 wide 1.20 / 1.14, 56 1.5
// / 1.4; bfloat16 28 wide 0.91 / 0.82. Weight gradients 0.6 to 1.2. With AVX2 the same but for stride 2, 0.86.
bool planes_pay(const Conv2dShape& s, Pass pass) {
  if (pass == Pass::bwd_weight || size_of(s.dtype) < 4 || s.DH != 1 || s.DW != 1) return false;
  if (s.KH != s.KW || s.KW < 3 || s.KW > 7 || s.SH != s.SW) return false;
  if (s.KW > 3) return s.SW == 1 && s.OW >= 32 && s.OW % 16 == 0;
  return s.SW == 1 ? s.OW >= 24 : s.SW == 2 && pass == Pass::fwd && s.OW >= 28;
}

}  // namespace

std::string winograd_why_not(const Conv2dShape& s, Pass pass, Ask ask) {
  if (!allow_winograd) return "pyconv.backends.allow_winograd is False";
  const int64_t TH = divide_up(s.KH, s.SH), TW = divide_up(s.KW, s.SW);  // winograd_strided.h
  const auto known = [](int64_t taps) { return taps <= 5 || taps == 7; };
  if (!known(TH) || !known(TW) || TH * TW == 1 || (s.SH * s.SW > 1 && s.DH * s.DW > 1)) {
    return "needs 1 to 5 or 7 taps a stride along each axis, not 1 along both, and no dilation beside a stride, got " +
           pair(s.KH, s.KW, "x") + " with stride (" + pair(s.SH, s.SW, ", ") + ") and dilation (" +
           pair(s.DH, s.DW, ", ") + ")";
  }
  if (ask == Ask::able) return "";
  // In pairs implicit_gemm takes 0.61 to 0.92 of the time for 1x7, 0.62 to 0.94 for the stems of ResNet and AlexNet but for
  // their input gradient; and 1.0 to 2.2 times as much elsewhere.
  const bool stem = s.SH * s.SW > 1 && pass != Pass::bwd_input;
  if (in_pairs(s) && (s.KH == 1 || s.KW == 1 || stem)) {
    return "saves less than implicit_gemm does by multiplying bfloat16 in pairs";
  }
  if (s.SH * s.SW > 1) return winograd_strided_why_not(s);
  // Speed over what runs without it, forward / input gradient / weight gradient, two threads of Zen 5 with AVX-512, float32.
  // 3x3: 8 channels at 32x32, N = 32, 1.3 to 2.4; 3 in and 64 out 0.4 to 0.6.
  // 5x5, 28x28, N = 8, NCHW: 8 -> 8 channels 0.67 / 0.66 / 1.42, 8 -> 16 1.24 / 1.24 / 1.97, 32 -> 32 3.5 / 3.5 / 4.3; 7x7:
  // 8 -> 16 0.79 / 0.78 / 1.11, 8 -> 32 0.84 / 0.74 / 0.82, 16 -> 16 1.53 / 1.53 / 2.15. channels_last likewise.
  // Along one axis, 17x17, N = 8: NCHW 1x3 16 channels 0.86 / 0.88 / 1.25, 32 channels 1.17 to 1.6; 7x1 192 channels 1.35 /
  // 1.42 / 0.93. channels_last 1x3 64 channels 0.74 / 0.71 / 0.84, 128 1.15 / 1.08 / 1.26, 384 at 8x8 1.5 as weight
  // gradient; 1x5 32 1.17 / 1.17 / 1.11; 1x7 32 1.00 / 0.99 / 1.07, 64 1.22 / 1.21, at 35x35 1.46 as weight gradient; 7x1
  // 64 1.03 / 1.09, 192 1.26 / 1.26 / 1.12.
  const int64_t C = s.ic_per_group(), M = s.oc_per_group(), longer = at_least(s.KH, s.KW);
  const bool one_axis = at_most(s.KH, s.KW) == 1, nhwc = s.layout == Layout::nhwc;
  const int64_t least = !one_axis ? (longer == 7 ? 16 : 8) : !nhwc || longer == 5 ? 32 : longer == 3 ? 128 : 64;
  if (C < least || M < least || (longer == 5 && C * M < 128)) {
    return "pays for " + pair(s.KH, s.KW, "x") + " from " + std::to_string(least) +
           " input and output channels per group on" + (longer == 5 ? ", the product at least 128" : "") + ", got " +
           std::to_string(C) + " and " + std::to_string(M);
  }
  // Wide dilations leave tiles empty. 256 channels, N = 1, dilation D on images of 7x7 to 65x65, by the products that are
  // left of a direct sum's: 0.33 2.2 to 3.3 times as fast, 0.53 1.2 to 3.2, 0.73 1 to 2.5, 0.94 and 1.0 0.8 to 1.2, 1.2
  // 0.6 to 1.
  const int64_t products =
      winograd_products(s.KH, s.OH, s.KH > 1 ? s.DH : 1) * winograd_products(s.KW, s.OW, s.KW > 1 ? s.DW : 1);
  const int64_t direct = s.OH * s.OW * s.KH * s.KW;
  if (products * 4 > direct * 3) {
    return "pays while tiles save a quarter of the products, here " + std::to_string(products) + " of " +
           std::to_string(direct);
  }
  // Few pixels in channels_last, 32 to 512 channels, forward: N = 1 2x2 0.60 to 0.69, 3x3 0.63 to 0.69, 4x4 0.83 to 0.93;
  // N = 4 2x2 1.1 to 1.3, 4x4 1.0 to 1.5; but what runs may not depend on N. Input gradients N = 1 0.8 to 1, N = 4 1.1 to
  // 1.6, weight gradients 1.2 to 3.2; in NCHW, where the others have few pixels to fill vectors with, 0.55 to 4.
  if (nhwc && s.OH * s.OW < 16 && pass == Pass::fwd) {
    return "pays in channels_last from 16 pixels an image on, got " + std::to_string(s.OH * s.OW);
  }
  return "";
}

std::string depthwise_channels_why_not(const Conv2dShape& s, Pass pass, Ask ask) {
  if (s.ic_per_group() != 1 || s.oc_per_group() != 1) {
    return "needs one input and one output channel per group, got " + std::to_string(s.ic_per_group()) + " and " +
           std::to_string(s.oc_per_group());
  }
  if (ask == Ask::able || s.layout == Layout::nhwc) return "";
  // In NCHW against depthwise_planes, one thread: 14x14 1.1 to 1.4 times faster, 7x7 2 to 3; but 24 channels, of whose 32
  // lanes a quarter idle, 0.7 to 1, and 224x224 0.6 to 1.2.
  if (s.IH * s.IW > 128 * 128) return "pays in NCHW up to 128x128 pixels, got " + std::to_string(s.IH * s.IW);
  if ((s.IC + 15) / 16 * 64 > s.IC * 5) {
    return "pays in NCHW where channels fill 4/5 of their vectors, got " + std::to_string(s.IC);
  }
  if (planes_pay(s, pass))
    return "loses in NCHW to depthwise_planes where a row fills its vectors, got " + std::to_string(s.OW);
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
  const bool weight = pass == Pass::bwd_weight, nchw = s.layout == Layout::nchw, apart = s.SH >= s.KH && s.SW >= s.KW;
  // Zen 5 with AVX-512, two threads, float32, over implicit_gemm. channels_last: stems of 1 to 4 channels fwd 1.0 to 1.3,
  // ConvNeXt's, whose windows do not overlap, 0.9; 16 filters over 6 and 8 channels 1.2; but 8 to 64 channels of 3x3 with
  // stride 2 and twice as many filters fwd 0.8 to 0.9, bwd_input 0.95 to 1.0 (16 of 32 1.13), bwd_weight 1.03 to 1.2;
  // bwd_weight of windows that do not overlap 0.8 to 0.9, of 16 and 81 pixels 0.8 to 1. Filters that leave lanes idle lose
  // to direct_planes: LeNet c1, 6 of them, 0.3 to 0.5; simple_cnn c1, 8, 0.5 to 0.7.
  // NCHW, with its copies, forward over what runs else: 2x2 to 7x7 outputs of up to 32 channels 1.0 to 1.3; of 64 channels
  // 0.8; 16 filters to 10x10 (LeNet c3) 1.1, to 14x14 0.86; 32 and 64 filters to 14x14 1.05, to 16x16 1.07, to 20x20 (DQN)
  // 1.15, to 21x21 1.0; of 1 to 4 channels, 25 to 100 terms, 0.8 to 0.9.
  if (s.KH * s.KW == 1) return "is no faster than implicit_gemm for a 1x1 kernel";
  // In pairs implicit_gemm takes 0.5 to 0.95 of the time wherever this or direct_planes would have been chosen.
  if (in_pairs(s)) return "is slower than implicit_gemm, which multiplies bfloat16 in pairs";
  if (M < 12) return "pays from 12 channels on that could fill vectors, got " + std::to_string(M);
  if (C > 64) return "pays up to 64 channels to sum over, got " + std::to_string(C);
  const int64_t most = M >= 32 && C * s.KH * s.KW >= 128 ? 400 : 100;
  if (nchw && !gradient && !weight && (C >= 64 || pixels > most)) {
    return "pays forward in NCHW below 64 channels to sum over and up to " + std::to_string(most) +
           " pixels an image, got " + std::to_string(C) + " and " + std::to_string(pixels);
  }
  if (nchw && pixels > 512) return "pays in NCHW up to 512 pixels an image, got " + std::to_string(pixels);
  if (nchw) return "";
  if (pixels < 36) return "pays from 36 pixels an image on, got " + std::to_string(pixels);
  if (weight && (apart || (M > 16 && pixels < 100))) {
    return "is no faster than implicit_gemm where windows do not overlap or pixels are few, got " +
           std::to_string(pixels);
  }
  if (!weight && M > 16 && (gradient || apart || C > 4)) {
    return "pays from 17 channels on that fill vectors only over up to 4, got " + std::to_string(C);
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
  const auto slower = [](const std::string& where, int64_t got) {
    return "is slower than implicit_gemm " + where + ", got " + std::to_string(got);
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
  // Not where implicit_gemm goes by channels_last: 64 -> 96 to 7x7 fwd 0.8, bwd_input 0.8; 32 -> 64 to 14x14 0.93 and 1.0,
  // 64 -> 128 to 28x28 0.97 and 1.03; 16 -> 32 to 14x14 1.08, 32 -> 64 to 56x56 1.05.
  const bool few = C >= 32 && pixels < (gradient ? 100 : 1024);
  const bool stem = weight ? terms <= 160 && pixels >= 10000 : nchw ? window && !few : !gradient && C <= 3;
  // In pairs implicit_gemm wins but for a few channels that waste most of its lanes. Its time over this one's, forward:
  // 27 terms, 8, 16 and 24 channels 1.5 to 2.0, 1.1 to 1.4, 0.9 to 1.3; 400 terms, 6 and 8 channels 1.2 to 1.4, 1.0 to
  // 1.1; LeNet c3, 150 terms and 16 channels, 0.5 to 0.8. Weight gradient, 27 terms: 8 to 12 channels 1.3 to 2.0, 16
  // channels 0.72 to 0.8. Input gradient, NCHW and channels_last: 6 to 16 channels 1.1 to 2.5 and 0.9 to 2.0, 24 and 32
  // with stride 2 1.4 to 2.5 and 0.8 to 0.9, 64 0.82 and 0.64, 64 to 192 at stride 1 0.5 to 0.65; 1x1 0.55.
  if (in_pairs(s)) {
    const bool strided = nchw && s.SH * s.SW > 1;
    const int64_t most = gradient ? (strided ? 32 : 16) : terms <= 40 ? (weight ? 12 : 24) : weight ? 0 : 8;
    if (s.KH * s.KW == 1) return slower("in pairs of bfloat16 for a 1x1 kernel", C);
    if (M > most) return slower("in pairs of bfloat16 from " + std::to_string(most + 1) + " channels on", M);
  } else if (M > 24 && !stem) {
    return slower("from 25 channels per group that could fill vectors", M);
  }
  // simple_cnn c2, 7x7 outputs in channels_last: 0.7; 16 channels of 7x7: 0.4 as weight gradient, whose every sum is
  // loaded and stored once an image.
  if (weight && pixels < 196 && !(nchw && M * terms <= 288)) return slower("below 196 pixels an image", pixels);
  if (!weight && !gradient && pixels < (nchw ? 36 : 100)) return slower("where few pixels fill no vectors", pixels);
  return "";
}

std::string implicit_gemm_why_not(const Conv2dShape&, Pass, Ask) { return ""; }

}  // namespace pyconv::conv2d

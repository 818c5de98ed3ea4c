// Which convolution runs, and why: fastest first, the first kernel that does not refuse.
#include "cpu/conv2d/conv2d.h"

#include <cstdlib>
#include <cstring>

#include "cpu/isa.h"

namespace pyconv::conv2d {
namespace {

// clang-format off
constexpr Kernel list[] = {
    {"winograd",      "csrc/cpu/conv2d/winograd.h",      winograd_why_not,      winograd_fwd,      winograd_bwd_input,      winograd_bwd_weight},
    {"depthwise_channels", "csrc/cpu/conv2d/depthwise_channels.h", depthwise_channels_why_not, depthwise_channels_fwd, depthwise_channels_bwd_input, depthwise_channels_bwd_weight},
    {"depthwise_planes", "csrc/cpu/conv2d/depthwise_planes.h", depthwise_planes_why_not, depthwise_planes_fwd, depthwise_planes_bwd_input, depthwise_planes_bwd_weight},
    {"direct_channels", "csrc/cpu/conv2d/direct_channels.h", direct_channels_why_not, direct_channels_fwd, direct_channels_bwd_input, direct_channels_bwd_weight},
    {"direct_planes", "csrc/cpu/conv2d/direct_planes.h", direct_planes_why_not, direct_planes_fwd, direct_planes_bwd_input, direct_planes_bwd_weight},
    {"implicit_gemm", "csrc/cpu/conv2d/implicit_gemm.h", implicit_gemm_why_not, implicit_gemm_fwd, implicit_gemm_bwd_input, implicit_gemm_bwd_weight, {implicit_gemm_packed_bytes, implicit_gemm_pack, implicit_gemm_fwd_packed}},
    {"reference",     "csrc/cpu/conv2d/reference.cpp",   reference_why_not,     reference_fwd,     reference_bwd_input,     reference_bwd_weight},
};
// clang-format on

// A window that is the whole image is a matrix product: every value of an image a channel of one pixel, in either layout.
Conv2dShape flattened(Conv2dShape s) {
  if (s.G > 1 || s.OH * s.OW != 1 || s.PH + s.PW > 0 || s.KH != s.IH || s.KW != s.IW) return s;
  s.IC *= s.IH * s.IW;
  s.IH = s.IW = s.KH = s.KW = s.SH = s.SW = s.DH = s.DW = 1;
  s.layout = Layout::nhwc;
  return s;
}

}  // namespace

bool allow_winograd = [] {
  const char* asked = std::getenv("PYCONV_ALLOW_WINOGRAD");
  return !(asked && std::string(asked) == "0");
}();

void fwd(const Conv2dShape& given, const void* x, const void* w, const Epilogue& e, void* y,
         const std::string& algorithm) {
  const Conv2dShape s = flattened(given);
  choose("conv2d", list, s, Pass::fwd, algorithm).fwd(s, x, w, e, y);
}

namespace {

// What stands before packed weights: what they were made of and for. The sample notices most changes of w that nobody
// reported, and costs 16 loads.
struct PackedHeader {
  int64_t kernel, isa, dtype, layout, G, OC, IC, KH, KW;
  uint64_t sample;
  int64_t bytes[6];  // of all; and room up to two cache lines
};
static_assert(sizeof(PackedHeader) == 128, "packed weights start at a cache line");

uint64_t sample_of(const Conv2dShape& s, const void* w) {
  const int64_t count = s.OC * s.ic_per_group() * s.KH * s.KW, size = size_of(s.dtype);
  uint64_t hash = 1469598103934665603u;  // FNV-1a, a value at a time
  for (int64_t i = 0; i < 16; i++) {
    uint64_t bits = 0;
    std::memcpy(&bits, static_cast<const char*>(w) + i * (count - 1) / 15 * size, size);
    hash = (hash ^ bits) * 1099511628211u;
  }
  return hash;
}

PackedHeader header_of(const Kernel& kernel, const Conv2dShape& s, const void* w) {
  return {&kernel - list,
          static_cast<int64_t>(isa()),
          static_cast<int64_t>(s.dtype),
          static_cast<int64_t>(s.layout),
          s.G,
          s.OC,
          s.IC,
          s.KH,
          s.KW,
          sample_of(s, w),
          {kernel.packing.bytes(s) + int64_t(sizeof(PackedHeader))}};
}

}  // namespace

int64_t packed_bytes(const Conv2dShape& given, const std::string& algorithm) {
  const Conv2dShape s = flattened(given);
  const Packing& packing = choose("conv2d", list, s, Pass::fwd, algorithm).packing;
  const int64_t bytes = packing.bytes ? packing.bytes(s) : 0;
  return bytes ? bytes + sizeof(PackedHeader) : 0;
}

void pack(const Conv2dShape& given, const void* w, void* packed, const std::string& algorithm) {
  const Conv2dShape s = flattened(given);
  const Kernel& kernel = choose("conv2d", list, s, Pass::fwd, algorithm);
  const PackedHeader header = header_of(kernel, s, w);
  std::memcpy(packed, &header, sizeof header);
  kernel.packing.pack(s, w, static_cast<PackedHeader*>(packed) + 1);
}

void fwd_packed(const Conv2dShape& given, const void* x, const void* w, const void* packed, int64_t bytes,
                const Epilogue& e, void* y, const std::string& algorithm) {
  const Conv2dShape s = flattened(given);
  const Kernel& kernel = choose("conv2d", list, s, Pass::fwd, algorithm);
  if (kernel.packing.fwd && bytes >= int64_t(sizeof(PackedHeader))) {
    const PackedHeader header = header_of(kernel, s, w);
    if (header.bytes[0] == bytes && std::memcmp(packed, &header, sizeof header) == 0) {
      return kernel.packing.fwd(s, x, static_cast<const PackedHeader*>(packed) + 1, e, y);
    }
  }
  kernel.fwd(s, x, w, e, y);
}

void bwd_input(const Conv2dShape& given, const void* dy, const void* w, void* dx, const std::string& algorithm) {
  const Conv2dShape s = flattened(given);
  choose("conv2d", list, s, Pass::bwd_input, algorithm).bwd_input(s, dy, w, dx);
}

void bwd_weight(const Conv2dShape& given, const void* dy, const void* x, void* dw, const std::string& algorithm) {
  const Conv2dShape s = flattened(given);
  choose("conv2d", list, s, Pass::bwd_weight, algorithm).bwd_weight(s, dy, x, dw);
}

std::vector<std::string> algorithms() { return names_of(list); }
std::vector<Answer> ask(const Conv2dShape& s, Pass pass, Ask what) { return ask_all(list, flattened(s), pass, what); }

}  // namespace pyconv::conv2d

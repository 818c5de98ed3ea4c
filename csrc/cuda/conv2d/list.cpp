// Which convolution runs on CUDA, and why: fastest first, the first kernel that does not refuse. No threshold here was set
// by a measurement, for want of a GPU: each says by what arithmetic it was.
#include "cuda/conv2d/conv2d.h"

#include <cstdlib>

#include "cuda/conv2d/gemm.h"
#include "cuda/run.h"

namespace pyconv::cuda::conv2d {

bool allow_tf32 = [] {
  const char* asked = std::getenv("PYCONV_ALLOW_TF32");
  return asked && std::string(asked) == "1";
}();

namespace {

std::string reference_why_not(const Conv2dShape&, Pass, Ask) { return ""; }

// What offsets of 32 bits and a grid can hold, for both products.
std::string too_large(const Conv2dShape& s) {
  constexpr int64_t limit = int64_t(1) << 31;
  const int64_t largest = at_least(s.N * at_least(s.IC * s.IH * s.IW, s.OC * s.OH * s.OW), weight_count(s));
  // What is added to an offset before an element is known to be outside stays below the second sum.
  const int64_t beside = s.IC * (s.IH + s.PH + s.KH * s.DH) * (s.IW + s.PW + s.KW * s.DW) +
                         128 * at_least(s.ic_per_group() * s.KH * s.KW, s.OH * s.OW);
  if (largest + beside >= limit) {
    return "needs fewer than 2^31 values per tensor, got " + std::to_string(largest);
  }
  if (s.G > 65535) return "needs at most 65535 groups, got " + std::to_string(s.G);
  return "";
}

// How many values tensor_cores copies to channels_last where they lie in NCHW.
int64_t turned_values(const Conv2dShape& s, Pass pass) {
  const int64_t x = s.N * s.IC * s.IH * s.IW, y = s.N * s.OC * s.OH * s.OW;
  return pass == Pass::bwd_weight ? x + y : weight_count(s) + (pass == Pass::fwd ? x : y);
}

std::string tensor_cores_why_not(const Conv2dShape& s, Pass pass, Ask ask) {
  if (s.dtype == DType::f64) return "needs bfloat16, float16 or TF32, got float64";
  if (s.dtype == DType::f32 && !allow_tf32) {
    return "needs bfloat16 or float16, or pyconv.backends.cuda.allow_tf32 for float32";
  }
  const int64_t chunk = 16 / size_of(s.dtype);
  if (s.ic_per_group() % chunk || s.oc_per_group() % chunk) {
    return "needs multiples of " + std::to_string(chunk) + " channels per group, got " +
           std::to_string(s.ic_per_group()) + " and " + std::to_string(s.oc_per_group());
  }
  const std::string large = too_large(s);
  if (!large.empty() || ask == Ask::able || s.dtype != DType::f32 || s.layout == Layout::nhwc) return large;
  // Copying a float to channels_last moves 8 bytes, 5 ps of an A100's 1555 GB/s; implicit_gemm's 9.7e12 multiply-adds a
  // second make 50 in that time.
  const int64_t values = turned_values(s, pass), products = values ? s.flops() / 2 / values : 0;
  if (values && products < 50) {
    return "pays in NCHW from 50 products per value that it copies to channels_last, got " + std::to_string(products);
  }
  return "";
}

int64_t tensor_cores_workspace(const Conv2dShape& s, Pass pass) {
  const int64_t x = turned_bytes(s, s.N * s.IC * s.IH * s.IW), y = turned_bytes(s, s.N * s.OC * s.OH * s.OW);
  if (pass == Pass::bwd_weight) return parts_bytes(s, splits_of(s)) + x + y;
  return (pass == Pass::fwd ? x : y) + turned_bytes(s, weight_count(s));
}

// Of the kernels for few channels.
std::string float64_why_not(const Conv2dShape& s) {
  return s.dtype == DType::f64 ? "needs float32, bfloat16 or float16, got float64" : "";
}

std::string depthwise_why_not(const Conv2dShape& s, Pass, Ask) {
  const std::string wide = float64_why_not(s);
  if (!wide.empty()) return wide;
  if (s.ic_per_group() != 1 || s.oc_per_group() != 1) {
    return "needs one channel per group, in and out, got " + std::to_string(s.ic_per_group()) + " and " +
           std::to_string(s.oc_per_group());
  }
  if (s.layout != Layout::nhwc)
    return "needs channels_last tensors, got NCHW, where direct takes one channel per group";
  const int64_t chunk = 16 / size_of(s.dtype);
  if (s.G % chunk) return "needs multiples of " + std::to_string(chunk) + " channels, got " + std::to_string(s.G);
  return too_large(s);
}

int64_t depthwise_workspace(const Conv2dShape& s, Pass pass) {
  return pass == Pass::bwd_weight ? parts_bytes(s, depthwise_splits_of(s)) : 0;
}

std::string direct_why_not(const Conv2dShape& s, Pass pass, Ask ask) {
  const std::string wide = float64_why_not(s);
  if (!wide.empty()) return wide;
  const std::string large = too_large(s);
  if (!large.empty() || ask == Ask::able || s.dtype != DType::f32) return large;
  // implicit_gemm's tile has 64 rows: with 32 of them in use it does half the products it might. So does direct, whose 16
  // multiply-adds come with 15 other instructions; unless its neighbouring threads' pixels lie far apart, a sector for each.
  const int64_t rows = pass == Pass::bwd_input ? s.ic_per_group() : s.oc_per_group();
  const int64_t apart = s.layout == Layout::nchw ? 1 : pass == Pass::bwd_input ? s.OC : s.IC;
  const int64_t most = apart <= 8 ? 32 : 8;
  if (rows > most) {
    return "pays up to " + std::to_string(most) + " channels per group here, got " + std::to_string(rows);
  }
  return "";
}

int64_t direct_workspace(const Conv2dShape& s, Pass pass) {
  return pass == Pass::bwd_weight ? parts_bytes(s, direct_splits_of(s)) : 0;
}

std::string implicit_gemm_why_not(const Conv2dShape& s, Pass, Ask) {
  if (s.dtype != DType::f32) return std::string("needs float32, got ") + name_of(s.dtype);
  return too_large(s);
}

int64_t implicit_gemm_workspace(const Conv2dShape& s, Pass pass) {
  return pass == Pass::bwd_weight && splits_of(s) > 1 ? parts_bytes(s, splits_of(s)) : 0;
}

// clang-format off
constexpr Kernel list[] = {
    {"tensor_cores",  "csrc/cuda/conv2d/tensor_cores.cu",  tensor_cores_why_not,  &Library::conv2d_tensor_cores_fwd,  &Library::conv2d_tensor_cores_bwd_input,  &Library::conv2d_tensor_cores_bwd_weight,  tensor_cores_workspace},
    {"depthwise",     "csrc/cuda/conv2d/depthwise.cu",     depthwise_why_not,     &Library::conv2d_depthwise_fwd,     &Library::conv2d_depthwise_bwd_input,     &Library::conv2d_depthwise_bwd_weight,     depthwise_workspace},
    {"direct",        "csrc/cuda/conv2d/direct.cu",        direct_why_not,        &Library::conv2d_direct_fwd,        &Library::conv2d_direct_bwd_input,        &Library::conv2d_direct_bwd_weight,        direct_workspace},
    {"implicit_gemm", "csrc/cuda/conv2d/implicit_gemm.cu", implicit_gemm_why_not, &Library::conv2d_implicit_gemm_fwd, &Library::conv2d_implicit_gemm_bwd_input, &Library::conv2d_implicit_gemm_bwd_weight, implicit_gemm_workspace},
    {"reference",     "csrc/cuda/conv2d/reference.cu",     reference_why_not,     &Library::conv2d_reference_fwd,     &Library::conv2d_reference_bwd_input,     &Library::conv2d_reference_bwd_weight,     nullptr},
};
// clang-format on

}  // namespace

void fwd(const Queue& q, const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y,
         const std::string& algorithm) {
  run(q, "conv2d", list, &Kernel::fwd, Pass::fwd, algorithm, s, x, w, e, y);
}

void bwd_input(const Queue& q, const Conv2dShape& s, const void* dy, const void* w, void* dx,
               const std::string& algorithm) {
  run(q, "conv2d", list, &Kernel::bwd_input, Pass::bwd_input, algorithm, s, dy, w, dx);
}

void bwd_weight(const Queue& q, const Conv2dShape& s, const void* dy, const void* x, void* dw,
                const std::string& algorithm) {
  run(q, "conv2d", list, &Kernel::bwd_weight, Pass::bwd_weight, algorithm, s, dy, x, dw);
}

std::vector<std::string> algorithms() { return names_of(list); }
std::vector<Answer> ask(const Conv2dShape& s, Pass pass, Ask what) { return ask_all(list, s, pass, what); }

}  // namespace pyconv::cuda::conv2d

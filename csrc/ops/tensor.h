// What the ops need of a torch tensor, on the LibTorch stable ABI: its layout, its shape, a new one like it.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "common/shape.h"

namespace pyconv {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The raw ops guard memory, not manners: pyconv.ops has already told people what is wrong, in full.
inline void require(bool holds, const char* op, const char* what) {
  if (!holds) throw std::invalid_argument(std::string(op) + ": " + what);
}

inline DType dtype_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      throw std::invalid_argument(std::string(op) + ": dtype must be float64, float32, bfloat16 or float16");
  }
}

// What a relu stops at as the kernels want it: a value of `dtype`, as what they store, and NaN for none.
inline double ceiling_in(DType dtype, double ceiling) {
  if (ceiling == __builtin_inf()) return __builtin_nan("");
  with_type(dtype, [&](auto type) {
    store(&type, acc_t<decltype(type)>(ceiling));
    ceiling = widen(type);
  });
  return ceiling;
}

// Layout::nhwc where torch would say suggest_memory_format == channels_last: strides in the order C, W, H, N, with the
// ambiguous cases (a 1 x 1 plane, a single channel) read as nchw unless the strides say otherwise.
inline Layout layout_of(const Tensor& t) {
  if (t.dim() != 4) return Layout::nchw;
  int64_t floor = 0;
  for (int d : {1, 3, 2, 0}) {
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 0 || stride < floor) return Layout::nchw;
    if (d == 0 && floor == t.stride(1)) return Layout::nchw;
    floor = stride * (size > 1 ? size : 1);
  }
  return Layout::nhwc;
}

inline Layout either(Layout a, Layout b) { return a == Layout::nhwc ? a : b; }

inline bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// Asks first: torch's contiguous() goes through the dispatcher to find that there is nothing to do.
inline Tensor dense(const Tensor& t, Layout layout) {
  if (layout == Layout::nchw) return t.is_contiguous() ? t : torch::stable::contiguous(t);
  return is_channels_last(t) ? t : torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
}

inline Tensor empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, ScalarType type,
                            const Tensor& like) {
  int32_t device;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, static_cast<int32_t>(type), device,
                                                         like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty(int64_t N, int64_t C, int64_t H, int64_t W, Layout layout, ScalarType type, const Tensor& like) {
  const Index4 index = index_of(layout, at_least(C, 1), at_least(H, 1), at_least(W, 1));
  const int64_t sizes[4] = {N, C, H, W}, strides[4] = {index.n, index.c, index.h, index.w};
  return empty_strided(4, sizes, strides, type, like);
}

inline Tensor empty(int64_t size, ScalarType type, const Tensor& like) {
  const int64_t stride = 1;
  return empty_strided(1, &size, &stride, type, like);
}

}  // namespace pyconv

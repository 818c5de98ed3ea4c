// What the kernels for few channels, direct and depthwise, have in common: their operands, and the three passes as launches
// of two kernels of theirs.
#pragma once
#include "cuda/clip.h"
#include "cuda/conv2d/walk.h"
#include "cuda/library.h"
#include "cuda/operands.h"

namespace pyconv::cuda::conv2d {

template <class T>
struct FewOperands {
  const T *a, *b;
  const T *bias, *residual;  // of fwd, or null
  T* d;
  float* parts;  // of bwd_weight
  Clip<float> clip;
};

// sums(gemm, operands) launches the product of fwd and bwd_input, and returns the launch's error.
template <class Sums>
int few_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y, const Sums& sums) {
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    return sums(gemm_fwd(s), FewOperands<T>{as<T>(w), as<T>(x), as<T>(e.bias), as<T>(e.residual), static_cast<T*>(y),
                                            nullptr, Clip<float>(e)});
  });
}

template <class Sums>
int few_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx, const Sums& sums) {
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    const FewOperands<T> o = {as<T>(w), as<T>(dy), nullptr, nullptr, static_cast<T*>(dx), nullptr, {}};
    return launch_phases(s, [&](int64_t rh, int64_t rw) { return sums(gemm_bwd_input(s, rh, rw), o); });
  });
}

// Its terms in `splits` parts, by pixel_sums(gemm, operands), then their sum.
template <class Sums>
int few_bwd_weight(const Place& at, const Conv2dShape& s, int64_t splits, const void* dy, const void* x, void* dw,
                   const Sums& pixel_sums) {
  Gemm g = gemm_bwd_weight(s);
  g.splits = int(splits);
  g.split_d = int(weight_count(s));
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    float* parts = static_cast<float*>(at.workspace);
    const int error = pixel_sums(g, FewOperands<T>{as<T>(dy), as<T>(x), nullptr, nullptr, nullptr, parts, {}});
    return error ? error : launch_add_parts(g, parts, static_cast<T*>(dw), at.stream);
  });
}

}  // namespace pyconv::cuda::conv2d

// One thread for each value of a dense tensor, neighbours in memory in neighbouring threads.
#pragma once
#include "cuda/library.h"
#include "cuda/vocabulary.h"

namespace pyconv::cuda {

constexpr int each_threads = 128;

PYCONV_DEVICE int64_t thread_number() { return int64_t(blockIdx.x) * each_threads + threadIdx.x; }

struct Position {
  int64_t n, c, h, w;
};

// The coordinates of value i of a dense tensor of C channels of H x W.
PYCONV_DEVICE Position position_of(int64_t i, Layout layout, int64_t C, int64_t H, int64_t W) {
  if (layout == Layout::nchw) return {i / (C * H * W), i / (H * W) % C, i / W % H, i % W};
  return {i / (C * H * W), i % C, i / (W * C) % H, i / C % W};
}

// Calls kernel(arguments...) on a thread for each of `count` values, and on some beyond; on none for none.
template <class... Parameters, class... Arguments>
int launch_for_each(const Place& at, int64_t count, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (count == 0) return 0;
  return launch(kernel, dim3{unsigned(divide_up(count, each_threads)), 1, 1}, dim3{each_threads, 1, 1}, 0, at.stream,
                arguments...);
}

// f(T()) with the C++ type of `dtype`, whose answer, the error of a launch, is returned.
template <class F>
int with_storage(DType dtype, const F& f) {
  int error = 0;
  with_type(dtype, [&](auto type) { error = f(type); });
  return error;
}

}  // namespace pyconv::cuda

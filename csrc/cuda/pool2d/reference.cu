// pool2d on CUDA / reference.
// Computes  max      y = max of the window, indices = ih*IW + iw of it: the first of equals in row-major order, the last
//                    NaN if there is one, the first pixel if all are -inf;   dx[index] += dy
//           average  y = (sum of the window) / divisor;   dx[n,c,ih,iw] = sum of dy / divisor over the windows holding it
//           unpool   y[index] = x, zero elsewhere, the last of equals;     dx = dy[index], zero where index is -1
// Shapes    planes (N,C,IH,IW), pooled (N,C,OH,OW); plain and adaptive windows; any layout, through index functions
// Tiling    one thread per value of the output; unpool: per plane. Backward is a gather: no two threads write one value
// Cost      one comparison or addition per window pixel; the backward of adaptive max looks at the whole pooled plane, for
//           its indices may be anybody's
// Limits    none: any type, any window; the floor under every other kernel, and never tuned
// Source    LeCun et al., Proc. IEEE 86(11), 1998, section II.B (average); Zeiler and Fergus, arXiv:1311.2901 (unpool)
#include "cuda/each_value.h"
#include "cuda/pool2d/windows.h"

namespace pyconv::cuda {
namespace {

using namespace pool2d;

template <class T>
__global__ void __launch_bounds__(each_threads) max_fwd(Pool2dShape s, const T* x, T* y, int64_t* indices) {
  const int64_t i = thread_number();
  if (i >= s.N * s.C * s.h.out * s.w.out) return;
  const Position o = position_of(i, s.layout, s.C, s.h.out, s.w.out);
  const Index4 X = s.x_index();
  acc_t<T> best = -HUGE_VAL;
  int64_t index = -1;
  for_window(s, o.h, o.w, [&](int64_t ih, int64_t iw) {
    const acc_t<T> v = read(&x[X(o.n, o.c, ih, iw)]);
    if (index < 0 || v > best || v != v) {
      best = v;
      index = ih * s.w.in + iw;
    }
  });
  write(&y[i], best);
  indices[i] = index;
}

template <class T>
__global__ void __launch_bounds__(each_threads) max_bwd(Pool2dShape s, const T* dy, const int64_t* indices, T* dx) {
  const int64_t i = thread_number();
  if (i >= s.N * s.C * s.h.in * s.w.in) return;
  const Position p = position_of(i, s.layout, s.C, s.h.in, s.w.in);
  const Index4 Y = s.y_index();
  acc_t<T> sum = 0;
  for_holders(s, p.h, p.w, s.h.adaptive() || s.w.adaptive(), [&](int64_t oh, int64_t ow) {
    const int64_t at = Y(p.n, p.c, oh, ow);
    if (indices[at] == p.h * s.w.in + p.w) sum += read(&dy[at]);
  });
  write(&dx[i], sum);
}

template <class T>
__global__ void __launch_bounds__(each_threads) avg_fwd(Pool2dShape s, const T* x, T* y) {
  const int64_t i = thread_number();
  if (i >= s.N * s.C * s.h.out * s.w.out) return;
  const Position o = position_of(i, s.layout, s.C, s.h.out, s.w.out);
  const Index4 X = s.x_index();
  acc_t<T> sum = 0;
  for_window(s, o.h, o.w, [&](int64_t ih, int64_t iw) { sum += read(&x[X(o.n, o.c, ih, iw)]); });
  write(&y[i], sum / acc_t<T>(s.divisor(o.h, o.w)));
}

template <class T>
__global__ void __launch_bounds__(each_threads) avg_bwd(Pool2dShape s, const T* dy, T* dx) {
  const int64_t i = thread_number();
  if (i >= s.N * s.C * s.h.in * s.w.in) return;
  const Position p = position_of(i, s.layout, s.C, s.h.in, s.w.in);
  const Index4 Y = s.y_index();
  acc_t<T> sum = 0;
  for_holders(s, p.h, p.w, false,
              [&](int64_t oh, int64_t ow) { sum += read(&dy[Y(p.n, p.c, oh, ow)]) / acc_t<T>(s.divisor(oh, ow)); });
  write(&dx[i], sum);
}

// A plane has one owner: of several values for one pixel, the last in row-major order stays.
template <class T>
__global__ void __launch_bounds__(each_threads) unpool_fwd(Pool2dShape s, const T* x, const int64_t* indices, T* y) {
  const int64_t plane = thread_number(), pixels = s.h.in * s.w.in;
  if (plane >= s.N * s.C) return;
  const int64_t n = plane / s.C, c = plane % s.C;
  const Index4 X = s.y_index(), Y = s.x_index();  // x is the pooled side
  for (int64_t i = 0; i < pixels; i++) write(&y[Y(n, c, i / s.w.in, i % s.w.in)], acc_t<T>(0));
  for (int64_t oh = 0; oh < s.h.out; oh++) {
    for (int64_t ow = 0; ow < s.w.out; ow++) {
      const int64_t at = X(n, c, oh, ow), index = indices[at];
      if (index >= 0 && index < pixels) y[Y(n, c, index / s.w.in, index % s.w.in)] = x[at];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(each_threads) unpool_bwd(Pool2dShape s, const T* dy, const int64_t* indices, T* dx) {
  const int64_t i = thread_number();
  if (i >= s.N * s.C * s.h.out * s.w.out) return;
  const Position o = position_of(i, s.layout, s.C, s.h.out, s.w.out);
  const Index4 Y = s.x_index();
  const int64_t index = indices[i];
  const bool points = index >= 0 && index < s.h.in * s.w.in;
  write(&dx[i], points ? read(&dy[Y(o.n, o.c, index / s.w.in, index % s.w.in)]) : acc_t<T>(0));
}

int64_t pooled_count(const Pool2dShape& s) { return s.N * s.C * s.h.out * s.w.out; }
int64_t plane_count(const Pool2dShape& s) { return s.N * s.C * s.h.in * s.w.in; }

}  // namespace

// ------------------------------------------------------------------------------------------------------------ launchers

int pyconv_cuda_max_pool2d_reference_fwd(const Place& at, const Pool2dShape& s, const void* x, void* y,
                                         int64_t* indices) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, pooled_count(s), max_fwd<T>, s, static_cast<const T*>(x), static_cast<T*>(y), indices);
  });
}

int pyconv_cuda_max_pool2d_reference_bwd(const Place& at, const Pool2dShape& s, const void* dy, const int64_t* indices,
                                         void* dx) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, plane_count(s), max_bwd<T>, s, static_cast<const T*>(dy), indices, static_cast<T*>(dx));
  });
}

int pyconv_cuda_avg_pool2d_reference_fwd(const Place& at, const Pool2dShape& s, const void* x, void* y) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, pooled_count(s), avg_fwd<T>, s, static_cast<const T*>(x), static_cast<T*>(y));
  });
}

int pyconv_cuda_avg_pool2d_reference_bwd(const Place& at, const Pool2dShape& s, const void* dy, void* dx) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, plane_count(s), avg_bwd<T>, s, static_cast<const T*>(dy), static_cast<T*>(dx));
  });
}

int pyconv_cuda_max_unpool2d_reference_fwd(const Place& at, const Pool2dShape& s, const void* x, const int64_t* indices,
                                           void* y) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, s.N * s.C, unpool_fwd<T>, s, static_cast<const T*>(x), indices, static_cast<T*>(y));
  });
}

int pyconv_cuda_max_unpool2d_reference_bwd(const Place& at, const Pool2dShape& s, const void* dy,
                                           const int64_t* indices, void* dx) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, pooled_count(s), unpool_bwd<T>, s, static_cast<const T*>(dy), indices,
                           static_cast<T*>(dx));
  });
}

}  // namespace pyconv::cuda

// conv2d on CUDA / reference.
// Computes  fwd         y[n,oc,oh,ow] = b[oc] + sum over ic, kh, kw of x[n,ic,oh*SH-PH+kh*DH,ow*SW-PW+kw*DW] * w[oc,ic,kh,kw]
//           bwd_input   dx[n,ic,ih,iw] = sum over oc, kh, kw of dy[n,oc,oh,ow] * w[oc,ic,kh,kw], oh*SH-PH+kh*DH == ih
//           bwd_weight  dw[oc,ic,kh,kw] = sum over n, oh, ow of dy[n,oc,oh,ow] * x[n,ic,oh*SH-PH+kh*DH,ow*SW-PW+kw*DW]
// Shapes    x (N,IC,IH,IW), w (OC,IC/G,KH,KW), y (N,OC,OH,OW); any layout, through index functions
// Tiling    one thread per value of the output, neighbours in memory in neighbouring threads
// Cost      every product's operands are read from memory or cache; one 64-bit division per digit and thread
// Limits    none: any type, any geometry, any size; the floor under every other kernel, and never tuned
// Source    Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285
#include "cuda/clip.h"
#include "cuda/each_value.h"

namespace pyconv::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(each_threads) fwd(Conv2dShape s, const T* x, const T* w, Epilogue e, T* y) {
  const int64_t i = thread_number();
  if (i >= s.N * s.OC * s.OH * s.OW) return;
  const Position o = position_of(i, s.layout, s.OC, s.OH, s.OW);
  const Index4 X = s.x_index(), W = s.w_index();
  const int64_t g = o.c / s.oc_per_group(), top = o.h * s.SH - s.PH, left = o.w * s.SW - s.PW;
  acc_t<T> sum = 0;
  for (int64_t ic = 0; ic < s.ic_per_group(); ic++) {
    for (int64_t kh = 0; kh < s.KH; kh++) {
      const int64_t ih = top + kh * s.DH;
      if (ih < 0 || ih >= s.IH) continue;
      for (int64_t kw = 0; kw < s.KW; kw++) {
        const int64_t iw = left + kw * s.DW;
        if (iw < 0 || iw >= s.IW) continue;
        sum += read(&x[X(o.n, g * s.ic_per_group() + ic, ih, iw)]) * read(&w[W(o.c, ic, kh, kw)]);
      }
    }
  }
  if (e.bias) sum += read(&static_cast<const T*>(e.bias)[o.c]);
  if (e.residual) sum += read(&static_cast<const T*>(e.residual)[i]);
  write(&y[i], Clip<acc_t<T>>(e)(sum));
}

// Of four blocks: left to itself, ptxas spilt around the calls of 64-bit divisions.
template <class T>
__global__ void __launch_bounds__(each_threads, 4) bwd_input(Conv2dShape s, const T* dy, const T* w, T* dx) {
  const int64_t i = thread_number();
  if (i >= s.N * s.IC * s.IH * s.IW) return;
  const Position p = position_of(i, s.layout, s.IC, s.IH, s.IW);
  const Index4 Y = s.y_index(), W = s.w_index();
  const int64_t g = p.c / s.ic_per_group(), ic = p.c % s.ic_per_group();
  acc_t<T> sum = 0;
  for (int64_t kh = 0; kh < s.KH; kh++) {
    const int64_t from_top = p.h + s.PH - kh * s.DH, oh = from_top / s.SH;
    if (from_top < 0 || from_top % s.SH || oh >= s.OH) continue;
    for (int64_t kw = 0; kw < s.KW; kw++) {
      const int64_t from_left = p.w + s.PW - kw * s.DW, ow = from_left / s.SW;
      if (from_left < 0 || from_left % s.SW || ow >= s.OW) continue;
      for (int64_t oc = g * s.oc_per_group(); oc < (g + 1) * s.oc_per_group(); oc++) {
        sum += read(&dy[Y(p.n, oc, oh, ow)]) * read(&w[W(oc, ic, kh, kw)]);
      }
    }
  }
  write(&dx[i], sum);
}

template <class T>
__global__ void __launch_bounds__(each_threads) bwd_weight(Conv2dShape s, const T* dy, const T* x, T* dw) {
  const int64_t i = thread_number();
  if (i >= s.OC * s.ic_per_group() * s.KH * s.KW) return;
  const Position k = position_of(i, s.layout, s.ic_per_group(), s.KH, s.KW);  // n is oc, c is ic
  const Index4 X = s.x_index(), Y = s.y_index();
  const int64_t ic = k.n / s.oc_per_group() * s.ic_per_group() + k.c;
  acc_t<T> sum = 0;
  for (int64_t n = 0; n < s.N; n++) {
    for (int64_t oh = 0; oh < s.OH; oh++) {
      const int64_t ih = oh * s.SH - s.PH + k.h * s.DH;
      if (ih < 0 || ih >= s.IH) continue;
      for (int64_t ow = 0; ow < s.OW; ow++) {
        const int64_t iw = ow * s.SW - s.PW + k.w * s.DW;
        if (iw < 0 || iw >= s.IW) continue;
        sum += read(&dy[Y(n, k.n, oh, ow)]) * read(&x[X(n, ic, ih, iw)]);
      }
    }
  }
  write(&dw[i], sum);
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------ launchers

int pyconv_cuda_conv2d_reference_fwd(const Place& at, const Conv2dShape& s, const void* x, const void* w,
                                     const Epilogue& e, void* y) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, s.N * s.OC * s.OH * s.OW, fwd<T>, s, static_cast<const T*>(x), static_cast<const T*>(w),
                           e, static_cast<T*>(y));
  });
}

int pyconv_cuda_conv2d_reference_bwd_input(const Place& at, const Conv2dShape& s, const void* dy, const void* w,
                                           void* dx) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, s.N * s.IC * s.IH * s.IW, bwd_input<T>, s, static_cast<const T*>(dy),
                           static_cast<const T*>(w), static_cast<T*>(dx));
  });
}

int pyconv_cuda_conv2d_reference_bwd_weight(const Place& at, const Conv2dShape& s, const void* dy, const void* x,
                                            void* dw) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_for_each(at, s.OC * s.ic_per_group() * s.KH * s.KW, bwd_weight<T>, s, static_cast<const T*>(dy),
                           static_cast<const T*>(x), static_cast<T*>(dw));
  });
}

}  // namespace pyconv::cuda

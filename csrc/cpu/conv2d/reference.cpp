// conv2d / reference.
// Computes  y[n,oc,oh,ow]   = b[oc] + sum_{ic,kh,kw} x[n,ic,oh*SH-PH+kh*DH,ow*SW-PW+kw*DW] * w[oc,ic,kh,kw]
//           dx[n,ic,ih,iw]  = sum_{oc,kh,kw} dy[n,oc,oh,ow] * w[oc,ic,kh,kw]   where oh*SH-PH+kh*DH == ih, same for iw
//           dw[oc,ic,kh,kw] = sum_{n,oh,ow}  dy[n,oc,oh,ow] * x[n,ic,oh*SH-PH+kh*DH,ow*SW-PW+kw*DW]
//           with ic, oc inside one group, and x zero outside the image
// Shapes    x (N,IC,IH,IW);  w (OC,IC/G,KH,KW);  y (N,OC,OH,OW); any layout, through index functions
// Cost      2*N*OC*OH*OW*(IC/G)*KH*KW flops; no workspace. One thread owns an output; sums run in a fixed order
// Limits    none: the floor under every other kernel, and never tuned
// Source    Dumoulin and Visin, A guide to convolution arithmetic, arXiv:1603.07285
#include "cpu/conv2d/conv2d.h"
#include "cpu/parallel.h"

namespace pyconv::conv2d {
namespace {

// The output row whose window has tap k on input row i, or -1.
int64_t output_of(int64_t i, int64_t k, int64_t stride, int64_t padding, int64_t dilation, int64_t O) {
  const int64_t reach = i + padding - k * dilation;
  return reach >= 0 && reach % stride == 0 && reach / stride < O ? reach / stride : -1;
}

template <class T>
void fwd(const Conv2dShape& s, const T* x, const T* w, const Epilogue& e, T* y) {
  const Index4 X = s.x_index(), W = s.w_index(), Y = s.y_index();
  const T *b = static_cast<const T*>(e.bias), *residual = static_cast<const T*>(e.residual);
  parallel_for(s.N * s.OC, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / s.OC, oc = item % s.OC;
      const int64_t first_ic = oc / s.oc_per_group() * s.ic_per_group();
      for (int64_t oh = 0; oh < s.OH; oh++) {
        for (int64_t ow = 0; ow < s.OW; ow++) {
          acc_t<T> sum = b ? widen(b[oc]) : 0;
          for (int64_t ic = 0; ic < s.ic_per_group(); ic++) {
            for (int64_t kh = 0; kh < s.KH; kh++) {
              const int64_t ih = oh * s.SH - s.PH + kh * s.DH;
              if (ih < 0 || ih >= s.IH) continue;
              for (int64_t kw = 0; kw < s.KW; kw++) {
                const int64_t iw = ow * s.SW - s.PW + kw * s.DW;
                if (iw < 0 || iw >= s.IW) continue;
                sum += widen(x[X(n, first_ic + ic, ih, iw)]) * widen(w[W(oc, ic, kh, kw)]);
              }
            }
          }
          if (residual) sum += widen(residual[Y(n, oc, oh, ow)]);
          store(&y[Y(n, oc, oh, ow)], e.relu && sum < 0 ? 0 : e.relu && sum > e.ceiling ? acc_t<T>(e.ceiling) : sum);
        }
      }
    }
  });
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  const Index4 X = s.x_index(), W = s.w_index(), Y = s.y_index();
  parallel_for(s.N * s.IC, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / s.IC, c = item % s.IC;
      const int64_t ic = c % s.ic_per_group(), first_oc = c / s.ic_per_group() * s.oc_per_group();
      for (int64_t ih = 0; ih < s.IH; ih++) {
        for (int64_t iw = 0; iw < s.IW; iw++) {
          acc_t<T> sum = 0;
          for (int64_t kh = 0; kh < s.KH; kh++) {
            const int64_t oh = output_of(ih, kh, s.SH, s.PH, s.DH, s.OH);
            if (oh < 0) continue;
            for (int64_t kw = 0; kw < s.KW; kw++) {
              const int64_t ow = output_of(iw, kw, s.SW, s.PW, s.DW, s.OW);
              if (ow < 0) continue;
              for (int64_t oc = first_oc; oc < first_oc + s.oc_per_group(); oc++) {
                sum += widen(dy[Y(n, oc, oh, ow)]) * widen(w[W(oc, ic, kh, kw)]);
              }
            }
          }
          store(&dx[X(n, c, ih, iw)], sum);
        }
      }
    }
  });
}

template <class T>
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  const Index4 X = s.x_index(), W = s.w_index(), Y = s.y_index();
  parallel_for(s.OC * s.ic_per_group(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t oc = item / s.ic_per_group(), ic = item % s.ic_per_group();
      const int64_t c = oc / s.oc_per_group() * s.ic_per_group() + ic;
      for (int64_t kh = 0; kh < s.KH; kh++) {
        for (int64_t kw = 0; kw < s.KW; kw++) {
          acc_t<T> sum = 0;
          for (int64_t n = 0; n < s.N; n++) {
            for (int64_t oh = 0; oh < s.OH; oh++) {
              const int64_t ih = oh * s.SH - s.PH + kh * s.DH;
              if (ih < 0 || ih >= s.IH) continue;
              for (int64_t ow = 0; ow < s.OW; ow++) {
                const int64_t iw = ow * s.SW - s.PW + kw * s.DW;
                if (iw < 0 || iw >= s.IW) continue;
                sum += widen(dy[Y(n, oc, oh, ow)]) * widen(x[X(n, c, ih, iw)]);
              }
            }
          }
          store(&dw[W(oc, ic, kh, kw)], sum);
        }
      }
    }
  });
}

}  // namespace

std::string reference_why_not(const Conv2dShape&, Pass, Ask) { return ""; }

void reference_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    fwd(s, static_cast<const T*>(x), static_cast<const T*>(w), e, static_cast<T*>(y));
  });
}

void reference_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    bwd_input(s, static_cast<const T*>(dy), static_cast<const T*>(w), static_cast<T*>(dx));
  });
}

void reference_bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    bwd_weight(s, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw));
  });
}

}  // namespace pyconv::conv2d

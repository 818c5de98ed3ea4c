// conv2d / Winograd / strides.
// Computes  with stride S the taps kh = S * q + r meet input rows S * (oh + q) + r - P: for each r a filter of ceil(K / S)
//           taps at stride 1 on the rows r - P, r - P + S, ... . So a strided convolution is one at stride 1 over SH * SW
//           times as many channels, the phases, whose filters end in zeros where S does not divide K
// Shapes    phases (N, H, W, (rh, rw, c)) with H = OH + ceil(KH / SH) - 1, padding included;
//           filters (OC, (rh, rw, c), ceil(KH / SH), ceil(KW / SW))
// Tiling    images in groups whose phases fit phase_bytes; the weight gradient sums over all at once
// Cost      3x3 with stride 2: 5.8 products an output instead of 9; 7x7 with 2: 10.2 instead of 49; 11x11 with 4: 36
//           instead of 121. workspace: phases and filters beside that of stride 1
// Limits    dilation 1
// Source    winograd.h

#include "cpu/conv2d/winograd_weight.h"

constexpr int64_t phase_bytes = int64_t(8) << 20;  // 2 MB lost up to 23 % (5x5 with stride 2), 64 MB won nothing

template <class T>
struct Phases {
  using A = acc_t<T>;
  static constexpr int64_t L = Vec<A>::size;
  const Conv2dShape& s;
  int64_t C = s.ic_per_group(), M = s.oc_per_group();
  int64_t TH = divide_up(s.KH, s.SH), TW = divide_up(s.KW, s.SW);  // taps of a phase
  int64_t H = s.OH + TH - 1, W = s.OW + TW - 1, channels = s.SH * s.SW * C;
  Index4 X = s.x_index();

  int64_t size(int64_t images) const { return images * H * W * channels; }
  int64_t filter_size() const { return M * channels * TH * TW; }
  Index4 index() const { return index_of(Layout::nhwc, channels, H, W); }

  // visit(first image, images, room for their phases) of groups of images, one after another.
  template <class Visit>
  void each_group(const Visit& visit) const {
    const int64_t most = at_most(at_least(phase_bytes / (size(1) * int64_t(sizeof(T))), 1), s.N);
    T* phases = static_cast<T*>(scratch(2, sizeof(T) * size(most)));
    for (int64_t n = 0; n < s.N; n += most) visit(n, at_most(most, s.N - n), phases);
  }

  // The same convolution of `count` images, at stride 1.
  Conv2dShape shape(int64_t count) const {
    Conv2dShape p = s;
    p.N = count, p.G = 1, p.IC = channels, p.IH = H, p.IW = W, p.OC = M, p.KH = TH, p.KW = TW;
    p.SH = p.SW = p.DH = p.DW = 1, p.PH = p.PW = 0;
    return p;
  }

  // What stands in phases at pixel iw of a row of its own, or null beyond.
  T* at(T* row, int64_t rh, int64_t iw) const {
    const int64_t p = iw + s.PW, w = p / s.SW;
    return w < W ? row + w * channels + (rh * s.SW + p % s.SW) * C : nullptr;
  }
  static PYCONV_INLINED void copy(const T* from, T* to, int64_t count) {
    for (int64_t c = 0; c < count; c += L) store_up_to(to + c, load_up_to(from + c, count - c), count - c);
  }
  static PYCONV_INLINED void zero(T* to, int64_t count) {
    for (int64_t c = 0; c < count; c += L) store_up_to(to + c, vec<A>{}, count - c);
  }

  // One row of phases, (W, rw, c) of one rh, from row ih of an image.
  void split_row(const T* x, int64_t n, int64_t ih, int64_t rh, T* row) const {
    const int64_t last = W * s.SW - s.PW;  // one past the pixels that some output meets
    const bool blank = ih < 0 || ih >= s.IH;
    for (int64_t iw = -s.PW; iw < (blank ? last : 0); iw++) zero(at(row, rh, iw), C);
    if (blank) return;
    for (int64_t iw = s.IW; iw < last; iw++) zero(at(row, rh, iw), C);
    const T* from = x + X(n, 0, ih, 0);
    const int64_t end = at_most(s.IW, last);
    if (X.c == 1) {
      for (int64_t iw = 0; iw < end; iw++) copy(from + iw * X.w, at(row, rh, iw), C);
      return;
    }
    alignas(64) A block[L * L];
    for (int64_t c = 0; c < C; c += L) {
      for (int64_t iw = 0; iw < end; iw += L) {
        load_columns(from + c * X.c + iw, X.c, at_most(L, C - c), at_most(L, end - iw), block, L);
        for (int64_t i = 0; i < at_most(L, end - iw); i++) {
          store_up_to(at(row, rh, iw + i) + c, load(block + i * L), C - c);
        }
      }
    }
  }
  void split(const T* x, int64_t images, T* phases) const {
    parallel_for(images * H, divide_up(serial_flops, 4 * W * channels), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        for (int64_t rh = 0; rh < s.SH; rh++) {
          split_row(x, i / H, i % H * s.SH + rh - s.PH, rh, phases + i * W * channels);
        }
      }
    });
  }

  // And back: row ih of an image; pixels that no output meets are zero.
  void join_row(T* phases, int64_t n, int64_t ih, T* dx) const {
    const int64_t h = (ih + s.PH) / s.SH, rh = (ih + s.PH) % s.SH;
    T *row = phases + (n * H + h) * W * channels, *to = dx + X(n, 0, ih, 0);
    alignas(64) A block[L * L] = {};
    for (int64_t c = 0; c < C; c += L) {
      for (int64_t iw = 0; iw < s.IW; iw += L) {
        const int64_t count = at_most(L, s.IW - iw);
        for (int64_t i = 0; i < L; i++) {
          const T* from = h < H && i < count ? at(row, rh, iw + i) : nullptr;
          const vec<A> v = from ? load_up_to(from + c, C - c) : vec<A>{};
          if (X.c > 1) {
            store(block + i * L, v);
          } else if (i < count) {
            store_up_to(to + (iw + i) * X.w + c, v, C - c);
          }
        }
        if (X.c > 1) store_columns(block, L, to + c * X.c + iw, X.c, at_most(L, C - c), count, Finish<T>());
      }
    }
  }
  void join(T* phases, int64_t images, T* dx) const {
    parallel_for(images * s.IH, divide_up(serial_flops, 4 * s.IW * C), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) join_row(phases, i / s.IH, i % s.IH, dx);
    });
  }

  // visit(offset in w, offset in filters) of every tap of output channel oc.
  template <class Visit>
  PYCONV_INLINED void taps_of(int64_t oc, const Visit& visit) const {
    const Index4 weight = s.w_index();
    for (int64_t kh = 0; kh < s.KH; kh++) {
      for (int64_t kw = 0; kw < s.KW; kw++) {
        const int64_t phase = (kh % s.SH * s.SW + kw % s.SW) * C, tap = kh / s.SH * TW + kw / s.SW;
        for (int64_t c = 0; c < C; c++) visit(weight(oc, c, kh, kw), (oc * channels + phase + c) * TH * TW + tap);
      }
    }
  }
  // Filters of all phases, zeros where a phase has fewer taps.
  T* filters(const T* w) const {
    T* made = static_cast<T*>(scratch(3, sizeof(T) * filter_size()));
    parallel_for(M, divide_up(serial_flops, 4 * channels * TH * TW), [&](int64_t begin, int64_t end) {
      for (int64_t oc = begin; oc < end; oc++) {
        zero(made + oc * channels * TH * TW, channels * TH * TW);
        taps_of(oc, [&](int64_t from, int64_t to) { made[to] = w[from]; });
      }
    });
    return made;
  }
};

template <class T>
void strided_forward(const Conv2dShape& s, const T* x, const T* w, T* y, const Finish<T>& finish) {
  const Phases<T> p = {s};
  const T* filters = p.filters(w);
  p.each_group([&](int64_t n, int64_t count, T* phases) {
    p.split(x + p.X(n, 0, 0, 0), count, phases);
    forward(p.shape(count), phases, p.index(), filters, Layout::nchw, y + s.y_index()(n, 0, 0, 0), s.y_index(), finish);
  });
}

template <class T>
void strided_gradient(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  const Phases<T> p = {s};
  const T* filters = p.filters(w);
  p.each_group([&](int64_t n, int64_t count, T* phases) {
    gradient(p.shape(count), dy + s.y_index()(n, 0, 0, 0), s.y_index(), filters, Layout::nchw, phases, p.index());
    p.join(phases, count, dx + p.X(n, 0, 0, 0));
  });
}

template <class T>
void strided_weight_gradient(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  const Phases<T> p = {s};
  T* phases = static_cast<T*>(scratch(2, sizeof(T) * p.size(s.N)));
  T* filters = static_cast<T*>(scratch(3, sizeof(T) * p.filter_size()));
  p.split(x, s.N, phases);
  weight_gradient(p.shape(s.N), dy, s.y_index(), phases, p.index(), filters, Layout::nchw);
  for (int64_t oc = 0; oc < p.M; oc++) p.taps_of(oc, [&](int64_t to, int64_t from) { dw[to] = filters[from]; });
}

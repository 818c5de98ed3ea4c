// NCHW by way of channels_last, for kernels and layers where that pays. Included once per ISA by them, after finish.h.

constexpr int64_t serial_flops = 100000;

// Up to W planes: a vector of each, interleaved, and the lanes of no channel left out.
template <int W, class T, class A>
void gather_few(const T* from, int64_t plane, int64_t C, int64_t pixels, A* to) {
  constexpr int64_t L = Vec<A>::size;
  Order<A> order = {};
  for (int64_t i = 0, lane = 0; i < L / W; i++) {
    for (int64_t c = 0; c < C; c++) order.lane[lane++] = i * W + c;
  }
  for (int64_t i = 0; i < pixels; i += L) {
    vec<A> all[W];
    _Pragma("GCC unroll 8") for (int c = 0; c < W; c++) {
      all[c] = c < C ? load_up_to(from + c * plane + i, pixels - i) : vec<A>{};
    }
    interleave<A, W>(all);
    _Pragma("GCC unroll 8") for (int c = 0; c < W; c++) {
      const int64_t at = i + c * (L / W), here = at_most(pixels - at, L / W);
      if (here > 0) store_up_to(to + at * C, C < W ? shuffle<A>(all[c], all[c], order) : all[c], here * C);
    }
  }
}

// `pixels` of C planes to pixels of C channels: L pixels of L channels at a time, transposed; of up to 8 channels, half
// of whose lanes would idle, interleaved.
template <class T, class A>
PYCONV_NOINLINE void gather_image(const T* from, int64_t plane, int64_t C, int64_t pixels, A* to) {
  constexpr int64_t L = Vec<A>::size;
  if constexpr (L >= 8) {
    if (C <= 4) return gather_few<4>(from, plane, C, pixels, to);
    if (C <= 8) return gather_few<8>(from, plane, C, pixels, to);
  }
  for (int64_t c = 0; c < C; c += L) {
    for (int64_t i = 0; i < pixels; i += L) {
      const int64_t channels = at_most(C - c, L), columns = at_most(pixels - i, L);
      vec<A> block[L];
      _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
        const T* at = from + (c + j) * plane + i;
        block[j] = j >= channels ? vec<A>{} : columns == L ? load_wide(at) : load_wide_first(at, columns);
      }
      transpose<A>(block);
      _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
        if (j < columns) store_first(to + (i + j) * C + c, block[j], channels);
      }
    }
  }
}
// And back.
template <class T, class A>
PYCONV_NOINLINE void scatter_image(const A* from, int64_t C, int64_t pixels, T* to, int64_t plane,
                                   const Finish<T>& finish) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t c = 0; c < C; c += L) {
    for (int64_t i = 0; i < pixels; i += L) {
      const int64_t channels = at_most(C - c, L), columns = at_most(pixels - i, L);
      vec<A> block[L];
      _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
        block[j] = j < columns ? load_first(from + (i + j) * C + c, channels) : vec<A>{};
      }
      transpose<A>(block);
      _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
        if (j < channels) finish.store_first(to + (c + j) * plane + i, block[j], columns);
      }
    }
  }
}

// NCHW by way of channels_last copies, widened: x and y are small beside the products of the layers chosen.
template <class T>
struct Copies {
  using A = acc_t<T>;
  Conv2dShape s;  // of the copies
  A *x, *y, *w, *bias;

  explicit Copies(const Conv2dShape& of) : s(of) {
    s.layout = Layout::nhwc;
    const int64_t in = s.N * s.IC * s.IH * s.IW, out = s.N * s.OC * s.OH * s.OW,
                  taps = s.OC * s.ic_per_group() * s.KH * s.KW;
    x = static_cast<A*>(scratch(4, sizeof(A) * (in + out + taps + s.OC)));
    y = x + in, w = y + out, bias = w + taps;
  }
  // Images of C planes to pixels of C channels.
  void gather(const T* from, int64_t images, int64_t C, int64_t pixels, A* to) const {
    parallel_for(images, divide_up(serial_flops, at_least(C * pixels, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) gather_image(from + n * C * pixels, pixels, C, pixels, to + n * C * pixels);
    });
  }
  void scatter(const A* from, int64_t images, int64_t C, int64_t pixels, T* to, const Finish<T>& finish = {}) const {
    parallel_for(images, divide_up(serial_flops, at_least(C * pixels, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++)
        scatter_image(from + n * C * pixels, C, pixels, to + n * C * pixels, pixels, finish);
    });
  }
  void gather_x(const T* from) const { gather(from, s.N, s.IC, s.IH * s.IW, x); }
  void gather_y(const T* from) const { gather(from, s.N, s.OC, s.OH * s.OW, y); }
  const A* widened(const T* b) const {
    for (int64_t i = 0; b && i < s.OC; i++) bias[i] = widen(b[i]);
    return b ? bias : nullptr;
  }
  void gather_w(const T* from) const { gather(from, s.OC, s.ic_per_group(), s.KH * s.KW, w); }
};

// NCHW by way of channels_last, for kernels and layers where that pays. Included once per ISA by them, after finish.h.

constexpr int64_t serial_flops = 100000;

// C planes of `pixels` to pixels of C channels: L pixels of L channels at a time, transposed.
template <class T, class A>
PYCONV_NOINLINE void gather_image(const T* from, int64_t C, int64_t pixels, A* to) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t c = 0; c < C; c += L) {
    for (int64_t i = 0; i < pixels; i += L) {
      const int64_t channels = at_most(C - c, L), columns = at_most(pixels - i, L);
      vec<A> block[L];
      _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
        const T* at = from + (c + j) * pixels + i;
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
PYCONV_NOINLINE void scatter_image(const A* from, int64_t C, int64_t pixels, T* to, const Finish<T>& finish) {
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
        if (j < channels) finish.store_first(to + (c + j) * pixels + i, block[j], columns);
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
      for (int64_t n = begin; n < end; n++) gather_image(from + n * C * pixels, C, pixels, to + n * C * pixels);
    });
  }
  void scatter(const A* from, int64_t images, int64_t C, int64_t pixels, T* to, const Finish<T>& finish = {}) const {
    parallel_for(images, divide_up(serial_flops, at_least(C * pixels, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++)
        scatter_image(from + n * C * pixels, C, pixels, to + n * C * pixels, finish);
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

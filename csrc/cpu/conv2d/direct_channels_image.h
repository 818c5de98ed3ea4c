// Images of direct_channels.h, included once per ISA by it: bordered copies, and NCHW by way of channels_last.

#include "cpu/conv2d/cut.h"
#include "cpu/conv2d/finish.h"

constexpr int64_t band_bytes = 128 << 10;  // of a bordered image
constexpr int64_t serial_flops = 100000;

// `pixels` of `count` channels each, `from_step` apart, to rows `to_step` apart, widened; zeros up to to_step.
template <class T, class A>
void copy_pixels(const T* from, int64_t from_step, int64_t count, int64_t pixels, A* to, int64_t to_step) {
  constexpr int64_t L = Vec<A>::size;
  if (from_step == count && to_step == count) count *= pixels, pixels = 1;
  for (int64_t p = 0; p < pixels; p++, from += from_step, to += to_step) {
    int64_t i = 0;
    for (; i + L <= count; i += L) store(to + i, load_wide(from + i));
    for (; i < count; i++) to[i] = widen(from[i]);
    for (; i < to_step && pixels > 1; i++) to[i] = 0;
  }
}

// What a band of the output of one group meets: rows and columns of C channels, zeros around the image.
struct Border {
  int64_t C, top, left, rows, columns, row;  // rows of a full band; elements of a row

  Border(const Grid& h, const Grid& w, int64_t C, int64_t band) : C(C), top(Reach(h).low), left(Reach(w).low) {
    rows = (band - 1) * Reach(h).step + Reach(h).high - top + 1;
    columns = (w.out() - 1) * Reach(w).step + Reach(w).high - left + 1;
    row = columns * C;
  }
  // Image rows from `from` on of channels [c0, c0 + C).
  template <class T, class A>
  void copy(const T* image, const Grid& h, const Grid& w, int64_t channels, int64_t c0, int64_t from, A* to) const {
    const int64_t begin = at_most(at_least(-left, 0), columns),
                  end = at_least(at_most(w.source - left, columns), begin);
    for (int64_t r = 0; r < rows; r++, to += row) {
      const int64_t ih = from + r;
      const bool inside = ih >= 0 && ih < h.source;
      for (int64_t i = 0; i < (inside ? begin * C : row); i++) to[i] = 0;
      if (!inside) continue;
      copy_pixels(image + (ih * w.source + left + begin) * channels + c0, channels, C, end - begin, to + begin * C, C);
      for (int64_t i = end * C; i < row; i++) to[i] = 0;
    }
  }
};

// Output rows per job, so that their borders stay in L2 and there are jobs for several threads.
int64_t band_rows(const Grid& h, const Grid& w, int64_t C, int64_t jobs, int64_t element) {
  const Border one(h, w, C, 1);
  const int64_t fit = (band_bytes / (element * one.row) - one.rows) / Reach(h).step + 1;
  const int64_t share = divide_up(h.out(), at_least(8 / at_least(jobs, 1), 1));
  return at_most(at_least(at_most(fit, share), 1), h.out());
}

// Images of a job: several where one has too few pixels to fill tiles with, or to load and store sums for.
int64_t images_per_job(const Grid& h, const Grid& w, int64_t C, int64_t N, int64_t G, int64_t element) {
  const Border border(h, w, C, h.out());
  const int64_t wanted = 128 / at_least(h.total * w.total, 1), fit = band_bytes / (element * border.rows * border.row);
  return at_least(at_most(at_most(wanted, fit), N * G / 8), 1);
}

// C planes of `pixels` to pixels of C channels: L pixels of L channels at a time, transposed.
template <class T, class A>
PYCONV_NOINLINE void gather_planes(const T* from, int64_t C, int64_t pixels, A* to) {
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
PYCONV_NOINLINE void scatter_planes(const A* from, int64_t C, int64_t pixels, T* to, const Finish<T>& finish) {
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
    x = static_cast<A*>(scratch(3, sizeof(A) * (in + out + taps + s.OC)));
    y = x + in, w = y + out, bias = w + taps;
  }
  // Images of C planes to pixels of C channels.
  void gather(const T* from, int64_t images, int64_t C, int64_t pixels, A* to) const {
    parallel_for(images, divide_up(serial_flops, at_least(C * pixels, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) gather_planes(from + n * C * pixels, C, pixels, to + n * C * pixels);
    });
  }
  void scatter(const A* from, int64_t images, int64_t C, int64_t pixels, T* to, const Finish<T>& finish = {}) const {
    parallel_for(images, divide_up(serial_flops, at_least(C * pixels, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++)
        scatter_planes(from + n * C * pixels, C, pixels, to + n * C * pixels, finish);
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

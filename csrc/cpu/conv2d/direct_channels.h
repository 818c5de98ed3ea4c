// conv2d / direct on channels: vectors of output channels, one value of the image broadcast to all of them.
// Computes  y[p,m] = b[m] + sum_t w[t,m] * x[at(p) + off[t]]            p: an output pixel, t: (kh, kw, c)
//           fwd         m = output channel, c = input channel
//           bwd_input   the same with m = input channel, c = output channel, x = dy, once per phase of the stride
//           bwd_weight  dw[t,m] = sum_p dy[p,m] * x[at(p) + off[t]]
//           A row of a window lies in memory as one run of KW * C values: nothing is gathered.
// Shapes    image (rows, columns, C) of one group, bordered by zeros, widened;  w packed (block of M, T, NV * L)
// Tiling    thread: (image, group, band of rows); registers: P pixels, or P terms, x NV vectors of channels
// Cost      2*N*OC*OH*OW*(IC/G)*KH*KW flops;  loads per FMA 1/P + 1/NV; workspace: packed weights, a band a thread
// Limits    lanes beyond M are wasted; the weights of a block should stay in L2; NCHW is copied to channels_last and back
// Source    Zhang, Franchetti, Low, High Performance Zero-Memory Overhead Direct Convolutions, arXiv:1809.10170

namespace direct_channels {
namespace {

constexpr int NV_MAX = PYCONV_BYTES == 64 ? 4 : 2;
// P x NV accumulators, NV vectors, one broadcast, and P pointers: of 32 or 16 vectors and 16 others.
constexpr int pixels(int NV) { return NV == NV_MAX ? 6 : 8; }
constexpr int64_t dy_bytes = 16 << 10;  // of the rows of dy that stay in L1 while all terms sweep them

#include "cpu/finish.h"

#include "cpu/conv2d/direct_channels_image.h"
#include "cpu/conv2d/nchw_copies.h"

// Runs of terms: `count` values of a window, one after the other at its pixel + at.
struct Span {
  int64_t at, count;
};

// Micro-kernel: y[p] = bias + sum_t w[t] * x[p][off[t]] for P pixels and NV vectors of channels.
template <class A, int NV>
PYCONV_NOINLINE void pixel_tile(const A* const* x, const Span* spans, int64_t n, const A* w, const A* bias, A* const* y,
                                const Finish<A>& finish) {
  constexpr int P = pixels(NV);
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[P][NV];
  const A* at[P];
  _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
    at[p] = x[p];
    _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) sum[p][v] = load(bias + v * L);
  }
  for (const Span* span = spans; span < spans + n; span++) {
    for (int64_t i = span->at; i < span->at + span->count; i++, w += NV * L) {
      vec<A> weight[NV];
      _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) weight[v] = keep(load(w + v * L));
      _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
        const vec<A> value = splat(at[p][i]);
        _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) sum[p][v] += value * weight[v];
      }
    }
  }
  _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
    _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) finish.store(y[p] + v * L, sum[p][v]);
  }
}

// Pixels of a weight gradient: images of rows of columns, and from one of each to the next in dy and in x.
struct Pixels {
  int64_t images, rows, columns, dy_image, dy_row, dy, x_image, x_row, x;
};

// Micro-kernel of the weight gradient: sums[t] += dy[p] * x[t][p] for P terms and NV vectors of channels.
template <class A, int NV>
PYCONV_NOINLINE void term_tile(const A* const* x, const Pixels& pixels_of, const A* dy, A* sums) {
  constexpr int P = pixels(NV);
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[P][NV];
  const A* at[P];
  _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
    at[p] = x[p];
    _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) sum[p][v] = load(sums + (p * NV + v) * L);
  }
  for (int64_t r = 0; r < pixels_of.images * pixels_of.rows; r++) {
    const int64_t image = r / pixels_of.rows, row = r % pixels_of.rows;
    const A* g = dy + image * pixels_of.dy_image + row * pixels_of.dy_row;
    const int64_t first = image * pixels_of.x_image + row * pixels_of.x_row;
    for (int64_t i = first; i < first + pixels_of.columns * pixels_of.x; i += pixels_of.x, g += pixels_of.dy) {
      vec<A> gradient[NV];
      _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) gradient[v] = keep(load(g + v * L));
      _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
        const vec<A> value = splat(at[p][i]);
        _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) sum[p][v] += value * gradient[v];
      }
    }
  }
  _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
    _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) store(sums + (p * NV + v) * L, sum[p][v]);
  }
}

// The runs of terms of one phase, in the order (th, tw, c), both ascending: whole rows of a window where they touch.
int64_t list_spans(const Line& h, const Line& w, const Border& border, Span* spans) {
  int64_t n = 0;
  for (int64_t i = 0; i < h.taps; i++) {
    const int64_t row = (h.low + i * h.apart - border.top) * border.row;
    for (int64_t j = 0; j < w.taps; j += w.apart == 1 ? w.taps : 1) {
      spans[n++] = {row + (w.low + j * w.apart - border.left) * border.C, (w.apart == 1 ? w.taps : 1) * border.C};
    }
  }
  return n;
}

// One phase: its axes, its spans and its T terms.
struct Phase {
  Line h, w;
  int64_t spans, T;
};

// C channels of source image -> M channels of output per group; weight(g, m, c, kh, kw) is an element of w.
template <class T>
struct Problem {
  using A = acc_t<T>;
  static constexpr int64_t L = Vec<A>::size;
  int64_t N, G, C, M;
  Grid h, w;
  const T* source;
  T* output;

  template <class Weight>
  void run(const Weight& weight, const Finish<T>& finish) const {
    const int64_t vectors = divide_up(M, L), NV = divide_up(vectors, divide_up(vectors, NV_MAX));
    const int64_t blocks = divide_up(vectors, NV), wide = NV * L, phases = h.phases * w.phases;
    const int64_t band = band_rows(h, w, C, N * G, sizeof(A)), bands = divide_up(h.out(), band);
    const Border border(h, w, C, band);
    const int64_t images = bands > 1 ? 1 : images_per_job(h, w, C, N, G, sizeof(A)), jobs = divide_up(N, images);
    const int64_t most = h.kernel * w.kernel, size = most * C * wide;  // taps, and weights of a block

    A* packed = static_cast<A*>(scratch(0, sizeof(A) * (phases * G * blocks * size + G * blocks * wide) +
                                               phases * (sizeof(Phase) + most * sizeof(Span))));
    A* wide_bias = packed + phases * G * blocks * size;  // (group, block, NV * L)
    Phase* phase = reinterpret_cast<Phase*>(wide_bias + G * blocks * wide);
    Span* spans = reinterpret_cast<Span*>(phase + phases);
    for (int64_t p = 0; p < phases; p++) {
      const Axis ah = h.axis(p / w.phases), aw = w.axis(p % w.phases);
      phase[p] = {Line(ah), Line(aw), 0, ah.taps * aw.taps * C};
      phase[p].spans = list_spans(phase[p].h, phase[p].w, border, spans + p * most);
      pack(ah, aw, weight, blocks, wide, size, packed + p * G * blocks * size);
    }
    for (int64_t i = 0; i < G * blocks * wide; i++) {
      const int64_t m = i % (blocks * wide);
      wide_bias[i] = finish.bias && m < M ? widen(finish.bias[i / (blocks * wide) * M + m]) : A(0);
    }

    const int64_t flops = 2 * images * band * w.out() * most * C * blocks * wide;
    parallel_for(jobs * G * bands, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
      A* x = static_cast<A*>(scratch(1, sizeof(A) * images * border.rows * border.row));
      for (int64_t item = begin; item < end; item++) {
        const int64_t n = item / (G * bands) * images, g = item / bands % G, oh = item % bands * band;
        const int64_t here = at_most(images, N - n);
        for (int64_t i = 0; i < here; i++) {
          border.copy(source + (n + i) * h.source * w.source * G * C, h, w, G * C, g * C,
                      oh * Reach(h).step + border.top, x + i * border.rows * border.row);
        }
        for (int64_t p = 0; p < phases; p++) {
          for (int64_t block = 0; block < blocks; block++) {
            const int64_t at = g * blocks + block, m = block * wide;
            multiply(phase[p], spans + p * most, border, x, here, oh, at_most(band, phase[p].h.out - oh), NV,
                     packed + (p * G * blocks + at) * size, wide_bias + at * wide, at_most(M - m, wide),
                     output + n * h.total * w.total * G * M + g * M + m, finish);
          }
        }
      }
    });
  }

  // Output rows [oh, oh + rows) of some images, one phase and block of `count` channels, `to`: its first in an image.
  void multiply(const Phase& a, const Span* spans, const Border& border, const A* x, int64_t images, int64_t oh,
                int64_t rows, int64_t NV, const A* packed, const A* bias, int64_t count, T* to,
                const Finish<T>& finish) const {
    const int64_t P = NV == NV_MAX ? pixels(NV_MAX) : pixels(1), total = images * at_least(rows, 0) * a.w.out;
    const bool whole = sizeof(T) == sizeof(A) && count == NV * L;
    A sums[8 * NV_MAX * L], *y[8];
    const A* from[8];
    T* target[8];
    int64_t i = 0, r = 0, c = 0;
    for (int64_t first = 0; first < total; first += P) {
      const int64_t here = at_most(P, total - first);
      const bool direct = whole && here == P;  // else by way of `sums`
      Finish<A> in_place;
      if constexpr (sizeof(T) == sizeof(A)) {
        if (direct) in_place = finish;
      }
      for (int64_t p = 0; p < P; p++) {
        from[p] = p < here ? x + (i * border.rows + r * a.h.step) * border.row + c * a.w.step * C : x;
        const int64_t row = i * h.total + a.h.out0 + (oh + r) * a.h.out_step;
        target[p] = to + (row * w.total + a.w.out0 + c * a.w.out_step) * G * M;
        if (p < here && ++c == a.w.out) c = 0, r++;
        if (r == rows) r = 0, i++;
        y[p] = direct ? reinterpret_cast<A*>(target[p]) : sums + p * NV * L;
      }
      with_int<NV_MAX>(
          NV, [&](auto nv) { pixel_tile<A, decltype(nv)::value>(from, spans, a.spans, packed, bias, y, in_place); });
      for (int64_t p = 0; p < (direct ? 0 : here); p++) {
        for (int64_t v = 0; v * L < count; v++) {
          const vec<A> sum = load(sums + (p * NV + v) * L);
          if (count - v * L >= L) {
            finish.store(target[p] + v * L, sum);
          } else {
            finish.store_first(target[p] + v * L, sum, count - v * L);
          }
        }
      }
    }
  }

  // packed (group, block, T, NV * L), zeros beyond M
  template <class Weight>
  void pack(const Axis& ah, const Axis& aw, const Weight& weight, int64_t blocks, int64_t wide, int64_t size,
            A* packed) const {
    parallel_for(G * blocks, divide_up(serial_flops, size), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; item++) {
        A* to = packed + item * size;
        const int64_t m0 = item % blocks * wide;
        for (int64_t i = 0; i < ah.taps; i++) {
          for (int64_t j = 0; j < aw.taps; j++) {
            const int64_t th = ah.offset_step < 0 ? ah.taps - 1 - i : i, tw = aw.offset_step < 0 ? aw.taps - 1 - j : j;
            const int64_t kh = ah.tap0 + th * ah.tap_step, kw = aw.tap0 + tw * aw.tap_step;
            for (int64_t c = 0; c < C; c++, to += wide) {
              for (int64_t m = 0; m < wide; m++) {
                to[m] = m0 + m < M ? widen(weight(item / blocks, m0 + m, c, kh, kw)) : A(0);
              }
            }
          }
        }
      }
    });
  }
};

template <class T>
void fwd(const Conv2dShape& s, const T* x, const T* w, const Epilogue& e, T* y) {
  const int64_t C = s.ic_per_group(), M = s.oc_per_group();
  const Index4 W = s.w_index();
  const Problem<T> p = {s.N, s.G, C, M, height(s, false), width(s, false), x, y};
  p.run([&](int64_t g, int64_t oc, int64_t ic, int64_t kh, int64_t kw) { return w[W(g * M + oc, ic, kh, kw)]; },
        {e, y});
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  const int64_t C = s.oc_per_group(), M = s.ic_per_group();
  const Index4 W = s.w_index();
  const Problem<T> p = {s.N, s.G, C, M, height(s, true), width(s, true), dy, dx};
  p.run([&](int64_t g, int64_t ic, int64_t oc, int64_t kh, int64_t kw) { return w[W(g * C + oc, ic, kh, kw)]; }, {});
}

// All terms of one band: sums (block, T, NV * L) += dy x.  off: of the terms; dy (block, pixels, NV * L).
template <class A>
void multiply_weight(const Pixels& band, int64_t blocks, int64_t NV, int64_t T, const int64_t* off, const A* x,
                     const A* dy, int64_t dy_block, A* sums) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t P = NV == NV_MAX ? pixels(NV_MAX) : pixels(1), padded = round_up(T, P);
  const int64_t fit = at_least(dy_bytes / (at_least(band.columns, 1) * NV * L * int64_t(sizeof(A))), 1);
  const int64_t most = band.images > 1 ? band.rows : fit;
  const A* from[8];
  for (int64_t r = 0; r < band.rows; r += most) {
    Pixels part = band;
    part.rows = at_most(most, band.rows - r);
    for (int64_t block = 0; block < blocks; block++) {
      for (int64_t t = 0; t < T; t += P) {
        for (int64_t p = 0; p < P; p++) from[p] = x + r * band.x_row + off[at_most(t + p, T - 1)];
        with_int<NV_MAX>(NV, [&](auto nv) {
          term_tile<A, decltype(nv)::value>(from, part, dy + block * dy_block + r * band.dy_row,
                                            sums + (block * padded + t) * NV * L);
        });
      }
    }
  }
}

// Bands of images are dealt into chunks, each with sums of its own, added at the end in their order: parallel, and the
// same bits for any number of threads.
template <class T>
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Grid h = height(s, false), w = width(s, false);
  const int64_t C = s.ic_per_group(), M = s.oc_per_group(), terms = C * s.KH * s.KW;
  const int64_t vectors = divide_up(M, L), NV = divide_up(vectors, divide_up(vectors, NV_MAX)), wide = NV * L;
  const int64_t blocks = divide_up(vectors, NV), size = blocks * round_up(terms, NV == NV_MAX ? 6 : 8) * wide;
  const int64_t band = band_rows(h, w, C, s.N * s.G, sizeof(A)), bands = divide_up(s.OH, band);
  const int64_t images = bands > 1 ? 1 : images_per_job(h, w, C, s.N, s.G, sizeof(A));
  const int64_t units = divide_up(s.N, images) * bands;
  const int64_t chunks = at_least(at_most(units, divide_up(8, s.G)), 1), share = divide_up(units, chunks);
  const Border border(h, w, C, band);

  A* sums = static_cast<A*>(scratch(0, sizeof(A) * chunks * s.G * size + sizeof(int64_t) * terms));
  int64_t* off = reinterpret_cast<int64_t*>(sums + chunks * s.G * size);
  for (int64_t t = 0; t < terms; t++) {
    off[t] = t / C / s.KW * s.DH * border.row + t / C % s.KW * s.DW * C + t % C;
  }

  const int64_t flops = 2 * share * images * band * s.OW * terms * blocks * wide;
  parallel_for(chunks * s.G, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    const int64_t x_image = border.rows * border.row, dy_image = band * s.OW * blocks * wide;
    A* px = static_cast<A*>(scratch(1, sizeof(A) * images * x_image));
    A* py = static_cast<A*>(scratch(2, sizeof(A) * images * dy_image));
    for (int64_t item = begin; item < end; item++) {
      const int64_t chunk = item / s.G, g = item % s.G;
      A* sum = sums + item * size;
      for (int64_t i = 0; i < size; i += L) store(sum + i, vec<A>{});
      for (int64_t unit = chunk * share; unit < at_most((chunk + 1) * share, units); unit++) {
        const int64_t n = unit / bands * images, oh = unit % bands * band, rows = at_most(band, s.OH - oh);
        const int64_t here = at_most(images, s.N - n);
        for (int64_t i = 0; i < here; i++) {
          border.copy(x + (n + i) * s.IH * s.IW * s.IC, h, w, s.IC, g * C, oh * s.SH + border.top, px + i * x_image);
          copy_pixels(dy + ((n + i) * s.OH + oh) * s.OW * s.OC + g * M, s.OC, M, rows * s.OW, py + i * dy_image,
                      blocks * wide);
        }
        const Pixels pixels = {
            here, rows, s.OW, dy_image, s.OW * blocks * wide, blocks * wide, x_image, s.SH * border.row, s.SW * C};
        multiply_weight(pixels, blocks, NV, terms, off, px, py, wide, sum);
      }
    }
  });

  // L terms of L channels at a time: chunks added, transposed to the order of dw.
  const int64_t padded = size / (blocks * wide);
  parallel_for(s.G * vectors, divide_up(serial_flops, terms * chunks * L), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t g = item / vectors, v = item % vectors, count = at_most(L, M - v * L);
      const A* from = sums + g * size + v / NV * padded * wide + v % NV * L;
      for (int64_t t = 0; t < terms; t += L) {
        vec<A> block[L];
        _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
          block[j] = vec<A>{};
          for (int64_t chunk = 0; t + j < terms && chunk < chunks; chunk++) {
            block[j] += load(from + chunk * s.G * size + (t + j) * wide);
          }
        }
        transpose<A>(block);
        _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
          T* to = dw + (g * M + v * L + j) * terms + t;
          if (j >= count) continue;
          if (terms - t >= L) {
            store_narrow(to, block[j]);
          } else {
            store_narrow_first(to, block[j], terms - t);
          }
        }
      }
    }
  });
}

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    if (s.layout == Layout::nhwc) return fwd(s, (const T*)x, (const T*)w, e, (T*)y);
    const Copies<T> copies(s);
    copies.gather_x((const T*)x);
    copies.gather_w((const T*)w);
    fwd<acc_t<T>>(copies.s, copies.x, copies.w, {copies.widened((const T*)e.bias)}, copies.y);
    copies.scatter(copies.y, s.N, s.OC, s.OH * s.OW, (T*)y, {e, y});
  });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    if (s.layout == Layout::nhwc) return bwd_input(s, (const T*)dy, (const T*)w, (T*)dx);
    const Copies<T> copies(s);
    copies.gather_y((const T*)dy);
    copies.gather_w((const T*)w);
    bwd_input<acc_t<T>>(copies.s, copies.y, copies.w, copies.x);
    copies.scatter(copies.x, s.N, s.IC, s.IH * s.IW, (T*)dx);
  });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    if (s.layout == Layout::nhwc) return bwd_weight(s, (const T*)dy, (const T*)x, (T*)dw);
    const Copies<T> copies(s);
    copies.gather_x((const T*)x);
    copies.gather_y((const T*)dy);
    bwd_weight<acc_t<T>>(copies.s, copies.y, copies.x, copies.w);
    copies.scatter(copies.w, s.OC, s.ic_per_group(), s.KH * s.KW, (T*)dw);
  });
}

}  // namespace direct_channels

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
  Layout layout;
  int64_t N, G, C, M;
  Grid h, w;
  const T* source;
  T* output;

  // Rows from `from` on of one group of an image, bordered; those of NCHW by way of `piece`.
  void take(const Border& border, int64_t n, int64_t g, int64_t from, A* piece, A* to) const {
    const int64_t plane = h.source * w.source;
    if (layout == Layout::nhwc) return border.copy(source + n * plane * G * C, h, w, G * C, g * C, from, to);
    const int64_t first = at_most(at_least(from, 0), h.source);
    const int64_t end = at_least(at_most(from + border.rows, h.source), first);
    gather_image(source + (n * G + g) * C * plane + first * w.source, plane, C, (end - first) * w.source, piece);
    border.copy(piece - first * w.source * C, h, w, C, 0, from, to);
  }

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
    // In NCHW a job's pieces of the image and of the output, (image, rows `high`, columns, M), are in its own hands.
    const bool nchw = layout == Layout::nchw;
    const int64_t x_size = images * border.rows * border.row, high = band * h.phases, whole = h.total * w.total;
    const int64_t taken = nchw ? border.rows * w.source * C : 0, made = nchw ? images * high * w.total * M : 0;
    parallel_for(jobs * G * bands, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
      A* x = static_cast<A*>(scratch(1, sizeof(A) * (x_size + taken + made)));
      A *piece = x + x_size, *y = piece + taken;
      for (int64_t item = begin; item < end; item++) {
        const int64_t n = item / (G * bands) * images, g = item / bands % G, oh = item % bands * band;
        const int64_t here = at_most(images, N - n);
        for (int64_t i = 0; i < here; i++) {
          take(border, n + i, g, oh * Reach(h).step + border.top, piece, x + i * border.rows * border.row);
        }
        for (int64_t p = 0; p < phases; p++) {
          for (int64_t block = 0; block < blocks; block++) {
            const int64_t at = g * blocks + block, m = block * wide;
            const auto to_rows = [&](auto* to, int64_t apart, int64_t height, const auto& end_of) {
              multiply(phase[p], spans + p * most, border, x, here, oh, at_most(band, phase[p].h.out - oh), NV,
                       packed + (p * G * blocks + at) * size, wide_bias + at * wide, at_most(M - m, wide), to, apart,
                       height, end_of);
            };
            if (nchw) {
              to_rows(y + m - oh * h.phases * w.total * M, M, high, Finish<A>());
            } else {
              to_rows(output + n * whole * G * M + g * M + m, G * M, h.total, finish);
            }
          }
        }
        for (int64_t i = 0; nchw && i < here; i++) {
          const int64_t first = oh * h.phases, rows = at_most(high, h.total - first);
          scatter_image(y + i * high * w.total * M, M, rows * w.total,
                        output + ((n + i) * G + g) * M * whole + first * w.total, whole, finish);
        }
      }
    });
  }

  // Output rows [oh, oh + rows) of some images of `height` rows, one phase and block of `count` channels, `to`: its first
  // in an image, pixels `apart`.
  template <class Out>
  void multiply(const Phase& a, const Span* spans, const Border& border, const A* x, int64_t images, int64_t oh,
                int64_t rows, int64_t NV, const A* packed, const A* bias, int64_t count, Out* to, int64_t apart,
                int64_t height, const Finish<Out>& finish) const {
    const int64_t P = NV == NV_MAX ? pixels(NV_MAX) : pixels(1), total = images * at_least(rows, 0) * a.w.out;
    const bool whole = sizeof(Out) == sizeof(A) && count == NV * L;
    A sums[8 * NV_MAX * L], *y[8];
    const A* from[8];
    Out* target[8];
    int64_t i = 0, r = 0, c = 0, at = 0, to_at = 0;
    const auto row_begins = [&] {
      at = (i * border.rows + r * a.h.step) * border.row;
      to_at = ((i * height + a.h.out0 + (oh + r) * a.h.out_step) * w.total + a.w.out0) * apart;
    };
    row_begins();
    for (int64_t first = 0; first < total; first += P) {
      const int64_t here = at_most(P, total - first);
      const bool direct = whole && here == P;  // else by way of `sums`
      Finish<A> in_place;
      if constexpr (sizeof(Out) == sizeof(A)) {
        if (direct) in_place = finish;
      }
      for (int64_t p = 0; p < P; p++) {
        from[p] = p < here ? x + at : x;
        target[p] = to + to_at;
        at += a.w.step * C, to_at += a.w.out_step * apart;
        if (++c == a.w.out) {
          c = 0;
          if (++r == rows) r = 0, i++;
          row_begins();
        }
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
  const Problem<T> p = {s.layout, s.N, s.G, C, M, height(s, false), width(s, false), x, y};
  p.run([&](int64_t g, int64_t oc, int64_t ic, int64_t kh, int64_t kw) { return w[W(g * M + oc, ic, kh, kw)]; },
        {e, y});
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  const int64_t C = s.oc_per_group(), M = s.ic_per_group();
  const Index4 W = s.w_index();
  const Problem<T> p = {s.layout, s.N, s.G, C, M, height(s, true), width(s, true), dy, dx};
  p.run([&](int64_t g, int64_t ic, int64_t oc, int64_t kh, int64_t kw) { return w[W(g * C + oc, ic, kh, kw)]; }, {});
}

#include "cpu/conv2d/direct_channels_weight.h"

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto t) { fwd(s, (const decltype(t)*)x, (const decltype(t)*)w, e, (decltype(t)*)y); });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_type(s.dtype, [&](auto t) { bwd_input(s, (const decltype(t)*)dy, (const decltype(t)*)w, (decltype(t)*)dx); });
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

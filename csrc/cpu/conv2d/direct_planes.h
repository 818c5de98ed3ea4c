// conv2d / direct on planes: vectors of pixels, one weight broadcast to all of them.
// Computes  y[m,f] = sum_t w[m,t] * x[off[t] + f]              f: a flat pixel, row * pitch + column
//           fwd         m = output channel, t = (ic, tap), x = the image, split into SH*SW phases by the stride
//           bwd_input   the same with m = input channel, t = (oc, tap), x = dy, once per phase of the stride
//           bwd_weight  dw[m,t] = sum_f dy[m,f] * x[off[t] + f]
//           Rows are stored with a gap of zeros between them, as wide as the padding that the taps reach into: one gap
//           serves the right border of its row and the left border of the next. A tap is then one constant offset,
//           and rows need no branch; what is computed in the gaps is thrown away, in bwd_weight multiplied by zero.
// Shapes    planes (C, SH, SW, rows, pitch);  w packed (T, KR);  flat output (phases, KR, rows, pitch)
// Tiling    thread: (image, group, band of rows); registers: KR channels x NV vectors of pixels, or KR x TR taps
// Cost      2*N*OC*OH*OW*(IC/G)*KH*KW flops / (OW / pitch);  loads per FMA 1/KR + 1/NV
// Limits    any shape; wasteful where many channels could fill the vectors; an infinite dy that meets a gap gives NaN in
//           dw.  Workspace: packed weights, a band a thread
// Source    Zhang, Franchetti, Low, High Performance Zero-Memory Overhead Direct Convolutions, arXiv:1809.10170

namespace direct_planes {
namespace {

#include "cpu/conv2d/planes.h"

// Rows per job: planes and flat output of a band stay within band_bytes, and there are jobs for several threads.
int64_t band_rows(const Grid& h, const Grid& w, int64_t in_planes, int64_t out_planes, int64_t images,
                  int64_t element) {
  const int64_t pitch = w.columns() + w.high - w.low, reach = h.high - h.low;
  const int64_t fit = (band_bytes / (element * pitch) - in_planes * reach) / (in_planes + out_planes);
  const int64_t share = divide_up(h.out(), at_least(8 / at_least(images, 1), 1));
  return at_most(at_least(at_most(fit, share), 4), h.out());
}

// Groups per job: enough for 24 KB of planes and output, so that neither the copy of one plane is waited for nor a
// cache line of channels_last is fetched again for every channel; and jobs for several threads.
int64_t groups_per_job(int64_t bytes, int64_t G, int64_t jobs) {
  const int64_t fit = at_most(at_least((24 << 10) / bytes, 1), 16);
  return at_most(at_most(fit, at_least(jobs / 8, 1)), G);
}

// Micro-kernel: y[k][v] = sum_t w[t][k] * x[off[t]][v]; registers only.
template <class A, int KR, int NV>
PYCONV_NOINLINE void tile(const A* x, const int64_t* off, int64_t T, const A* w, A* y, int64_t y_stride) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[KR][NV] = {};
  for (int64_t t = 0; t < T; t++, w += KR) {
    const A* at = x + off[t];
    vec<A> pixels[NV];
    _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) pixels[v] = load(at + v * L);
    _Pragma("GCC unroll 6") for (int k = 0; k < KR; k++) {
      _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) sum[k][v] += w[k] * pixels[v];
    }
  }
  _Pragma("GCC unroll 6") for (int k = 0; k < KR; k++) {
    _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) store(y + k * y_stride + v * L, sum[k][v]);
  }
}

// One output phase: its axes and its T = (channel, tap) terms.
struct Phase {
  Axis h, w;
  int64_t T;
};

// off[t] for t = (channel, tap): where position (0, 0) of the phase finds its pixel.
int64_t list_terms(const Grid& h, const Grid& w, const Planes& planes, const Axis& ah, const Axis& aw, int64_t C,
                   int64_t* off) {
  int64_t T = 0;
  for (int64_t c = 0; c < C; c++) {
    for (int64_t th = 0; th < ah.taps; th++) {
      for (int64_t tw = 0; tw < aw.taps; tw++) {
        off[T++] = planes.plane(h, w, c, h.source_phase(ah, th), w.source_phase(aw, tw)) + planes.left +
                   (h.q(ah, th) - h.low) * planes.pitch + w.q(aw, tw);
      }
    }
  }
  return T;
}

// y[k] over `pixels` of all its rows, gaps included.
template <class A>
PYCONV_NOINLINE void multiply_flat(const A* x, int64_t T, const int64_t* off, const A* weights, int64_t KR,
                                   int64_t pixels, A* y, int64_t line) {
  constexpr int64_t L = Vec<A>::size;
  const Cuts vectors(divide_up(pixels, L), widest(static_cast<int>(KR)));
  for (int64_t i = 0; i < vectors.pieces; i++) {
    const int64_t v = vectors.cut(i), NV = vectors.cut(i + 1) - v;
    with_tile(KR, NV, [&](auto kr, auto nv) {
      tile<A, decltype(kr)::value, decltype(nv)::value>(x + v * L, off, T, weights, y + v * L, line);
    });
  }
}

// C channels of source image -> M channels of output per group; weight(g, m, c, kh, kw) is an element of w.
template <class T>
struct Problem {
  using A = acc_t<T>;
  static constexpr int64_t L = Vec<A>::size;
  int64_t N, G, C, M;
  Grid h, w;
  const T* source;
  Index4 S;
  T* output;
  Index4 O;

  int64_t phases() const { return h.phases * w.phases; }
  int64_t most_terms() const { return C * h.kernel * w.kernel; }

  template <class Weight>
  void run(const Weight& weight, const Finish<T>& finish) const {
    const Cuts channels(M, KR_MAX);
    const int64_t KR_most = at_most(M, KR_MAX), per_channel = h.source_phases * w.source_phases;
    const bool last = O.w != 1;  // channels_last: all channels of a pixel are written together
    // Groups whose channels fill a cache line of channels_last share a job.
    const int64_t together = last ? at_most(divide_up(L, at_most(C, M)), G) : 1;
    const int64_t band = band_rows(h, w, together * C * per_channel, together * phases() * (last ? M : KR_most),
                                   divide_up(N * G, together), sizeof(A));
    const int64_t bands = divide_up(h.out(), band);
    const Planes planes(h, w, C, band, A());
    const int64_t line = round_up(band * planes.pitch, L) + 2 * L;  // one channel and phase of the output
    const int64_t GB =
        at_least(groups_per_job(sizeof(A) * (planes.count * planes.size + phases() * (last ? M : KR_most) * line), G,
                                N * G * bands),
                 together);
    const int64_t blocks = divide_up(G, GB), held = last ? GB * M : KR_most;  // channels of output waiting

    Phase* phase = static_cast<Phase*>(
        scratch(0, phases() * (sizeof(Phase) + most_terms() * (sizeof(int64_t) + G * M * sizeof(A)))));
    int64_t* off = reinterpret_cast<int64_t*>(phase + phases());
    A* packed = reinterpret_cast<A*>(off + phases() * most_terms());
    for (int64_t p = 0; p < phases(); p++) {
      phase[p].h = h.axis(p / w.phases);
      phase[p].w = w.axis(p % w.phases);
      phase[p].T = list_terms(h, w, planes, phase[p].h, phase[p].w, C, off + p * most_terms());
    }
    pack(phase, channels, weight, packed);

    const int64_t flops = 2 * GB * band * planes.pitch * most_terms() * M;
    parallel_for(N * blocks * bands, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
      A* x = static_cast<A*>(scratch(1, sizeof(A) * GB * planes.count * planes.size));
      A* y = static_cast<A*>(scratch(2, sizeof(A) * (phases() * held + L) * line));
      for (int64_t item = begin; item < end; item++) {
        const int64_t n = item / (blocks * bands), g0 = item / bands % blocks * GB, oh = item % bands * band;
        const int64_t rows = at_most(band, h.out() - oh), groups = at_most(GB, G - g0);
        planes.copy(h, w, source, S, n, g0 * C, groups * C, oh, x);
        for (int64_t g = g0; g < g0 + groups; g++) {
          const A* group = x + (g - g0) * planes.count * planes.size;
          for (int64_t block = 0; block < channels.pieces; block++) {
            const int64_t m = channels.cut(block), KR = channels.cut(block + 1) - m;
            for (int64_t p = 0; p < phases(); p++) {
              const Phase& a = phase[p];
              const int64_t here = at_most(rows, a.h.out - oh);
              if (here <= 0 || a.w.out == 0) continue;
              const A* weights = packed + ((p * G + g) * M + m) * most_terms();
              A* to = y + (p * held + (last ? (g - g0) * M + m : 0)) * line;
              const int64_t pixels = (here - 1) * planes.pitch + a.w.out;
              multiply_flat(group, a.T, off + p * most_terms(), weights, KR, pixels, to, line);
            }
            if (!last) {
              unpack(y, held, line, planes.pitch, KR, finish.bias ? finish.bias + g * M + m : nullptr, h, w, oh, rows,
                     O, output + O(n, g * M + m, 0, 0), finish);
            }
          }
        }
        if (last) {
          unpack(y, held, line, planes.pitch, groups * M, finish.bias ? finish.bias + g0 * M : nullptr, h, w, oh, rows,
                 O, output + O(n, g0 * M, 0, 0), finish);
        }
      }
    });
  }

  // packed (phase, group, block of channels, T, KR)
  template <class Weight>
  void pack(const Phase* phase, const Cuts& channels, const Weight& weight, A* packed) const {
    const int64_t items = phases() * G, size = M * most_terms();
    parallel_for(items, divide_up(serial_flops, size), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; item++) {
        const Axis &ah = phase[item / G].h, &aw = phase[item / G].w;
        for (int64_t block = 0; block < channels.pieces; block++) {
          const int64_t m = channels.cut(block), KR = channels.cut(block + 1) - m;
          A* to = packed + item * size + m * most_terms();
          for (int64_t c = 0; c < C; c++) {
            for (int64_t th = 0; th < ah.taps; th++) {
              for (int64_t tw = 0; tw < aw.taps; tw++) {
                for (int64_t k = 0; k < KR; k++) {
                  *to++ = widen(weight(item % G, m + k, c, ah.tap0 + th * ah.tap_step, aw.tap0 + tw * aw.tap_step));
                }
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
  const Problem<T> p = {s.N, s.G, C, M, height(s, false), width(s, false), x, s.x_index(), y, s.y_index()};
  p.run([&](int64_t g, int64_t oc, int64_t ic, int64_t kh, int64_t kw) { return w[W(g * M + oc, ic, kh, kw)]; },
        {e, y});
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  const int64_t C = s.oc_per_group(), M = s.ic_per_group();
  const Index4 W = s.w_index();
  const Problem<T> p = {s.N, s.G, C, M, height(s, true), width(s, true), dy, s.y_index(), dx, s.x_index()};
  p.run([&](int64_t g, int64_t ic, int64_t oc, int64_t kh, int64_t kw) { return w[W(g * C + oc, ic, kh, kw)]; }, {});
}

// All taps of one group: sums (M, terms, L) += dy x, one band.
template <class A>
PYCONV_NOINLINE void multiply_weight(const Gradient& dy, const A* py, const A* px, const int64_t* off, int64_t M,
                                     int64_t terms, A* sum) {
  constexpr int64_t L = Vec<A>::size;
  const Lines& lines = dy.lines;
  const Cuts channels(M, KR_MAX), blocks(lines.rows, at_least(block_vectors / lines.vectors, 1));
  for (int64_t i = 0; i < blocks.pieces; i++) {
    const int64_t r = blocks.cut(i);
    const Lines part = {blocks.cut(i + 1) - r, lines.vectors, lines.dy, lines.x};
    for (int64_t block = 0; block < channels.pieces; block++) {
      const int64_t m = channels.cut(block), KR = channels.cut(block + 1) - m;
      const Cuts taps(terms, widest(static_cast<int>(KR)));
      for (int64_t j = 0; j < taps.pieces; j++) {
        const int64_t t = taps.cut(j), TR = taps.cut(j + 1) - t;
        with_tile(KR, TR, [&](auto kr, auto tr) {
          weight_tile<A, decltype(kr)::value, decltype(tr)::value>(part, py + m * dy.size + r * lines.dy, dy.size,
                                                                   px + r * lines.x, off + t, sum + (m * terms + t) * L,
                                                                   terms);
        });
      }
    }
  }
}

// Bands of images are dealt into chunks, each with sums of its own, lane by lane; lanes and chunks are added in their
// order at the end: parallel, and the same bits for any number of threads.
template <class T>
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const int64_t C = s.ic_per_group(), M = s.oc_per_group(), terms = C * s.KH * s.KW, size = M * terms;
  const Grid h = height(s, false), w = width(s, false);
  const Index4 X = s.x_index(), Y = s.y_index(), W = s.w_index();
  const int64_t together = X.w == 1 ? 1 : at_most(divide_up(L, at_most(C, M)), s.G);  // as in run()
  const int64_t band =
      band_rows(h, w, together * C * s.SH * s.SW, together * M, divide_up(s.N * s.G, together), sizeof(A));
  const int64_t bands = divide_up(s.OH, band);
  const Planes planes(h, w, C, band, A());
  const Gradient grad(planes, band, s.OW, 0, A());

  const int64_t chunks = at_most(s.N * bands, divide_up(16, s.G)), units = divide_up(s.N * bands, at_least(chunks, 1));
  const int64_t GB = at_least(
      groups_per_job(sizeof(A) * (planes.count * planes.size + M * grad.size + size * L), s.G, chunks * s.G), together);
  const int64_t blocks = divide_up(s.G, GB);
  int64_t* off =
      static_cast<int64_t*>(scratch(0, sizeof(int64_t) * terms + sizeof(A) * at_least(chunks, 1) * s.G * size));
  A* sums = reinterpret_cast<A*>(off + terms);
  list_terms(h, w, planes, h.axis(0), w.axis(0), C, off);

  const int64_t flops = 2 * GB * units * band * planes.pitch * size;
  parallel_for(chunks * blocks, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    A* px = static_cast<A*>(scratch(1, sizeof(A) * GB * planes.count * planes.size));
    A* py = static_cast<A*>(scratch(2, sizeof(A) * GB * M * grad.size));
    A* sum = static_cast<A*>(scratch(3, sizeof(A) * GB * size * L));
    for (int64_t item = begin; item < end; item++) {
      const int64_t chunk = item / blocks, g0 = item % blocks * GB, groups = at_most(GB, s.G - g0);
      clear(sum, groups * size * L);
      for (int64_t unit = chunk * units; unit < at_most((chunk + 1) * units, s.N * bands); unit++) {
        const int64_t n = unit / bands, oh = unit % bands * band, rows = at_most(band, s.OH - oh);
        planes.copy(h, w, x, X, n, g0 * C, groups * C, oh, px);
        grad.copy(dy + Y(n, g0 * M, oh, 0), Y, groups * M, rows, s.OW, py);
        for (int64_t g = 0; g < groups; g++) {
          const A *gy = py + g * M * grad.size, *gx = px + g * planes.count * planes.size;
          multiply_weight(grad, gy, gx, off, M, terms, sum + g * size * L);
        }
      }
      for (int64_t i = 0; i < groups * size; i++) {
        sums[(chunk * s.G + g0) * size + i] = sum_lanes<A>(load(sum + i * L));
      }
    }
  });

  parallel_for(s.OC, divide_up(serial_flops, at_least(10 * terms * chunks, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t oc = begin; oc < end; oc++) {
      for (int64_t t = 0; t < terms; t++) {
        A total = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) total += sums[(chunk * s.OC + oc) * terms + t];
        const int64_t tap = t % (s.KH * s.KW);
        pyconv::store(dw + W(oc, t / (s.KH * s.KW), tap / s.KW, tap % s.KW), total);
      }
    }
  });
}

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto t) { fwd(s, (const decltype(t)*)x, (const decltype(t)*)w, e, (decltype(t)*)y); });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_type(s.dtype, [&](auto t) { bwd_input(s, (const decltype(t)*)dy, (const decltype(t)*)w, (decltype(t)*)dx); });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_type(s.dtype, [&](auto t) { bwd_weight(s, (const decltype(t)*)dy, (const decltype(t)*)x, (decltype(t)*)dw); });
}

}  // namespace direct_planes

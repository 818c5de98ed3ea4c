// conv2d / depthwise on channels: vectors of channels, each with weights of its own.
// Computes  y[o,c] = b[c] + sum_t w[t,c] * x[at(o) + off[t],c]          o: an output pixel, t: a tap
//           bwd_input   the same from dy, once per phase of the stride, with the taps that the phase meets
//           bwd_weight  dw[t,c] = sum_o dy[o,c] * x[at(o) + off[t],c]
// Shapes    channels_last images as they lie in memory, or a widened copy of a band if a vector is wider than they are; NCHW
//           planes transposed, L at a time, and the output back; w (vector, T, L).
//           The last vector of channels starts early: it overlaps its neighbour
// Tiling    thread: (image, band of rows, block of channels); registers: P pixels of a row. A pixel is loaded once for up
//           to 3 taps of a row; a bit says whether it lies in the image, so that no border is stored
// Cost      2*N*C*OH*OW*KH*KW flops;  loads per FMA 1/3 + 1/P at stride 1, 2/3 + 1/P at stride 2, 1 + 1/P beyond
//           workspace: packed weights, or sums of taps per chunk of the batch
// Limits    one input and one output channel per group; planes beyond 128x128 leave L2 while they are transposed
// Source    Zhang, Lo, Lu, High Performance Depthwise and Pointwise Convolutions on Mobile Devices, arXiv:2001.02504

namespace depthwise_channels {
namespace {

constexpr int P = PYCONV_BYTES == 64 ? 14 : 8;  // pixels of a tile; + 3 weights and a pixel, of 32 or 16 registers
constexpr int PW = 7;                           // of a weight gradient; + 3 sums and a pixel
constexpr int64_t serial_flops = 100000;

#include "cpu/conv2d/depthwise_channels_image.h"
#include "cpu/conv2d/depthwise_windows.h"

template <class X, class A, int S, int K>
PYCONV_INLINE void multiply(const Run& run, const X* x, const A* w, vec<A> (&sum)[P]) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> weight[K];
  _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) weight[k] = keep(load(w + k * L));
  const X* at = x + run.at;
  _Pragma("GCC unroll 30") for (int j = 0; j < (P - 1) * S + K; j++, at += run.apart) {
    if (!(run.inside >> j & 1)) continue;
    const vec<A> pixel = keep(load_wide(at));
    _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) {
      if (j >= k && (j - k) % S == 0 && (j - k) / S < P) sum[(j - k) / S] += pixel * weight[k];
    }
  }
}

// Micro-kernel: y[p] = bias + sum over the taps of a tile, for one vector of channels.
template <class X, class A, int S>
PYCONV_NOINLINE void pixel_tile(const Tile& tile, const X* x, const A* w, const A* bias, X* y,
                                const Finish<X>& finish) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[P];
  _Pragma("GCC unroll 14") for (int p = 0; p < P; p++) sum[p] = load(bias);
  for (int64_t r = 0; r < tile.rows; r++, x += tile.row) {
    for (const Run* run = tile.run; run < tile.run + tile.runs; w += run->taps * L, run++) {
      if (run->taps == 3) {
        multiply<X, A, S, 3>(*run, x, w, sum);
      } else {
        multiply<X, A, 1, 1>(*run, x, w, sum);
      }
    }
  }
  _Pragma("GCC unroll 14") for (int p = 0; p < P; p++) {
    if (p < tile.count) finish.store(y + p * tile.to_step, sum[p]);
  }
}

// w (C, KH, KW) of the taps in their order: packed (vector, T, L).
template <class T, class A>
void pack(const T* w, const Vectors<A>& vectors, int64_t KW, const Axis& ah, const Axis& aw, int64_t apart, A* packed) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t v = 0; v < vectors.count; v++) {
    A* to = packed + v * apart;
    for (int64_t i = 0; i < ah.taps; i++) {
      for (int64_t j = 0; j < aw.taps; j++, to += L) {
        const int64_t th = ah.offset_step < 0 ? ah.taps - 1 - i : i, tw = aw.offset_step < 0 ? aw.taps - 1 - j : j;
        const T* tap =
            w + vectors.first(v) * (apart / L) + (ah.tap0 + th * ah.tap_step) * KW + aw.tap0 + tw * aw.tap_step;
        for (int64_t l = 0; l < L; l++) to[l] = l < vectors.lanes ? widen(tap[l * (apart / L)]) : 0;
      }
    }
  }
}

// One tile of row o of output of one phase, vectors [v0, v0 + here). `to`: the first pixel of the row; `to_row`: from it to
// the phase's next. `ahead`: what the next row reads and writes is fetched meanwhile.
template <class X, class T, class A>
PYCONV_NOINLINE void multiply_tile(const View<X>& x, const Vectors<A>& vectors, const Line& h, const Line& w,
                                   const Tiles& tiles, int64_t i, int64_t o, int64_t v0, int64_t here, const A* packed,
                                   int64_t apart, const A* bias, T* to, int64_t to_row, const Finish<T>& finish,
                                   bool ahead) {
  constexpr int64_t L = Vec<A>::size;
  const bool copied = vectors.copied;
  const int64_t to_step = w.out_step * vectors.C;
  int64_t first, last;
  h.inside(o, first, last);
  const Tile tile(tiles, i, last - first, h.apart * x.row, copied ? L : to_step);
  const X* from = x.at + (o * h.step + h.low + first * h.apart - x.top) * x.row;
  const auto multiply = [&](const X* at, int64_t v, X* y, const Finish<X>& end) {
    const A* weights = packed + v * apart + first * w.taps * L;
    if (w.step == 2) {
      pixel_tile<X, A, 2>(tile, at, weights, bias + v * L, y, end);
    } else {
      pixel_tile<X, A, 1>(tile, at, weights, bias + v * L, y, end);
    }
  };
  for (int64_t v = v0; v < v0 + here; v++) {
    T* pixels = to + tiles.first[i] * to_step + vectors.first(v);
    if constexpr (std::is_same<X, T>::value) {
      if (!copied) {
        const X* at = from + vectors.first(v);
        if (ahead) {
          prefetch(at + tile.rows * tile.row + tiles.first[i] * w.step * x.column, h.step, x.row, tile.count * w.step,
                   x.column);
          for (int64_t p = 0; p < tile.count; p++) __builtin_prefetch(pixels + to_row + p * to_step, 1);
        }
        multiply(at, v, pixels, finish);
      }
    }
    if constexpr (std::is_same<X, A>::value) {
      if (copied) {
        A sums[P * L];
        multiply(from + (v - v0) * L, v, sums, Finish<A>());
        for (int64_t p = 0; p < tile.count; p++) {
          finish.store_first(pixels + p * to_step, load(sums + p * L), vectors.lanes);
        }
      }
    }
  }
}

// The phases of a problem, the tiles of their rows, and their weights.
template <class A>
struct Phases {
  Grid h, w;
  Windows windows;      // which take the place of phases and their tiles
  int64_t taps, apart;  // of all phases; from one vector's weights to the next's
  Line* down;           // (h.phases)
  Line* across;         // (w.phases)
  char* tiles;          // (w.phases)
  A* bias;              // (vector, L)
  A* packed;            // (phase, vector, T, L)

  Phases(const Windows& windows, int64_t vectors)
      : h(windows.h), w(windows.w), windows(windows), taps(h.kernel * w.kernel), apart(taps * Vec<A>::size) {
    constexpr int64_t L = Vec<A>::size;
    const int64_t weights = h.phases * w.phases * vectors * apart;
    const int64_t lists = (h.phases + w.phases) * sizeof(Line) + w.phases * tiles_bytes();
    bias = static_cast<A*>(scratch(0, sizeof(A) * (vectors * L + weights) + at_least(lists, windows.bytes())));
    packed = bias + vectors * L;
    down = reinterpret_cast<Line*>(packed + weights);
    across = down + h.phases;
    tiles = reinterpret_cast<char*>(across + w.phases);
  }
  int64_t tiles_bytes() const { return Tiles::bytes(w.out(), w.kernel, P); }
  Tiles tiles_of(int64_t q) const { return Tiles(across[q], P, tiles + q * tiles_bytes()); }

  // Lists everything; `column`: from one pixel of a view to the next.
  template <class T>
  void fill(const Vectors<A>& vectors, const T* weights, const T* b, int64_t column) {
    constexpr int64_t L = Vec<A>::size;
    for (int64_t v = 0; v < vectors.count; v++) {
      store(bias + v * L, b ? load_wide_first(b + vectors.first(v), vectors.lanes) : vec<A>{});
    }
    if (windows.S != 0) {
      const auto axis = [&](const Grid& g) { return windows.S > 0 ? g.axis(0) : forward_axis(0, 3, 2, 0, 1, 0); };
      windows.list(down);
      return pack(weights, vectors, w.kernel, axis(h), axis(w), apart, packed);
    }
    for (int64_t p = 0; p < h.phases; p++) down[p] = Line(h.axis(p));
    for (int64_t q = 0; q < w.phases; q++) {
      across[q] = Line(w.axis(q));
      tiles_of(q).list(across[q], P, 2, true, column);
      for (int64_t p = 0; p < h.phases; p++) {
        pack(weights, vectors, w.kernel, h.axis(p), w.axis(q), apart,
             packed + (p * w.phases + q) * vectors.count * apart);
      }
    }
  }

  // Rows [oh, oh + rows) of every phase, vectors [v0, v0 + here) of channels. `to`: pixel (0, 0) of the output.
  template <class X, class T>
  void multiply(const View<X>& x, const Vectors<A>& vectors, int64_t all, int64_t oh, int64_t rows, int64_t v0,
                int64_t here, const A* weights, const A* b, T* to, const Finish<T>& finish, bool ahead) const {
    if constexpr (std::is_same<X, T>::value) {
      if (windows.S != 0) return windows.multiply(x, vectors, oh, oh + rows, v0, here, weights, b, to, finish, ahead);
    }
    for (int64_t o = oh; o < oh + rows; o++) {
      for (int64_t p = 0; p < h.phases; p++) {
        if (o >= down[p].out) continue;
        const int64_t row = (down[p].out0 + o * down[p].out_step) * w.total;
        for (int64_t i = 0; i < divide_up(w.out(), P); i++) {
          for (int64_t q = 0; q < w.phases; q++) {
            const Tiles row_tiles = tiles_of(q);
            if (i >= row_tiles.n) continue;
            multiply_tile(x, vectors, down[p], across[q], row_tiles, i, o, v0, here,
                          weights + (p * w.phases + q) * all * apart, apart, b, to + (row + across[q].out0) * vectors.C,
                          down[p].out_step * w.total * vectors.C, finish, ahead);
          }
        }
      }
    }
  }
};

template <class T>
void run(const Conv2dShape& s, bool gradient, const T* source, const T* weights, const Finish<T>& finish, T* output) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Vectors<A> vectors(s.IC, s.layout == Layout::nchw, is_copied(s));
  const Windows windows(s, gradient, !vectors.copied || vectors.planes);
  Phases<A> phases(windows, vectors.count);
  const Grid &h = phases.h, &w = phases.w;
  const Reach down(h);
  const bool copied = vectors.copied, ahead = s.bytes() >= prefetch_bytes;
  const Jobs jobs = windows.S != 0 ? Jobs(s.N, windows.down, windows.rows, vectors)
                                   : Jobs(s, h, down, vectors, w.source * L * sizeof(A));
  const int64_t blocks = jobs.blocks.pieces, C = s.IC, out_pixels = h.total * w.total;
  phases.fill(vectors, weights, finish.bias, copied ? jobs.held * L : C);

  const int64_t flops = 2 * at_most(jobs.band, h.out()) * w.out() * phases.taps * jobs.held * L;
  parallel_for(s.N * jobs.bands * blocks, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    const int64_t pixels = down.extent(jobs.band) * w.source + L;
    A* copy = static_cast<A*>(scratch(1, copied ? sizeof(A) * pixels * jobs.held * L : 0));
    A* result = static_cast<A*>(scratch(2, vectors.planes ? sizeof(A) * (out_pixels + L) * L : 0));
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / (jobs.bands * blocks), oh = item / blocks % jobs.bands * jobs.band,
                    block = item % blocks;
      const int64_t v0 = jobs.blocks.cut(block), here = jobs.blocks.cut(block + 1) - v0;
      const T* image = source + n * h.source * w.source * C;
      T* to = output + n * out_pixels * C;
      if (!copied) {
        phases.multiply(View<T>{image, w.source * C, C, 0}, vectors, vectors.count, oh, jobs.band, v0, here,
                        phases.packed, phases.bias, to, finish, ahead);
        continue;
      }
      const View<A> x = copy_of(image, vectors, h.source, w.source, v0, here, jobs.held, down.top(oh),
                                down.bottom(oh, jobs.band), copy);
      if (vectors.planes) {
        phases.multiply(x, Vectors<A>(L, false, false), vectors.count, oh, jobs.band, 0, 1,
                        phases.packed + v0 * phases.apart, phases.bias + v0 * L, result, Finish<A>(), false);
        scatter_planes(result, out_pixels, vectors.shared(v0), vectors.lanes, out_pixels,
                       to + vectors.first(v0) * out_pixels, finish);
      } else {
        phases.multiply(x, vectors, vectors.count, oh, jobs.band, v0, here, phases.packed, phases.bias, to, finish,
                        false);
      }
    }
  });
}

template <class T>
void fwd(const Conv2dShape& s, const T* x, const T* w, const Epilogue& e, T* y) {
  run<T>(s, false, x, w, {e, y}, y);
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  run<T>(s, true, dy, w, {}, dx);
}

#include "cpu/conv2d/depthwise_channels_weight.h"

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_storage(s.dtype, [&](auto t) {
    using T = decltype(t);
    fwd(s, (const T*)x, (const T*)w, e, (T*)y);
  });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_storage(s.dtype, [&](auto t) {
    using T = decltype(t);
    bwd_input(s, (const T*)dy, (const T*)w, (T*)dx);
  });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_storage(s.dtype, [&](auto t) {
    using T = decltype(t);
    bwd_weight(s, (const T*)dy, (const T*)x, (T*)dw);
  });
}

}  // namespace depthwise_channels

// conv2d / depthwise, channels_last: vectors of channels, each with weights of its own.
// Computes  y[p,c] = b[c] + sum_t x[at(p) + off[t],c] * w[t,c]          p: an output pixel, t: a tap
//           bwd_input   the same from dy, once per phase of the stride, with the taps that the phase meets
//           bwd_weight  dw[t,c] = sum_p dy[p,c] * x[at(p) + off[t],c]
// Shapes    pieces of an image as (block, rows, columns, L), bordered by zeros, widened; w (block, T, L)
// Tiling    thread: (image, band of rows, blocks of channels); registers: PR pixels of a row, or TR taps
// Cost      2*N*C*OH*OW*KH*KW flops;  loads per FMA 1 + 1/PR, all of whole cache lines
//           workspace: packed weights, and per thread a band of x (and of dy)
// Limits    channels_last, one input and one output channel per group
// Source    Zhang, Lo, Lu, High Performance Depthwise and Pointwise Convolutions on Mobile Devices, arXiv:2001.02504

namespace depthwise_channels_last {
namespace {

#include "cpu/conv2d/finish.h"

constexpr int PR = 8;                      // pixels: as many chains of FMAs as hide their latency
constexpr int TR = 12;                     // taps of a weight gradient; + 1 vector of dy, of 16 or 32 registers
constexpr int64_t block_most = 4;          // vectors of channels copied together: 256 bytes of every pixel
constexpr int64_t band_bytes = 128 << 10;  // of the pieces of a job
constexpr int64_t serial_flops = 100000;

template <int n>
struct Int {
  static constexpr int value = n;
};
// Calls body with the compile-time value of n in [1, most].
template <int most, class Body>
PYCONV_INLINE void with_int(int64_t n, const Body& body) {
  if constexpr (most > 1) {
    if (n < most) return with_int<most - 1>(n, body);
  }
  body(Int<most>());
}

// [0, n) cut into the fewest pieces of at most `most`, as even as can be: piece i is [cut(i), cut(i + 1)).
struct Cuts {
  int64_t n, pieces;
  Cuts(int64_t n, int64_t most) : n(n), pieces(divide_up(n, most)) {}
  int64_t cut(int64_t i) const { return n * i / pieces; }
};

// Micro-kernel: y[p] = bias + sum_t x[p * step + off[t]] * w[t] for P neighbouring pixels of one block.
template <class A, int P>
PYCONV_NOINLINE void pixel_tile(const A* x, int64_t step, const int64_t* off, int64_t taps, const A* w, const A* bias,
                                A* y, int64_t y_step, Finish<A> finish) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[P];
  _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) sum[p] = vec<A>{};
  for (int64_t t = 0; t < taps; t++) {
    const vec<A> weight = keep(load(w + t * L));
    const A* at = x + off[t];
    _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) sum[p] += load(at + p * step) * weight;
  }
  _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) finish.store(y + p * y_step, sum[p] + load(bias));
}

// Micro-kernel of the weight gradient: sum[t] += dy[p] * x[p * step + off[t]] over `rows` of `columns`.
template <class A, int T>
PYCONV_NOINLINE void tap_tile(const A* dy, int64_t dy_row, const A* x, int64_t x_row, int64_t step, int64_t rows,
                              int64_t columns, const int64_t* off, A* sums) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[T];
  int64_t at[T];
  _Pragma("GCC unroll 12") for (int t = 0; t < T; t++) sum[t] = load(sums + t * L), at[t] = off[t];
  for (int64_t r = 0; r < rows; r++) {
    const A* pixel = x + r * x_row;
    for (int64_t p = 0; p < columns; p++, pixel += step) {
      const vec<A> g = keep(load(dy + r * dy_row + p * L));
      _Pragma("GCC unroll 12") for (int t = 0; t < T; t++) sum[t] += g * load(pixel + at[t]);
    }
  }
  _Pragma("GCC unroll 12") for (int t = 0; t < T; t++) store(sums + t * L, sum[t]);
}

// Vectors [c0, c0 + blocks) of channels of image rows [row, row + rows) and columns [column, column + columns), zeros
// outside the image and beyond the last channel: to (blocks, rows, columns, L).
template <class T, class A>
void copy_piece(const T* image, int64_t H, int64_t W, int64_t C, int64_t c0, int64_t blocks, int64_t row, int64_t rows,
                int64_t column, int64_t columns, A* to) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t apart = rows * columns * L, whole = at_most(blocks, C / L - c0), left = C - (c0 + whole) * L;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t k = 0; k < columns; k++, to += L) {
      const int64_t h = row + r, w = column + k;
      if (h < 0 || h >= H || w < 0 || w >= W) {
        for (int64_t b = 0; b < blocks; b++) store(to + b * apart, vec<A>{});
        continue;
      }
      const T* from = image + (h * W + w) * C + c0 * L;
      for (int64_t b = 0; b < whole; b++) store(to + b * apart, load_wide(from + b * L));
      if (whole < blocks) store(to + whole * apart, load_wide_first(from + whole * L, left));
    }
  }
}

// A row of output pixels of one block; the sums of `columns` pixels.
template <class A>
PYCONV_NOINLINE void pixel_row(const A* x, int64_t step, int64_t columns, const int64_t* off, int64_t taps, const A* w,
                               const A* bias, A* y, int64_t y_step, const Finish<A>& finish) {
  const Cuts tiles(columns, PR);
  for (int64_t i = 0; i < tiles.pieces; i++) {
    const int64_t ow = tiles.cut(i);
    with_int<PR>(tiles.cut(i + 1) - ow, [&](auto pixels) {
      pixel_tile<A, decltype(pixels)::value>(x + ow * step, step, off, taps, w, bias, y + ow * y_step, y_step, finish);
    });
  }
}

// What the rows and columns of a band of output meet: [low, low + extent(n)) for n positions of the longest phase.
struct Reach {
  int64_t step, low, high;
  explicit Reach(const Grid& g) : step(g.source_phases), low(g.low), high(g.high) {
    if (g.gradient) return;
    low = g.axis(0).lowest(), high = low + g.axis(0).reach();
  }
  int64_t extent(int64_t n) const { return (n - 1) * step + high - low + 1; }
};

// Output rows per job, so that the pieces of all its blocks stay in L2 and there are jobs for several threads.
int64_t band_rows(const Grid& h, const Reach& rows, int64_t row_bytes, int64_t jobs) {
  const int64_t fit = (band_bytes / row_bytes - (rows.high - rows.low)) / rows.step;
  const int64_t share = divide_up(h.out(), at_least(8 / at_least(jobs, 1), 1));
  return at_most(at_least(at_most(fit, share), 4), h.out());
}

// w (C, KH, KW) of the taps in their order: packed (block, T, L).
template <class T, class A>
void pack(const T* w, int64_t C, int64_t KW, const Axis& ah, const Axis& aw, int64_t apart, A* packed) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t c = 0; c < round_up(C, L); c++) {
    A* to = packed + c / L * apart + c % L;
    for (int64_t th = 0; th < ah.taps; th++) {
      for (int64_t tw = 0; tw < aw.taps; tw++, to += L) {
        const int64_t tap = (ah.tap0 + th * ah.tap_step) * KW + aw.tap0 + tw * aw.tap_step;
        *to = c < C ? widen(w[c * apart / L + tap]) : 0;
      }
    }
  }
}

template <class T>
void run(const Conv2dShape& s, bool gradient, const T* source, const T* weights, const Finish<T>& finish, T* output) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Grid h = height(s, gradient), w = width(s, gradient);
  const Reach down(h), across(w);
  const int64_t C = s.IC, vectors = divide_up(C, L), taps = s.KH * s.KW, phases = h.phases * w.phases;
  const int64_t columns = across.extent(w.out());
  const int64_t BV = at_most(vectors, block_most), blocks = divide_up(vectors, BV);
  const int64_t band = band_rows(h, down, columns * BV * L * sizeof(A), s.N * blocks), bands = divide_up(h.out(), band);
  const int64_t rows_most = down.extent(band), piece = rows_most * columns * L;

  A* packed = static_cast<A*>(scratch(0, phases * taps * (sizeof(A) * vectors * L + sizeof(int64_t))));
  int64_t* off = reinterpret_cast<int64_t*>(packed + phases * taps * vectors * L);
  for (int64_t p = 0; p < phases; p++) {
    const Axis ah = h.axis(p / w.phases), aw = w.axis(p % w.phases);
    pack(weights, C, s.KW, ah, aw, taps * L, packed + p * taps * vectors * L);
    int64_t* to = off + p * taps;
    for (int64_t th = 0; th < ah.taps; th++) {
      for (int64_t tw = 0; tw < aw.taps; tw++) {
        *to++ = ((ah.offset(th) - down.low) * columns + aw.offset(tw) - across.low) * L;
      }
    }
  }

  Finish<A> in_place;  // of rows that are written where they belong
  if constexpr (sizeof(T) == sizeof(A)) in_place = finish;

  const int64_t flops = 2 * band * w.total * h.phases * taps * BV * L / phases;
  parallel_for(s.N * bands * blocks, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    A* x = static_cast<A*>(scratch(1, sizeof(A) * (BV * piece + w.out() * L)));
    A* sums = x + BV * piece;  // of one row
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / (bands * blocks), oh = item / blocks % bands * band, v0 = item % blocks * BV;
      const int64_t here = at_most(BV, vectors - v0), rows = down.extent(at_most(band, h.out() - oh));
      copy_piece(source + n * h.source * w.source * C, h.source, w.source, C, v0, here, oh * down.step + down.low, rows,
                 across.low, columns, x);
      for (int64_t v = v0; v < v0 + here; v++) {
        const int64_t count = at_most(L, C - v * L);
        A wide[L];
        store(wide, finish.bias ? load_wide_first(finish.bias + v * L, count) : vec<A>{});
        for (int64_t p = 0; p < phases; p++) {
          const Axis ah = h.axis(p / w.phases), aw = w.axis(p % w.phases);
          const A* wp = packed + (p * vectors + v) * taps * L;
          const bool direct = sizeof(T) == sizeof(A) && count == L;  // else through a line of sums
          const int64_t to_step = aw.out_step * C;
          for (int64_t r = 0; r < at_most(band, ah.out - oh); r++) {
            const A* line = x + ((v - v0) * rows + r * down.step) * columns * L;
            T* to = output + ((n * h.total + ah.out0 + (oh + r) * ah.out_step) * w.total + aw.out0) * C + v * L;
            // Tap rows that meet nothing but padding are left out; those of a phase go up or down the image.
            int64_t first = 0, last = ah.taps;
            const int64_t top = (oh + r) * down.step;
            const auto outside = [&](int64_t th) { return top + ah.offset(th) < 0 || top + ah.offset(th) >= h.source; };
            while (first < last && outside(first)) first++;
            while (first < last && outside(last - 1)) last--;
            pixel_row<A>(line, across.step * L, aw.out, off + p * taps + first * aw.taps, (last - first) * aw.taps,
                         wp + first * aw.taps * L, wide, direct ? reinterpret_cast<A*>(to) : sums, direct ? to_step : L,
                         direct ? in_place : Finish<A>());
            if (direct) continue;
            for (int64_t i = 0; i < aw.out; i++) {
              if (count == L) {
                finish.store(to + i * to_step, load(sums + i * L));
              } else {
                finish.store_first(to + i * to_step, load(sums + i * L), count);
              }
            }
          }
        }
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

// Bands of images are dealt into chunks, each with sums of its own, added at the end in their order: parallel, and the
// same bits for any number of threads.
template <class T>
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Grid h = height(s, false), w = width(s, false);
  const Reach down(h), across(w);
  const int64_t C = s.IC, vectors = divide_up(C, L), taps = s.KH * s.KW, columns = across.extent(s.OW);
  const int64_t BV = at_most(vectors, block_most), blocks = divide_up(vectors, BV);
  const int64_t row_bytes = (columns * down.step + s.OW) * BV * L * sizeof(A);
  const int64_t band = band_rows(h, down, row_bytes, s.N * blocks), bands = divide_up(s.OH, band);
  const int64_t piece = down.extent(band) * columns * L, lines = band * s.OW * L;
  const int64_t units = s.N * bands, chunks = at_least(at_most(units, divide_up(16, blocks)), 1);
  const int64_t share = divide_up(units, chunks), sum_size = taps * L;

  int64_t* off = static_cast<int64_t*>(scratch(0, sizeof(int64_t) * taps + sizeof(A) * chunks * vectors * sum_size));
  A* sums = reinterpret_cast<A*>(off + taps);  // (chunk, vector, tap, L)
  for (int64_t t = 0; t < taps; t++) off[t] = (t / s.KW * s.DH * columns + t % s.KW * s.DW) * L;

  const int64_t flops = 2 * share * band * s.OW * taps * BV * L;
  parallel_for(chunks * blocks, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    A* px = static_cast<A*>(scratch(1, sizeof(A) * BV * piece));
    A* py = static_cast<A*>(scratch(2, sizeof(A) * BV * lines));
    for (int64_t item = begin; item < end; item++) {
      const int64_t chunk = item / blocks, v0 = item % blocks * BV, here = at_most(BV, vectors - v0);
      A* sum = sums + (chunk * vectors + v0) * sum_size;
      for (int64_t i = 0; i < here * sum_size; i += L) store(sum + i, vec<A>{});
      for (int64_t unit = chunk * share; unit < at_most((chunk + 1) * share, units); unit++) {
        const int64_t n = unit / bands, oh = unit % bands * band, rows = at_most(band, s.OH - oh);
        copy_piece(x + n * s.IH * s.IW * C, s.IH, s.IW, C, v0, here, oh * down.step + down.low, down.extent(rows),
                   across.low, columns, px);
        copy_piece(dy + n * s.OH * s.OW * C, s.OH, s.OW, C, v0, here, oh, rows, 0, s.OW, py);
        const Cuts tiles(taps, TR);
        for (int64_t v = 0; v < here; v++) {
          for (int64_t i = 0; i < tiles.pieces; i++) {
            const int64_t t = tiles.cut(i);
            with_int<TR>(tiles.cut(i + 1) - t, [&](auto n_taps) {
              tap_tile<A, decltype(n_taps)::value>(py + v * rows * s.OW * L, s.OW * L,
                                                   px + v * down.extent(rows) * columns * L, down.step * columns * L,
                                                   across.step * L, rows, s.OW, off + t, sum + v * sum_size + t * L);
            });
          }
        }
      }
    }
  });

  for (int64_t c = 0; c < C; c++) {
    for (int64_t t = 0; t < taps; t++) {
      A total = 0;
      for (int64_t chunk = 0; chunk < chunks; chunk++) {
        total += sums[(chunk * vectors + c / L) * sum_size + t * L + c % L];
      }
      pyconv::store(dw + c * taps + t, total);
    }
  }
}

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    fwd(s, (const T*)x, (const T*)w, e, (T*)y);
  });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    bwd_input(s, (const T*)dy, (const T*)w, (T*)dx);
  });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    bwd_weight(s, (const T*)dy, (const T*)x, (T*)dw);
  });
}

}  // namespace depthwise_channels_last

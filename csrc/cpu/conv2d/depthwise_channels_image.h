// Images as vectors of channels, the vocabulary of depthwise_channels.h, included once per ISA by it: where the vectors of
// an image stand, how NCHW planes become vectors and back, and how images are cut into jobs.

constexpr int64_t block_bytes = 256 << 10;  // of the rows that a row of output meets: a quarter of L2

#include "cpu/cut.h"
#include "cpu/finish.h"

// The vectors of C channels: whole ones from `first`, the last as far left as it must, or one that C does not fill.
template <class A>
struct Vectors {
  static constexpr int64_t L = Vec<A>::size;
  int64_t C, count, lanes;
  bool planes;  // of an NCHW image
  bool copied;  // before they are read
  Vectors(int64_t C, bool planes, bool copied)
      : C(C), count(divide_up(C, L)), lanes(at_most(C, L)), planes(planes), copied(copied || planes || C < L) {}
  int64_t first(int64_t v) const { return C < L ? 0 : at_most(v * L, C - L); }
  int64_t shared(int64_t v) const { return v * L - first(v); }  // lanes that the vector before has as well
};

// Whether a copy of two vectors of channels side by side, widened, is faster to read than the image is. Over reading the
// image, forward / input gradient / weight gradient, two threads of Zen 5: float32 31x31 1.39 / 1.43 / 1.39, 13x13 1.39 /
// 1.41 / 1.36; 7x7 of 96 channels at 56x56 0.86 / 0.92 / 0.62, of 384 at 14x14 1.15 / 1.12 / 1.82; 1x31 0.9 / 1.0 / 0.8; 5x5
// 1.08 / 1.08 / 1.29, with stride 2 0.79 / 0.82 / 0.90. bfloat16 31x31 1.55 / 1.52 / 1.33, 7x7 1.3 / 1.3 / 1.2, 5x5 1.2 /
// 1.2 / 1.3, with stride 2 0.9; 3x3 0.75 / 0.75 / 0.92.
inline bool is_copied(const Conv2dShape& s) { return s.KH * s.KW >= (size_of(s.dtype) < 4 ? 25 : 169) * s.SH * s.SW; }

// Pixels of `lanes` planes, `plane` apart, to vectors of their channels: L of each at a time, transposed. Writes whole
// blocks of L pixels.
template <class T, class A>
PYCONV_NOINLINE void gather_planes(const T* from, int64_t plane, int64_t lanes, int64_t pixels, A* to) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t i = 0; i < pixels; i += L, to += L * L) {
    vec<A> block[L];
    _Pragma("GCC unroll 16") for (int l = 0; l < L; l++) {
      const T* at = from + l * plane + i;
      block[l] = l >= lanes ? vec<A>{} : pixels - i >= L ? load_wide(at) : load_wide_first(at, pixels - i);
    }
    transpose<A>(block);
    _Pragma("GCC unroll 16") for (int l = 0; l < L; l++) store(to + l * L, block[l]);
  }
}
// And back, of lanes [skipped, lanes): planes that another thread may be writing stay its own.
template <class T, class A>
PYCONV_NOINLINE void scatter_planes(const A* from, int64_t plane, int64_t skipped, int64_t lanes, int64_t pixels, T* to,
                                    const Finish<T>& finish) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t i = 0; i < pixels; i += L, from += L * L) {
    vec<A> block[L];
    _Pragma("GCC unroll 16") for (int l = 0; l < L; l++) block[l] = load(from + l * L);
    transpose<A>(block);
    _Pragma("GCC unroll 16") for (int l = 0; l < L; l++) {
      if (l < skipped || l >= lanes) continue;
      if (pixels - i >= L) {
        finish.store(to + l * plane + i, block[l]);
      } else {
        finish.store_first(to + l * plane + i, block[l], pixels - i);
      }
    }
  }
}

// Vectors of channels of some rows of an image: where they lie, of storage type, or in a widened copy.
template <class X>
struct View {
  const X* at;
  int64_t row, column, top;  // pitches, and the image row that stands first
};

// A copy of vectors [v0, v0 + here) of image rows [top, bottom): `held` of them side by side, and v0 first.
template <class T, class A>
View<A> copy_of(const T* image, const Vectors<A>& vectors, int64_t H, int64_t W, int64_t v0, int64_t here, int64_t held,
                int64_t top, int64_t bottom, A* copy) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t C = vectors.C;
  if (vectors.planes) {
    gather_planes(image + vectors.first(v0) * H * W + top * W, H * W, vectors.lanes, (bottom - top) * W, copy);
    return {copy, W * L, L, top};
  }
  for (int64_t i = 0; i < (bottom - top) * W; i++) {
    const T* pixel = image + (top * W + i) * C;
    A* to = copy + i * held * L;
    for (int64_t v = v0; v < v0 + here; v++, to += L)
      store(to, load_wide_first(pixel + vectors.first(v), vectors.lanes));
  }
  return {copy, W * held * L, held * L, top};
}

// How the work is cut: blocks of vectors of channels whose rows stay in L2, bands of rows for several threads. The last
// vector shares channels with the one before it, so where pixels lie side by side no block is one vector alone.
struct Jobs {
  Cuts blocks;
  int64_t held, band, bands;  // vectors of the largest block; rows of a band

  template <class A>
  Jobs(const Conv2dShape& s, const Grid& h, const Reach& down, const Vectors<A>& vectors, int64_t row_bytes)
      : blocks(vectors.count, vectors.planes   ? 1
                              : vectors.copied ? 2
                                               : at_least(block_bytes / (row_bytes * down.extent(1)), 2)),
        held(divide_up(vectors.count, blocks.pieces)) {
    const int64_t fit = (block_bytes / (row_bytes * held) - (down.high - down.low)) / down.step;
    const int64_t share = divide_up(h.out(), at_least(8 / at_least(s.N * blocks.pieces, 1), 1));
    band = vectors.planes ? h.out() : at_most(at_least(at_most(fit, share), 4), h.out());
    bands = divide_up(h.out(), band);
  }

  // Of `tiles` rows of tiles of `rows` outputs that meet all vectors of a pixel: channels are cut only for want of rows.
  template <class A>
  Jobs(int64_t N, int64_t tiles, int64_t rows, const Vectors<A>& vectors)
      : blocks(vectors.count, vectors.planes ? 1 : at_least(vectors.count / divide_up(8, at_least(N * tiles, 1)), 2)),
        held(divide_up(vectors.count, blocks.pieces)),
        band(vectors.planes ? tiles * rows : rows),
        bands(vectors.planes ? 1 : tiles) {}
};

// Where a tile stands: rows of x, the runs of a row, `count` pixels of the output from `to` on.
struct Tile {
  int64_t rows, row, runs, count, to_step;
  const Run* run;

  Tile(const Tiles& tiles, int64_t i, int64_t rows, int64_t row, int64_t to_step)
      : rows(rows),
        row(row),
        runs(tiles.counts[i]),
        count(tiles.first[i + 1] - tiles.first[i]),
        to_step(to_step),
        run(tiles.runs + i * tiles.size) {}
};

// Asks for one vector of `count` pixels of `rows` rows. Images that L3 does not hold arrive too late by themselves: of
// every pixel of a tile one vector is read at a time.
template <class X>
PYCONV_INLINE void prefetch(const X* at, int64_t rows, int64_t row, int64_t count, int64_t pixel) {
  for (int64_t r = 0; r < rows; r++, at += row) {
    for (int64_t p = 0; p < count; p++) __builtin_prefetch(at + p * pixel);
  }
}
// Two Zen 5 cores on one L3 of 32 MB: mbv2.dw.s2, 24 MB, 1.05 to 1.2 times faster; mbv2.dw.s1, 14 MB, 0.75.
constexpr int64_t prefetch_bytes = 16 << 20;

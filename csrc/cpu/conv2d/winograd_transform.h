// What both Winograd drivers share: images to pieces of L channels and back, tiles to frequencies and back, and the
// matrix product of one frequency. Lanes are channels in both layouts: NCHW is transposed on its way in and out.
// Included by winograd.h once per ISA, inside its namespace.

constexpr int64_t most_columns = 60;  // of the outputs of one piece, unless one bundle has more: it stays in L1 or L2

// Registers: MR x 2 accumulators, 2 vectors of B and one broadcast of A out of 32 (AVX-512) or 16.
constexpr int64_t MR = PYCONV_BYTES == 64 ? 14 : PYCONV_BYTES == 32 ? 6 : 4;

// One axis of a piece: first, first + step, ... of an image that has [0, size) and is zero elsewhere.
struct Span {
  int64_t first, step, count, size;
};

// piece (h.count, w.count, L) = the first `channels` of L channels of an image, the others zero; w.step is 1. Up to L
// columns beyond the piece may be written.
template <class T, class A>
void pack(const T* image, const Index4& I, int64_t channels, Span h, Span w, A* piece) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t begin = at_most(at_least(-w.first, 0), w.count),
                end = at_least(at_most(w.size - w.first, w.count), begin);
  for (int64_t ih = 0; ih < h.count; ih++, piece += w.count * L) {
    const int64_t y = h.first + ih * h.step;
    const bool blank = y < 0 || y >= h.size || begin == end;
    for (int64_t iw = 0; iw < (blank ? w.count : begin); iw++) store(piece + iw * L, vec<A>{});
    if (blank) continue;
    for (int64_t iw = end; iw < w.count; iw++) store(piece + iw * L, vec<A>{});
    const T* from = image + I(0, 0, y, w.first + begin);
    if (I.c == 1) {
      for (int64_t iw = begin; iw < end; iw++, from += I.w) {
        store(piece + iw * L, load_up_to(from, channels));
      }
      continue;
    }
    for (int64_t iw = begin; iw < end; iw += L) {
      const int64_t at = end - begin < L ? iw : at_most(iw, end - L);  // whole vectors, the last over the one before
      load_columns(from + at - begin, I.c, channels, at_most(L, end - at), piece + at * L, L);
    }
  }
}

// The first `channels` channels of piece (h.count, w.count, L) -> the part of the image that exists. Rows of the piece
// may be read up to L columns beyond their end.
template <class T, class A>
void unpack(const A* piece, int64_t channels, Span h, Span w, T* image, const Index4& I, Finish<T> finish) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t end = at_most(w.size - w.first, w.count);
  for (int64_t ih = 0; ih < h.count && h.first + ih * h.step < h.size; ih++, piece += w.count * L) {
    T* to = image + I(0, 0, h.first + ih * h.step, w.first);
    if (I.c == 1) {
      for (int64_t iw = 0; iw < end; iw++, to += I.w) {
        finish.store_up_to(to, load(piece + iw * L), channels);
      }
      continue;
    }
    for (int64_t iw = 0; iw < end; iw += L) {
      const int64_t at = end < L ? iw : at_most(iw, end - L);
      store_columns(piece + at * L, L, to + at, I.c, channels, at_most(L, end - at), finish);
    }
  }
}

// Bundles side by side, the first with its outputs at (n, oh, ow).
struct Run {
  int64_t n, oh, ow, bundles;
};

// The tiles of N images of OH x OW outputs, counted from left to right, downwards, and through the images. A dilated
// image falls apart into images of its phases, of dilation 1: outputs of a tile, and its inputs, are DH and DW apart.
// Tiles of all phases of DW that start at one column are a bundle, so that rows of memory are read and written whole.
struct Tiles {
  int64_t N, OH, OW, DH, DW;
  int64_t rows, columns;  // of a tile

  int64_t phases() const { return at_most(DW, OW); }  // tiles of a bundle
  int64_t width() const { return columns * DW; }      // of a bundle
  int64_t across() const { return divide_up(OW, width()); }
  int64_t down() const { return conv2d::winograd_tiles(OH, rows, DH); }
  int64_t count() const { return N * down() * across() * phases(); }
  int64_t most_bundles() const { return at_least(most_columns / width(), 1); }
  // The longest run from tile t on that ends before `end`; both are multiples of phases().
  Run run(int64_t t, int64_t end) const {
    const int64_t bundle = t / phases(), line = bundle / across(), column = bundle % across(), row = line % down();
    return {line / down(), row / DH * rows * DH + row % DH, column * width(),
            at_most(at_most(across() - column, end / phases() - bundle), most_bundles())};
  }
};

// Two axes of Winograd, and room for a piece between its passes.
template <class A>
struct Transform {
  static constexpr int64_t L = Vec<A>::size;
  const Algorithm<A>&h, &w;
  Tiles tiles;

  int64_t frequencies() const { return h.points * w.points; }
  int64_t taps() const { return h.taps * w.taps; }
  int64_t input_columns(int64_t bundles) const { return bundles * tiles.width() + (w.taps - 1) * tiles.DW; }
  // Of a piece, or of one between two passes, for inputs, outputs or a filter.
  int64_t room() const { return h.points * (input_columns(tiles.most_bundles()) + L) * L; }

  // A piece (h.points, input_columns, L) -> v[f] (tiles, step), planes apart. `half` is room().
  void inputs(const A* piece, int64_t bundles, A* half, A* v, int64_t plane, int64_t step) const {
    tiles_to(h.input, w.input, piece, input_columns(bundles), bundles, half, v, plane, step);
  }
  // Gradients of outputs, a piece (h.step, columns, L), likewise.
  void gradients(const A* piece, int64_t bundles, A* half, A* v, int64_t plane, int64_t step) const {
    if (square() && h.square_gradient) {
      for (int64_t t = 0; t < bundles * tiles.phases(); t++, v += step) {
        h.square_gradient(piece + first_column(t) * L, bundles * tiles.width() * L, tiles.DW * L, v, plane);
      }
      return;
    }
    tiles_to(h.gradient, w.gradient, piece, bundles * tiles.width(), bundles, half, v, plane, step);
  }

  // m[f] (tiles, step) -> a piece (h.step, columns, L) of outputs, each plus one vector.
  void outputs(const A* m, int64_t plane, int64_t step, int64_t bundles, const A* added, A* half, A* piece) const {
    const int64_t columns = bundles * tiles.width(), phases = tiles.phases();
    if (square() && h.square_output) {
      for (int64_t t = 0; t < bundles * phases; t++, m += step) {
        h.square_output(m, plane, piece + first_column(t) * L, columns * L, tiles.DW * L, added);
      }
      return;
    }
    for (int64_t i = 0; i < h.points; i++) {
      for (int64_t p = 0; p < phases; p++) {
        w.output(m + i * w.points * plane + p * step, plane, phases * step, half + (i * columns + p) * L, tiles.DW * L,
                 tiles.width() * L, bundles, nullptr);
      }
    }
    h.output(half, columns * L, L, piece, columns * L, L, columns, added);
  }

  // Taps of one channel, `step` apart, the first at `tap` -> u[f].
  void filter(const A* tap, int64_t step, A* half, A* u, int64_t plane) const {
    if (square() && h.square_filter) return h.square_filter(tap, w.taps * step, step, u, plane);
    h.filter(tap, w.taps * step, step, half, w.taps * L, L, w.taps);
    w.filter(half, L, w.taps * L, u, plane, w.points * plane, h.points);
  }

  // m[f] -> taps of one channel (h.taps, w.taps, L).
  void weights(const A* m, int64_t plane, A* half, A* tap) const {
    if (square() && h.square_weight) return h.square_weight(m, plane, tap, h.taps * L, L, nullptr);
    w.weight(m, plane, w.points * plane, half, L, w.taps * L, h.points, nullptr);
    h.weight(half, w.taps * L, L, tap, w.taps * L, L, w.taps, nullptr);
  }

 private:
  bool square() const { return &h == &w; }
  int64_t first_column(int64_t tile) const { return tile / tiles.phases() * tiles.width() + tile % tiles.phases(); }

  void tiles_to(typename Algorithm<A>::To* down, typename Algorithm<A>::To* across, const A* piece, int64_t columns,
                int64_t bundles, A* half, A* v, int64_t plane, int64_t step) const {
    down(piece, columns * L, L, half, columns * L, L, columns);
    for (int64_t i = 0; i < h.points; i++) {
      for (int64_t p = 0; p < tiles.phases(); p++) {
        across(half + (i * columns + p) * L, tiles.DW * L, tiles.width() * L, v + i * w.points * plane + p * step,
               plane, tiles.phases() * step, bundles);
      }
    }
  }
};

// Micro-kernel: c[i,:] (+)= sum_j a[i,j] * b[j,:] for R rows and blocks * B terms. a is stored in blocks of B columns,
// lda apart: a[i,j] = a[j / B * lda + i * B + j % B]; b (terms, NV vectors); c (R, NV vectors). Registers only.
template <class A, int R, int NV, int B>
__attribute__((noinline)) void multiply(const A* a, int64_t lda, const A* b, int64_t blocks, A* c, bool first) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[R][NV];
  _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
    _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] = vec<A>{};
  }
  for (int64_t block = 0; block < blocks; block++, a += lda) {
    _Pragma("GCC unroll 2") for (int j = 0; j < B; j++, b += NV * L) {
      vec<A> bj[NV];
      _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) bj[v] = load(b + v * L);
      _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
        const A aij = a[i * B + j];
        _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] += aij * bj[v];
      }
    }
  }
  _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
    _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) {
      A* at = c + (i * NV + v) * L;
      store(at, first ? sum[i][v] : load(at) + sum[i][v]);
    }
  }
}

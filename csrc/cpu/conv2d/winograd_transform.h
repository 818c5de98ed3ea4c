// What both Winograd drivers share: images to pieces of L channels and back, the transforms of 6 x 6 tiles, and the
// matrix product of one frequency. Lanes are channels in both layouts: NCHW is transposed on its way in and out.
// Included by winograd.h once per ISA, inside its namespace.

constexpr int64_t frequencies = 36;
constexpr int64_t tile_step = 4;      // outputs of a tile along one axis, and inputs from one tile to the next
constexpr int64_t most_columns = 28;  // tiles of one piece: its 6 rows of 114 columns stay in L1 or L2

// Registers: MR x 2 accumulators, 2 vectors of B and one broadcast of A out of 32 (AVX-512) or 16.
constexpr int64_t MR = PYCONV_BYTES == 64 ? 14 : PYCONV_BYTES == 32 ? 6 : 4;

// One axis of a piece: [first, first + count) of an image that has [0, size) and is zero elsewhere.
struct Span {
  int64_t first, count, size;
  int64_t begin() const { return at_most(at_least(-first, 0), count); }
  int64_t end() const { return at_least(at_most(size - first, count), begin()); }
};

// piece (h.count, w.count, L) = the first `channels` of L channels of an image, the others zero. Up to L columns beyond
// the piece may be written.
template <class T, class A>
void pack(const T* image, const Index4& I, int64_t channels, Span h, Span w, A* piece) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t begin = w.begin(), end = w.end();
  for (int64_t ih = 0; ih < h.count; ih++, piece += w.count * L) {
    const int64_t y = h.first + ih;
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
  for (int64_t ih = 0; ih < h.end(); ih++, piece += w.count * L) {
    T* to = image + I(0, 0, h.first + ih, w.first);
    if (I.c == 1) {
      for (int64_t iw = 0; iw < w.end(); iw++, to += I.w) {
        finish.store_up_to(to, load(piece + iw * L), channels);
      }
      continue;
    }
    for (int64_t iw = 0; iw < w.end(); iw += L) {
      const int64_t at = w.end() < L ? iw : at_most(iw, w.end() - L);
      store_columns(piece + at * L, L, to + at, I.c, channels, at_most(L, w.end() - at), finish);
    }
  }
}

// A sum of multiples of vectors by constants: nothing for a factor 0, no product for 1.
template <class A>
struct Combination {
  vec<A> sum = {};
  bool empty = true;
  inline __attribute__((always_inline)) void add(double factor, vec<A> x) {
    if (factor == 0) return;
    const vec<A> term = factor == 1 ? x : x * static_cast<A>(factor);
    sum = empty ? term : factor == 1 ? sum + x : sum + x * static_cast<A>(factor);
    empty = false;
  }
};

// The matrix that takes `in` values to the 6 points: an input, a filter of 3 taps, or a gradient of 4 outputs.
template <int in>
constexpr const double (&to_points())[6][in] {
  if constexpr (in == 6) return conv2d::winograd_4x3.bt;
  if constexpr (in == 3) return conv2d::winograd_4x3.g;
  if constexpr (in == 4) return conv2d::winograd_3x4.g;
}
// And the one that takes their products back to 4 outputs, or 3 taps.
template <int out>
constexpr const double (&back()) [out][6] {
  if constexpr (out == 4) return conv2d::winograd_4x3.at;
  if constexpr (out == 3) return conv2d::winograd_3x4.at;
}

constexpr bool opens_pair(int j) {
  return j == 1 || j == 3;
}  // points 0, p, -p, q, -q, infinity

// y = m x, one row per point: rows of a pair share their even and odd parts.
template <class A, int in>
PYCONV_INLINE void at_points(const vec<A> (&x)[in], vec<A> (&y)[6]) {
  constexpr const double (&m)[6][in] = to_points<in>();
  _Pragma("GCC unroll 6") for (int j = 0; j < 6; j++) {
    if (j > 0 && opens_pair(j - 1)) continue;
    Combination<A> even, odd;
    _Pragma("GCC unroll 6") for (int k = 0; k < in; k += 2) even.add(m[j][k], x[k]);
    _Pragma("GCC unroll 6") for (int k = 1; k < in; k += 2) odd.add(m[j][k], x[k]);
    y[j] = odd.empty ? even.sum : even.empty ? odd.sum : even.sum + odd.sum;
    if (opens_pair(j)) y[j + 1] = even.sum - odd.sum;
  }
}

// y = at x, one column per point: columns of a pair share their sum, for even rows, and difference, for odd ones.
template <class A, int out>
PYCONV_INLINE void from_points(const vec<A> (&x)[6], vec<A> (&y)[out]) {
  constexpr const double (&at)[out][6] = back<out>();
  const vec<A> sum[2] = {x[1] + x[2], x[3] + x[4]}, difference[2] = {x[1] - x[2], x[3] - x[4]};
  _Pragma("GCC unroll 4") for (int i = 0; i < out; i++) {
    Combination<A> row;
    row.add(at[i][0], x[0]);
    _Pragma("GCC unroll 2") for (int p = 0; p < 2; p++) row.add(at[i][1 + 2 * p], i % 2 ? difference[p] : sum[p]);
    row.add(at[i][5], x[5]);
    y[i] = row.sum;
  }
}

// v[f] = (m d m')[f], f in row-major order, each `plane` after the one before; d(i, j) is a vector.
template <class A, int in, class Source>
PYCONV_INLINE void to_frequencies(const Source& d, A* v, int64_t plane) {
  vec<A> half[in][6];  // (m d)'
  _Pragma("GCC unroll 6") for (int j = 0; j < in; j++) {
    vec<A> column[in];
    _Pragma("GCC unroll 6") for (int i = 0; i < in; i++) column[i] = load(d(i, j));
    at_points<A, in>(column, half[j]);
  }
  _Pragma("GCC unroll 6") for (int i = 0; i < 6; i++) {
    vec<A> row[in], y[6];
    _Pragma("GCC unroll 6") for (int j = 0; j < in; j++) row[j] = half[j][i];
    at_points<A, in>(row, y);
    _Pragma("GCC unroll 6") for (int j = 0; j < 6; j++) store(v + (i * 6 + j) * plane, y[j]);
  }
}

// y = at m at', of the frequencies m[f], each `plane` after the one before.
template <class A, int out>
PYCONV_INLINE void from_frequencies(const A* m, int64_t plane, vec<A> (&y)[out][out]) {
  vec<A> half[6][out];  // (at m)'
  _Pragma("GCC unroll 6") for (int j = 0; j < 6; j++) {
    vec<A> column[6];
    _Pragma("GCC unroll 6") for (int i = 0; i < 6; i++) column[i] = load(m + (i * 6 + j) * plane);
    from_points<A, out>(column, half[j]);
  }
  _Pragma("GCC unroll 4") for (int i = 0; i < out; i++) {
    vec<A> row[6];
    _Pragma("GCC unroll 6") for (int j = 0; j < 6; j++) row[j] = half[j][i];
    from_points<A, out>(row, y[i]);
  }
}

// A row of tiles as a piece (in rows, columns, L) -> v[f] (tiles, step).
template <class A, int in>
void transform_tiles(const A* piece, int64_t columns, int64_t tiles, A* v, int64_t plane, int64_t step) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t t = 0; t < tiles; t++, piece += tile_step * L, v += step) {
    to_frequencies<A, in>([&](int i, int j) { return piece + (i * columns + j) * L; }, v, plane);
  }
}

// `count` tiles side by side, the first with its outputs at (n, oh, ow).
struct Run {
  int64_t n, oh, ow, count;
};

// The 4 x 4 tiles of N images of OH x OW outputs, counted from left to right, downwards, and through the images.
struct Tiles {
  int64_t N, OH, OW;
  int64_t across() const { return divide_up(OW, tile_step); }
  int64_t down() const { return divide_up(OH, tile_step); }
  int64_t count() const { return N * across() * down(); }
  // The longest run from tile t on that ends before `end`.
  Run run(int64_t t, int64_t end) const {
    const int64_t row = t / across(), column = t % across();
    return {row / down(), row % down() * tile_step, column * tile_step,
            at_most(at_most(across() - column, end - t), most_columns)};
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

// Images as planes with gaps, the vocabulary of direct_planes.h and depthwise_planes.h, included once per ISA by each.
//
// Rows are stored with a gap of zeros between them, as wide as the padding that the taps reach into: one gap serves the
// right border of its row and the left border of the next, so that every tap is one constant offset from its pixel and
// no row needs a branch. A stride splits the image into SH * SW planes of its phases: neighbouring outputs then meet
// neighbouring pixels. Values are widened on the way.

#include "cpu/finish.h"

constexpr int registers = PYCONV_BYTES == 64 ? 32 : 16;
constexpr int KR_MAX = 6;
// KR x n accumulators, n vectors of x, one weight; 8 chains of FMAs already hide their latency.
constexpr int widest(int KR) { return (registers - 2) / (KR + 1) > 8 ? 8 : (registers - 2) / (KR + 1); }

constexpr int64_t band_bytes = 256 << 10;  // of planes and output of one job: a quarter of a 1 MB L2
constexpr int64_t block_vectors = 64;      // of pixels a weight gradient sweeps at once: 4 KB of every row, from L1
constexpr int64_t serial_flops = 100000;

#include "cpu/cut.h"

// Calls body with the compile-time values of kr in [1, KR_MAX] and n in [1, widest(kr)].
template <int KR, int NV, class Body>
PYCONV_INLINE void with_width(int64_t n, const Body& body) {
  if constexpr (NV > 1) {
    if (n < NV) return with_width<KR, NV - 1>(n, body);
  }
  body(Int<KR>(), Int<NV>());
}
template <int KR = KR_MAX, class Body>
PYCONV_INLINE void with_tile(int64_t kr, int64_t n, const Body& body) {
  if constexpr (KR > 1) {
    if (kr < KR) return with_tile<KR - 1>(kr, n, body);
  }
  with_width<KR, widest(KR)>(n, body);
}

// Zeros in whole vectors: up to L - 1 beyond `count`.
template <class A>
void clear(A* at, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec<A>::size) store(at + i, vec<A>{});
}

// dense[r][i] = image[r][i * stride], widened; zeros up to `pitch`. Writes whole vectors: up to L - 1 zeros beyond.
template <class T, class A>
PYCONV_NOINLINE void copy_rows(const T* image, int64_t row, int64_t stride, int64_t rows, int64_t columns,
                               int64_t pitch, A* dense) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t whole = stride == 1 ? columns / L * L : 0, left = columns - whole;
  for (int64_t r = 0; r < rows; r++, image += row, dense += pitch) {
    int64_t i = 0;
    for (; i < whole; i += L) store(dense + i, load_wide(image + i));
    if (stride == 1) {
      if (left > 0) store(dense + i, load_wide_first(image + i, left)), i += L;
    } else if (stride == 2 || stride == 4) {
      for (; i < columns; i += L) {
        store(dense + i, load_every(image + i * stride, stride, (columns - 1 - i) * stride + 1));
      }
    } else {
      for (; i < columns; i++) dense[i] = widen(image[i * stride]);
    }
    for (; i < pitch; i += L) store(dense + i, vec<A>{});
  }
}

// Even columns to dense, odd ones to odd, as copy_rows does.
template <class T, class A>
PYCONV_NOINLINE void split_rows(const T* image, int64_t row, int64_t rows, int64_t columns, int64_t pitch, A* dense,
                                A* odd) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t r = 0; r < rows; r++, image += row, dense += pitch, odd += pitch) {
    int64_t i = 0;
    for (; 2 * i < columns; i += L) {
      const T* at = image + 2 * i;
      const int64_t left = columns - 2 * i;
      const Pair<A> pair = left >= 2 * L ? deinterleave<A>(load_wide(at), load_wide(at + L))
                           : left > L    ? deinterleave<A>(load_wide(at), load_wide_first(at + L, left - L))
                                         : deinterleave<A>(load_wide_first(at, left), vec<A>{});
      store(dense + i, pair.first);
      store(odd + i, pair.second);
    }
    for (; i < pitch; i += L) store(dense + i, vec<A>{}), store(odd + i, vec<A>{});
  }
}

// The same for `channels` of a channels_last image, pixels `stride` apart, to planes `apart` from one another: L pixels
// of L channels at a time, transposed.
template <class T, class A>
PYCONV_NOINLINE void transpose_row(const T* image, int64_t stride, int64_t channels, int64_t columns, int64_t pitch,
                                   A* dense, int64_t apart) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t count = channels - c;
    int64_t i = 0;
    for (; i < columns; i += L) {
      const T* from = image + i * stride + c;
      vec<A> block[L];
      _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
        if (i + j >= columns) {
          block[j] = vec<A>{};
        } else {
          block[j] = count >= L ? load_wide(from + j * stride) : load_wide_first(from + j * stride, count);
        }
      }
      transpose<A>(block);
      _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
        if (j < count) store(dense + (c + j) * apart + i, block[j]);
      }
    }
    for (int64_t j = 0; i < pitch && j < at_most(count, L); j++) clear(dense + (c + j) * apart + i, pitch - i);
  }
}

// Channels of an image as planes with gaps: rows of a band from `low` above it to `high` below.
struct Planes {
  int64_t rows, left, pitch, size, count;  // `left` zeros before the first row; `size` of one of `count` planes

  template <class A>
  Planes(const Grid& h, const Grid& w, int64_t C, int64_t band, A) {
    constexpr int64_t L = Vec<A>::size;
    const int64_t right = w.out() - 1 + w.high - (w.columns() - 1);
    rows = band + h.high - h.low;
    left = at_least(-w.low, 0);
    pitch = at_least(w.columns() + at_least(left, right), w.out());
    const int64_t slack = at_least(w.high, 0) + (3 + rows * pitch / (block_vectors * L)) * L;
    size = round_up(left + rows * pitch + slack, L);
    count = C * h.source_phases * w.source_phases;
  }
  int64_t plane(const Grid& h, const Grid& w, int64_t c, int64_t sh, int64_t sw) const {
    return ((c * h.source_phases + sh) * w.source_phases + sw) * size;
  }

  // Row `row` of channel 0, counting the rows of all S phases.
  int64_t row(const Grid& h, const Grid& w, int64_t row) const {
    const int64_t S = h.source_phases;
    return (S == 1 ? 0 : row % S * w.source_phases * size) + left + (S == 1 ? row : row / S) * pitch;
  }

  // Copies channels [c0, c0 + C) of the rows that output rows from `oh` on meet: in the order of memory, planes one
  // after the other in NCHW, all channels of a row in channels_last.
  template <class T, class A>
  void copy(const Grid& h, const Grid& w, const T* image, const Index4& I, int64_t n, int64_t c0, int64_t C, int64_t oh,
            A* planes) const {
    const T* from = image + I(n, c0, 0, 0);
    if (I.w == 1) {
      for (int64_t c = 0; c < C; c++) copy_channel(h, w, from + c * I.c, I, oh, planes + plane(h, w, c, 0, 0));
      return;
    }
    const int64_t apart = plane(h, w, 1, 0, 0);
    for (int64_t p = 0; p < C * apart; p += size) clear(planes + p, left);
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t sh = 0; sh < h.source_phases; sh++) {
        const int64_t ih = (oh + h.low + r) * h.source_phases + sh;
        for (int64_t sw = 0; sw < w.source_phases; sw++) {
          const bool inside = ih >= 0 && ih < h.source;
          transpose_row(inside ? from + ih * I.h + sw * I.w : from, w.source_phases * I.w, C,
                        inside ? divide_up(at_least(w.source - sw, 0), w.source_phases) : 0, pitch,
                        planes + plane(h, w, 0, sh, sw) + left + r * pitch, apart);
        }
      }
    }
    const int64_t end = left + rows * pitch;
    for (int64_t p = 0; p < C * apart; p += size) clear(planes + p + end, size - end - Vec<A>::size);
  }

  // One channel, row by row in each of its phases.
  template <class T, class A>
  void copy_channel(const Grid& h, const Grid& w, const T* image, const Index4& I, int64_t oh, A* channel) const {
    const int64_t SH = h.source_phases, SW = w.source_phases, row0 = oh + h.low;
    for (int64_t sh = 0; sh < SH; sh++) {
      const int64_t inside = divide_up(at_least(h.source - sh, 0), SH);  // rows of this phase
      const int64_t top = at_most(at_least(-row0, 0), rows), bottom = at_least(at_most(inside - row0, rows), top);
      const T* from = image + ((row0 + top) * SH + sh) * I.h;
      A* plane = channel + sh * SW * size;
      for (int64_t sw = 0; sw < SW; sw++) {
        clear(plane + sw * size, left + top * pitch);
        A* to = plane + sw * size + left + top * pitch;
        if (SW != 2) {
          const int64_t columns = divide_up(at_least(w.source - sw, 0), SW);
          copy_rows(from + sw, SH * I.h, SW, bottom - top, columns, pitch, to);
        } else if (sw == 1) {
          split_rows(from, SH * I.h, bottom - top, w.source, pitch, to - size, to);
        }
      }
      const int64_t end = left + bottom * pitch;  // cleared after the copies, which write whole vectors
      for (int64_t sw = 0; sw < SW; sw++) clear(plane + sw * size + end, size - end - Vec<A>::size);
    }
  }
};

// Rows of one channel, `row` apart in an NCHW image; the lines of its column phases are `apart` from one another.
template <class T, class A>
PYCONV_NOINLINE void unpack_rows(const A* flat, int64_t apart, int64_t pitch, A b, int64_t phases, int64_t count,
                                 int64_t rows, int64_t row, T* to, Finish<T> finish) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t r = 0; r < rows; r++, flat += pitch, to += row) {
    if (phases == 1) {
      int64_t i = 0;
      for (; i + L <= count; i += L) finish.store(to + i, load(flat + i) + b);
      if (i < count) finish.store_first(to + i, load(flat + i) + b, count - i);
    } else if (phases == 2) {
      for (int64_t i = 0; i < count; i += 2 * L) {
        const Pair<A> pair = interleave<A>(load(flat + i / 2) + b, load(flat + apart + i / 2) + b);
        if (i + 2 * L <= count) {
          finish.store(to + i, pair.first);
          finish.store(to + i + L, pair.second);
        } else {
          finish.store_first(to + i, pair.first, at_most(count - i, L));
          if (i + L < count) finish.store_first(to + i + L, pair.second, count - i - L);
        }
      }
    } else if (phases == 4) {
      for (int64_t i = 0; i < count; i += 4 * L) {
        vec<A> all[4];
        _Pragma("GCC unroll 4") for (int p = 0; p < 4; p++) all[p] = load(flat + p * apart + i / 4) + b;
        interleave<A, 4>(all);
        _Pragma("GCC unroll 4") for (int p = 0; p < 4; p++) {
          if (i + p * L < count) finish.store_up_to(to + i + p * L, all[p], count - i - p * L);
        }
      }
    } else {
      for (int64_t p = 0; p < phases; p++) {
        const A* from = flat + p * apart;
        for (int64_t i = 0, at = p; at < count; i++, at += phases) finish.store_one(to + at, from[i] + b);
      }
    }
  }
}

// Rows of one phase of `channels` lines, each `line` long, to channels_last: L pixels of L channels at a time,
// transposed. Reads lines up to a multiple of L.
template <class T, class A>
PYCONV_NOINLINE void transpose_rows(const A* lines, int64_t line, int64_t channels, int64_t pitch, const T* bias,
                                    int64_t columns, int64_t rows, int64_t row, int64_t stride, T* to,
                                    Finish<T> finish) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t r = 0; r < rows; r++, lines += pitch, to += row) {
    for (int64_t c = 0; c < channels; c += L) {
      const int64_t count = channels - c;
      const vec<A> b = !bias ? vec<A>{} : count >= L ? load_wide(bias + c) : load_wide_first(bias + c, count);
      for (int64_t i = 0; i < columns; i += L) {
        vec<A> block[L];
        _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) block[j] = load(lines + (c + j) * line + i);
        transpose<A>(block);
        T* pixel = to + i * stride + c;
        _Pragma("GCC unroll 16") for (int j = 0; j < L; j++, pixel += stride) {
          if (i + j >= columns) continue;
          if (count >= L) {
            finish.store(pixel, block[j] + b);
          } else {
            finish.store_first(pixel, block[j] + b, count);
          }
        }
      }
    }
  }
}

// A band of the output of `channels`, bias added, from the lines of its phases (h.phases, w.phases, held, line): `held`
// channels, each of rows with a pitch.
template <class T, class A>
void unpack(const A* lines, int64_t held, int64_t line, int64_t pitch, int64_t channels, const T* bias, const Grid& h,
            const Grid& w, int64_t oh, int64_t rows, const Index4& O, T* to, const Finish<T>& finish) {
  for (int64_t p = 0; p < h.phases; p++) {
    const int64_t first = oh * h.phases + p, here = divide_up(at_most(rows * h.phases - p, h.total - first), h.phases);
    const A* phase = lines + p * w.phases * held * line;
    if (O.w == 1) {
      for (int64_t c = 0; c < channels; c++) {
        unpack_rows(phase + c * line, held * line, pitch, bias ? widen(bias[c]) : A(0), w.phases, w.total, here,
                    h.phases * O.h, to + c * O.c + first * O.h, finish);
      }
      continue;
    }
    for (int64_t q = 0; q < w.phases; q++) {
      transpose_rows(phase + q * held * line, line, channels, pitch, bias,
                     divide_up(at_least(w.total - q, 0), w.phases), here, h.phases * O.h, w.phases * O.w,
                     to + first * O.h + q * O.w, finish);
    }
  }
}

// Pixels of a weight gradient: `rows` of `vectors`; row r starts at r * dy and r * x of its operand.
struct Lines {
  int64_t rows, vectors, dy, x;
};

// Micro-kernel of the weight gradient: sum[k][t] += dy[k] * x[off[t]] over all pixels, lane by lane.
template <class A, int KR, int TR>
PYCONV_NOINLINE void weight_tile(const Lines& lines, const A* dy, int64_t dy_stride, const A* x, const int64_t* off,
                                 A* sums, int64_t stride) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[KR][TR];
  int64_t at[TR];
  _Pragma("GCC unroll 8") for (int t = 0; t < TR; t++) at[t] = off[t];
  _Pragma("GCC unroll 6") for (int k = 0; k < KR; k++) {
    _Pragma("GCC unroll 8") for (int t = 0; t < TR; t++) sum[k][t] = load(sums + (k * stride + t) * L);
  }
  for (int64_t r = 0; r < lines.rows; r++, dy += lines.dy, x += lines.x) {
    for (int64_t v = 0; v < lines.vectors * L; v += L) {
      vec<A> g[KR];
      _Pragma("GCC unroll 6") for (int k = 0; k < KR; k++) g[k] = keep(load(dy + k * dy_stride + v));
      _Pragma("GCC unroll 8") for (int t = 0; t < TR; t++) {
        const vec<A> pixels = load(x + at[t] + v);
        _Pragma("GCC unroll 6") for (int k = 0; k < KR; k++) sum[k][t] += g[k] * pixels;
      }
    }
  }
  _Pragma("GCC unroll 6") for (int k = 0; k < KR; k++) {
    _Pragma("GCC unroll 8") for (int t = 0; t < TR; t++) store(sums + (k * stride + t) * L, sum[k][t]);
  }
}

// dy of a band as rows that fit the planes': flat, with their pitch, or each row in whole vectors where that is fewer.
// `margin` rows of zeros stand above and below.
struct Gradient {
  Lines lines;
  int64_t pitch, margin, size;  // size of one channel

  template <class A>
  Gradient(const Planes& planes, int64_t band, int64_t OW, int64_t margin, A) : margin(margin) {
    constexpr int64_t L = Vec<A>::size;
    const int64_t flat = divide_up((band + margin) * planes.pitch, L), by_row = (band + margin) * divide_up(OW, L);
    if (by_row <= flat) {
      pitch = round_up(OW, L);
      lines = {band, pitch / L, pitch, planes.pitch};
    } else {
      pitch = planes.pitch;
      const int64_t vectors = divide_up(flat, divide_up(flat, block_vectors));
      lines = {divide_up(flat, vectors), vectors, vectors * L, vectors * L};
    }
    size = round_up((band + 2 * margin) * pitch, L) + lines.rows * L + L;
  }

  // `channels` of dy, each `size` long.
  template <class T, class A>
  void copy(const T* dy, const Index4& Y, int64_t channels, int64_t rows, int64_t OW, A* to) const {
    for (int64_t c = 0; c < channels; c++) clear(to + c * size, margin * pitch);
    if (Y.w == 1) {
      for (int64_t c = 0; c < channels; c++) {
        copy_rows(dy + c * Y.c, Y.h, 1, rows, OW, pitch, to + c * size + margin * pitch);
      }
    } else {
      for (int64_t r = 0; r < rows; r++) {
        transpose_row(dy + r * Y.h, Y.w, channels, OW, pitch, to + (margin + r) * pitch, size);
      }
    }
    const int64_t end = (margin + rows) * pitch;
    for (int64_t c = 0; c < channels; c++) clear(to + c * size + end, size - end - Vec<A>::size);
  }
};

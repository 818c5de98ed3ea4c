// conv2d / depthwise on planes: vectors of the pixels of a row, several rows at a time.
// Computes  y[c,r,:] = b[c] + sum_{kh,kw} w[c,kh,kw] * x[c, at(r) + kh, at(:) + kw]
//           bwd_input   the same from dy, once per phase of the stride, with the taps that the phase meets
//           bwd_weight  dw[c,kh,kw] = sum_{r,:} dy[c,r,:] * x[c, at(r) + kh, at(:) + kw]
// Shapes    planes as they lie in memory if they are of the type summed in, else widened copies; masks leave out the
//           lanes, and bits the rows, that are not in the image, so that no border is stored
// Tiling    thread: (plane, band of rows); registers: R rows x NV vectors against 3 rows of taps; of a weight gradient 3
//           rows x TR columns of taps, and rows of dy
// Cost      2*N*C*OH*OW*KH*KW flops;  a row of x is loaded once for the R rows that it meets: loads per FMA 1/3 + 1/(3 R)
//           at stride 1; two loads and a shuffle for each at stride 2.  Lanes beyond OW are wasted
// Limits    NCHW, one input and one output channel per group, and, but for bwd_input, a horizontal stride of 1, or of 2
//           both ways
// Source    Lu, Zhang, Wang, Optimizing Depthwise Separable Convolution Operations on GPUs, TPDS 33(1), 2022

namespace depthwise_planes {
namespace {

#include "cpu/conv2d/planes.h"

constexpr int R = PYCONV_BYTES == 64 ? 7 : 4;   // rows of a tile of 2 vectors; + 3 weights and a vector of x
constexpr int TR = PYCONV_BYTES == 64 ? 7 : 3;  // columns of taps of a weight gradient; + 3 rows of dy and x

// Lanes of the L pixels at `from`, `from` + S, ... of a row that lie in it, as the S vectors they are loaded from.
template <class A, int S>
struct Pixels {
  Lanes<A> first, second, joined;
  Pixels() = default;
  Pixels(int64_t from, int64_t columns, int64_t outputs)
      : first(part(from, 1, columns, Vec<A>::size)),
        second(part(from + Vec<A>::size, 1, columns, Vec<A>::size)),
        joined(part(from, S, columns, outputs)) {}

  // Of the first `count` lanes.
  static Lanes<A> part(int64_t from, int64_t step, int64_t columns, int64_t count) {
    const int64_t low = from >= 0 ? 0 : divide_up(-from, step);
    return Lanes<A>(low, from >= columns ? 0 : at_most(divide_up(columns - from, step), at_most(count, Vec<A>::size)));
  }
  // In registers.
  inline __attribute__((always_inline)) Pixels kept() const {
    Pixels r;
    r.first = keep(first), r.joined = keep(joined);
    if (S > 1) r.second = keep(second);
    return r;
  }
  inline __attribute__((always_inline)) vec<A> load(const A* at) const {
    constexpr int64_t L = Vec<A>::size;
    static constexpr PairOrder<A> order = every_other<A>();
    if constexpr (S == 1) return load_lanes(at, first);
    return shuffle<A>(load_lanes(at, first), load_lanes(at + L, second), order.first);
  }
};

// sum[r][v] += w[k][kw] * row S*r + k, over KW columns of taps.
template <class A, int S, int SW, int K, int NR, int NV>
PYCONV_INLINE void multiply(const Run& run, const A* x, int64_t KW, int64_t apart, const Pixels<A, SW>* lanes,
                            const A* w, vec<A> (&sum)[NR][NV]) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t kw = 0; kw < KW; kw++, lanes += NV) {
    vec<A> weight[K];
    _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) weight[k] = keep(splat(w[k * KW + kw]));
    Pixels<A, SW> here[NV];
    _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) here[v] = lanes[v].kept();
    const A* at = x + run.at + kw * apart;
    _Pragma("GCC unroll 16") for (int i = 0; i < S * (NR - 1) + K; i++, at += run.apart) {
      if (!(run.inside >> i & 1)) continue;
      _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) {
        const vec<A> pixels = keep(here[v].load(at + v * SW * L));
        _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) {
          if (i >= k && (i - k) % S == 0 && (i - k) / S < NR) sum[(i - k) / S][v] += weight[k] * pixels;
        }
      }
    }
  }
}

// Where a tile of the output stands: `count` rows that meet the runs, the first `columns` of its vectors.
struct Tile {
  const Run* run;
  int64_t runs, count, columns;

  Tile(const Tiles& tiles, int64_t i, int64_t columns)
      : run(tiles.runs + i * tiles.size),
        runs(tiles.counts[i]),
        count(tiles.first[i + 1] - tiles.first[i]),
        columns(columns) {}
};

// Micro-kernel: a tile of one plane. x: where column 0 of the tile meets tap 0; w: taps in ascending order, KW to a row.
template <class A, int S, int SW, int NR, int NV>
PYCONV_NOINLINE void rows_tile(const Tile& tile, const A* x, const Pixels<A, SW>* lanes, int64_t KW, int64_t apart,
                               const A* w, A bias, A* y, int64_t pitch, const Finish<A>& finish) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[NR][NV];
  _Pragma("GCC unroll 7") for (int r = 0; r < NR; r++) {
    _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) sum[r][v] = splat(bias);
  }
  for (const Run* run = tile.run; run < tile.run + tile.runs; w += run->taps * KW, run++) {
    if (run->taps == 3) {
      multiply<A, S, SW, 3>(*run, x, KW, apart, lanes, w, sum);
    } else {
      multiply<A, 1, SW, 1>(*run, x, KW, apart, lanes, w, sum);
    }
  }
  _Pragma("GCC unroll 7") for (int r = 0; r < NR; r++) {
    if (r >= tile.count) continue;
    _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) {
      const int64_t left = tile.columns - v * L;
      if (left >= L) {
        finish.store(y + r * pitch + v * L, sum[r][v]);
      } else if (left > 0) {
        finish.store_first(y + r * pitch + v * L, sum[r][v], left);
      }
    }
  }
}

// How the columns of a row of output are cut: blocks of NV vectors, and their lanes for every column of taps.
template <class A, int SW>
struct Blocks {
  static constexpr int64_t L = Vec<A>::size;
  int64_t NV, n;
  Pixels<A, SW>* lanes;  // (n, taps, NV)

  static int64_t bytes(int64_t out, int64_t taps) { return (divide_up(out, L) + 1) * taps * sizeof(Pixels<A, SW>); }
  Blocks(const Line& w, int64_t most, void* memory)
      : NV(at_least(at_most(divide_up(w.out, L), most), 1)),
        n(divide_up(w.out, NV * L)),
        lanes(static_cast<Pixels<A, SW>*>(memory)) {}
  void list(const Line& w) {
    for (int64_t i = 0; i < n * w.taps * NV; i++) {
      const int64_t v = i % NV + i / NV / w.taps * NV, t = i / NV % w.taps;
      lanes[i] = Pixels<A, SW>(v * L * SW + w.low + t * w.apart, w.source, w.out - v * L);
    }
  }
};

// Tiles [first, last) of the rows of one phase of one plane.
template <class A, int S, int SW>
void multiply_plane(const Line& w, const Tiles& tiles, int64_t first, int64_t last, const Blocks<A, SW>& blocks,
                    const A* x, const A* taps, A bias, A* y, int64_t pitch, const Finish<A>& finish) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t wide = blocks.NV * L;
  for (int64_t i = first; i < last; i++) {
    A* row = y + (tiles.first[i] - tiles.first[first]) * pitch;
    const Pixels<A, SW>* lanes = blocks.lanes;
    const A* at = x + w.low;
    for (int64_t o = 0; o < w.out; o += wide, at += wide * SW, lanes += w.taps * blocks.NV) {
      const Tile tile(tiles, i, w.out - o);
      if (blocks.NV == 1) {
        rows_tile<A, S, SW, R, 1>(tile, at, lanes, w.taps, w.apart, taps, bias, row + o, pitch, finish);
      } else {
        rows_tile<A, S, SW, R, 2>(tile, at, lanes, w.taps, w.apart, taps, bias, row + o, pitch, finish);
      }
    }
  }
}

// Rows [top, bottom) of a plane, widened unless they are of the type summed in. Row 0 would stand at the result.
template <class T, class A>
const A* widened(const T* plane, int64_t W, int64_t top, int64_t bottom, A* copy) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return plane;
  } else {
    copy_rows(plane + top * W, 0, 1, 1, (bottom - top) * W, 0, copy);
    return copy - top * W;
  }
}

// Taps of one channel and phase, in ascending order of what they meet.
template <class T, class A>
void widen_taps(const T* w, int64_t KW, const Axis& ah, const Axis& aw, A* to) {
  for (int64_t i = 0; i < ah.taps; i++) {
    const int64_t th = ah.offset_step < 0 ? ah.taps - 1 - i : i;
    for (int64_t j = 0; j < aw.taps; j++) {
      const int64_t tw = aw.offset_step < 0 ? aw.taps - 1 - j : j;
      *to++ = widen(w[(ah.tap0 + th * ah.tap_step) * KW + aw.tap0 + tw * aw.tap_step]);
    }
  }
}

// Rows of output of a job: all, unless there are few planes.
int64_t rows_per_job(int64_t out, int64_t planes) {
  return planes >= 16 ? out : at_most(round_up(divide_up(out, divide_up(16, at_least(planes, 1))), R), out);
}

// Planes of a source image, each with taps of its own.
template <class T, int S>
void run(const Conv2dShape& s, bool gradient, const T* source, const T* weights, const Finish<T>& finish, T* output) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Grid h = height(s, gradient), w = width(s, gradient);
  const Reach down(h);
  const int64_t phases = h.phases * w.phases, taps = s.KH * s.KW, planes = s.N * s.G;
  const int64_t band = rows_per_job(h.out(), planes), bands = divide_up(h.out(), band);
  const bool in_lines = w.phases > 1 || sizeof(T) != sizeof(A);  // the output waits in lines of its phases
  const int64_t pitch = round_up(w.out(), L), line = band * pitch;
  const int64_t tiles_bytes = Tiles::bytes(h.out(), s.KH, R), lanes_bytes = Blocks<A, S>::bytes(w.out(), s.KW);
  const Index4 O = gradient ? s.x_index() : s.y_index();

  char* memory = static_cast<char*>(scratch(0, h.phases * tiles_bytes + w.phases * lanes_bytes));
  const auto tiles_of = [&](const Line& lh, int64_t p) { return Tiles(lh, R, memory + p * tiles_bytes); };
  const auto blocks_of = [&](const Line& lw, int64_t q) {
    return Blocks<A, S>(lw, 2, memory + h.phases * tiles_bytes + q * lanes_bytes);
  };
  for (int64_t p = 0; p < h.phases; p++) tiles_of(Line(h.axis(p)), p).list(Line(h.axis(p)), R, S, true, w.source);
  for (int64_t q = 0; q < w.phases; q++) blocks_of(Line(w.axis(q)), q).list(Line(w.axis(q)));

  const int64_t flops = 2 * band * w.total * h.phases * taps / phases;
  parallel_for(planes * bands, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    A* wide = static_cast<A*>(scratch(1, sizeof(A) * (taps + down.extent(band) * w.source + L)));
    A* lines = static_cast<A*>(scratch(2, in_lines ? sizeof(A) * (phases + 2) * line : 0));
    for (int64_t item = begin; item < end; item++) {
      const int64_t plane = item / bands, c = plane % s.G, oh = item % bands * band;
      const int64_t here = at_most(band, h.out() - oh);
      const A* x =
          widened(source + plane * h.source * w.source, w.source, down.top(oh), down.bottom(oh, here), wide + taps);
      T* to = output + plane * h.total * w.total;
      for (int64_t p = 0; p < phases; p++) {
        const Axis ah = h.axis(p / w.phases), aw = w.axis(p % w.phases);
        const Line lh(ah), lw(aw);
        const Tiles tiles = tiles_of(lh, p / w.phases);
        widen_taps(weights + c * taps, s.KW, ah, aw, wide);
        A *y = lines + p * line, b = 0;
        int64_t y_pitch = pitch;
        Finish<A> in_place;
        if constexpr (sizeof(T) == sizeof(A)) {
          if (!in_lines) {
            y = to + (lh.out0 + oh * lh.out_step) * w.total, y_pitch = lh.out_step * w.total;
            b = finish.bias ? finish.bias[c] : 0, in_place = finish;
          }
        }
        multiply_plane<A, S, S>(lw, tiles, oh / R, at_most(divide_up(oh + here, R), tiles.n),
                                blocks_of(lw, p % w.phases), x, wide, b, y, y_pitch, in_place);
      }
      if (in_lines) {
        unpack(lines, 1, line, pitch, 1, finish.bias ? finish.bias + c : nullptr, h, w, oh, here, O, to, finish);
      }
    }
  });
}

// sums[k][kw] += row S*r + k, times dy's row r.
template <class A, int S, int SW, int K>
PYCONV_INLINE void multiply_weight(const Run& run, const A* x, int64_t KW, int64_t apart, const Pixels<A, SW>* lanes,
                                   const vec<A> (&g)[R], A* sums) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t kw = 0; kw < KW; kw++, lanes++, sums += L) {
    vec<A> sum[K];
    _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) sum[k] = load(sums + k * KW * L);
    const Pixels<A, SW> here = lanes->kept();
    const A* at = x + run.at + kw * apart;
    _Pragma("GCC unroll 16") for (int i = 0; i < S * (R - 1) + K; i++, at += run.apart) {
      if (!(run.inside >> i & 1)) continue;
      const vec<A> pixels = keep(here.load(at));
      _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) {
        if (i >= k && (i - k) % S == 0 && (i - k) / S < R) {
          sum[k] = multiply_add(here.joined, pixels, g[(i - k) / S], sum[k]);
        }
      }
    }
    _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) store(sums + k * KW * L, sum[k]);
  }
}

// Micro-kernel of the weight gradient: one vector of each of up to R rows of dy. Fewer than R meet one row of taps at a
// time: a row of x that none of them meets must not be multiplied, not even by zero.
template <class A, int S, int SW>
PYCONV_NOINLINE void weight_tile(const Tile& tile, const A* x, const Pixels<A, SW>* lanes, int64_t KW, int64_t apart,
                                 const A* dy, int64_t pitch, A* sums) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> g[R];
  _Pragma("GCC unroll 7") for (int r = 0; r < R; r++) {
    g[r] = r < tile.count ? load_first(dy + r * pitch, at_most(tile.columns, L)) : vec<A>{};
  }
  for (const Run* run = tile.run; run < tile.run + tile.runs; sums += run->taps * KW * L, run++) {
    if (run->taps == 3) {
      multiply_weight<A, S, SW, 3>(*run, x, KW, apart, lanes, g, sums);
    } else {
      multiply_weight<A, 1, SW, 1>(*run, x, KW, apart, lanes, g, sums);
    }
  }
}

// Bands of images are dealt into chunks, each with sums of its own, lane by lane; lanes and chunks are added in their
// order at the end: parallel, and the same bits for any number of threads.
template <class T, int S>
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Grid h = height(s, false), w = width(s, false);
  const Line lh(h.axis(0)), lw(w.axis(0));
  const Reach down(h);
  const int64_t taps = s.KH * s.KW, band = rows_per_job(s.OH, s.N * s.G), bands = divide_up(s.OH, band);
  const int64_t units = s.N * bands, chunks = at_least(at_most(units, divide_up(16, s.G)), 1);
  const int64_t share = divide_up(units, chunks);

  const int64_t tiles_bytes = Tiles::bytes(s.OH, s.KH, R), lanes_bytes = Blocks<A, S>::bytes(s.OW, s.KW);
  char* memory =
      static_cast<char*>(scratch(0, tiles_bytes + round_up(lanes_bytes, 64) + sizeof(A) * chunks * s.G * taps));
  A* totals = reinterpret_cast<A*>(memory + tiles_bytes + round_up(lanes_bytes, 64));  // (chunk, channel, tap)
  Tiles tiles(lh, R, memory);
  tiles.list(lh, R, S, false, s.IW);
  Blocks<A, S> blocks(lw, 1, memory + tiles_bytes);
  blocks.list(lw);

  const int64_t flops = 2 * share * band * s.OW * taps;
  parallel_for(chunks * s.G, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    A* sums = static_cast<A*>(scratch(1, sizeof(A) * (taps * L + down.extent(band) * s.IW + band * s.OW + 2 * L)));
    A *copy_x = sums + taps * L, *copy_dy = copy_x + down.extent(band) * s.IW + L;
    for (int64_t item = begin; item < end; item++) {
      const int64_t chunk = item / s.G, c = item % s.G;
      clear(sums, taps * L);
      for (int64_t unit = chunk * share; unit < at_most((chunk + 1) * share, units); unit++) {
        const int64_t plane = unit / bands * s.G + c, oh = unit % bands * band, rows = at_most(band, s.OH - oh);
        const A* px = widened(x + plane * s.IH * s.IW, s.IW, down.top(oh), down.bottom(oh, rows), copy_x);
        const A* py = widened(dy + plane * s.OH * s.OW, s.OW, oh, oh + rows, copy_dy);
        for (int64_t i = oh / R; i * R < oh + rows; i++) {
          for (int64_t b = 0; b < blocks.n; b++) {
            weight_tile<A, S, S>(Tile(tiles, i, s.OW - b * L), px + b * L * S + lw.low, blocks.lanes + b * s.KW, s.KW,
                                 s.DW, py + i * R * s.OW + b * L, s.OW, sums);
          }
        }
      }
      for (int64_t t = 0; t < taps; t++) totals[item * taps + t] = sum_lanes<A>(load(sums + t * L));
    }
  });

  for (int64_t i = 0; i < s.G * taps; i++) {
    A total = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) total += totals[chunk * s.G * taps + i];
    pyconv::store(dw + i, total);
  }
}

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    with_int<2>(
        s.SW, [&](auto stride) { run<T, decltype(stride)::value>(s, false, (const T*)x, (const T*)w, {e, y}, (T*)y); });
  });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    run<T, 1>(s, true, (const T*)dy, (const T*)w, {}, (T*)dx);
  });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    with_int<2>(s.SW,
                [&](auto stride) { bwd_weight<T, decltype(stride)::value>(s, (const T*)dy, (const T*)x, (T*)dw); });
  });
}

}  // namespace depthwise_planes

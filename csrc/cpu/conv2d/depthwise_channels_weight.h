// The weight gradient of depthwise_channels.h, included once per ISA by it.

template <class X, class A, int S, int K>
PYCONV_INLINE void multiply_weight(const Run& run, const X* x, const vec<A> (&g)[PW], A* sums) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[K];
  _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) sum[k] = load(sums + k * L);
  const X* at = x + run.at;
  _Pragma("GCC unroll 30") for (int j = 0; j < (PW - 1) * S + K; j++, at += run.apart) {
    if (!(run.inside >> j & 1)) continue;
    const vec<A> pixel = keep(load_wide(at));
    _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) {
      if (j >= k && (j - k) % S == 0 && (j - k) / S < PW) sum[k] += pixel * g[(j - k) / S];
    }
  }
  _Pragma("GCC unroll 3") for (int k = 0; k < K; k++) store(sums + k * L, sum[k]);
}

// Micro-kernel of the weight gradient: sums[t] += dy[p] * x[at(p) + off[t]] over a tile of one vector of channels.
// Tiles of fewer than PW pixels have runs of one tap, or a pixel that none of theirs meets would be multiplied by zero.
template <class X, class A, int S>
PYCONV_NOINLINE void weight_tile(const Tile& tile, const X* x, const X* dy, A* sums) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> g[PW];
  _Pragma("GCC unroll 8") for (int p = 0; p < PW; p++) {
    g[p] = p < tile.count ? load_wide(dy + p * tile.to_step) : vec<A>{};
  }
  for (int64_t r = 0; r < tile.rows; r++, x += tile.row) {
    for (const Run* run = tile.run; run < tile.run + tile.runs; sums += run->taps * L, run++) {
      if (run->taps == 3) {
        multiply_weight<X, A, S, 3>(*run, x, g, sums);
      } else {
        multiply_weight<X, A, 1, 1>(*run, x, g, sums);
      }
    }
  }
}

// The sums of output rows [oh, oh + rows) of one image, vectors [v0, v0 + here).
template <class X, class A>
void add_weight_rows(const View<X>& x, const View<X>& dy, const Vectors<A>& vectors, const Line& h, const Line& w,
                     const Tiles& tiles, int64_t oh, int64_t rows, int64_t v0, int64_t here, int64_t taps, A* sums,
                     bool ahead) {
  constexpr int64_t L = Vec<A>::size;
  const bool copied = vectors.copied;
  for (int64_t o = oh; o < at_most(oh + rows, h.out); o++) {
    int64_t first, last;
    h.inside(o, first, last);
    const X* row = x.at + (o * h.step + h.low + first * h.apart - x.top) * x.row;
    for (int64_t i = 0; i < tiles.n; i++) {
      const Tile tile(tiles, i, last - first, h.apart * x.row, dy.column);
      const X* g = dy.at + (o - dy.top) * dy.row + tiles.first[i] * dy.column;
      for (int64_t v = v0; v < v0 + here; v++) {
        const int64_t at = copied ? (v - v0) * L : vectors.first(v);
        A* to = sums + (v * taps + first * w.taps) * L;
        if (ahead) {
          prefetch(row + at + tile.rows * tile.row + tiles.first[i] * w.step * x.column, h.step, x.row,
                   tile.count * w.step, x.column);
          prefetch(g + at + dy.row, 1, 0, tile.count, dy.column);
        }
        if (w.step == 2) {
          weight_tile<X, A, 2>(tile, row + at, g + at, to);
        } else {
          weight_tile<X, A, 1>(tile, row + at, g + at, to);
        }
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
  const Line lh(h.axis(0)), lw(w.axis(0));
  const Reach down(h);
  const Vectors<A> vectors(s.IC, s.layout == Layout::nchw, is_copied(s));
  const bool copied = vectors.copied, ahead = s.bytes() >= prefetch_bytes;
  const int64_t C = s.IC, taps = s.KH * s.KW;
  // Small tiles load and store their sums too often: with AVX2 960 channels at 7x7 took 2.4 times as long, 14x14 0.8.
  const bool pays = many_registers || s.OH * s.OW >= 100;
  Windows windows(s, false, pays && (!copied || vectors.planes));
  const Jobs jobs = windows.S != 0 ? Jobs(s.N, windows.down, windows.rows, vectors)
                                   : Jobs(s, h, down, vectors, (s.IW + s.OW) * L * sizeof(A));
  const int64_t blocks = jobs.blocks.pieces, units = s.N * jobs.bands;
  const int64_t chunks = at_least(at_most(units, divide_up(16, blocks)), 1), share = divide_up(units, chunks);

  const int64_t size = vectors.count * taps * L;  // (vector, tap, L), one of them a chunk
  A* sums =
      static_cast<A*>(scratch(0, sizeof(A) * chunks * size + at_least(Tiles::bytes(s.OW, s.KW, PW), windows.bytes())));
  char* lists = reinterpret_cast<char*>(sums + chunks * size);
  Tiles tiles(lw, PW, lists);
  if (windows.S != 0) {
    windows.list(lists);
  } else {
    tiles.list(lw, PW, 2, false, copied ? jobs.held * L : C);
  }

  const int64_t flops = 2 * share * jobs.band * s.OW * taps * jobs.held * L;
  parallel_for(chunks * blocks, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    const int64_t piece = copied ? jobs.held * L : 0;
    const int64_t x_size = (down.extent(jobs.band) * s.IW + L) * piece, dy_size = (jobs.band * s.OW + L) * piece;
    A* copy = static_cast<A*>(scratch(1, sizeof(A) * (x_size + dy_size)));
    for (int64_t item = begin; item < end; item++) {
      const int64_t chunk = item / blocks, block = item % blocks;
      const int64_t v0 = jobs.blocks.cut(block), here = jobs.blocks.cut(block + 1) - v0;
      A* sum = sums + chunk * size;
      for (int64_t i = v0 * taps; i < (v0 + here) * taps; i++) store(sum + i * L, vec<A>{});
      const auto add = [&](const auto& vx, const auto& vy, int64_t oh, bool ahead) {
        if (windows.S != 0 && vectors.planes) {
          windows.add_weight(vx, vy, Vectors<A>(L, false, false), oh, oh + jobs.band, 0, 1, sum + v0 * taps * L, false);
        } else if (windows.S != 0) {
          windows.add_weight(vx, vy, vectors, oh, oh + jobs.band, v0, here, sum, ahead);
        } else {
          add_weight_rows(vx, vy, vectors, lh, lw, tiles, oh, jobs.band, v0, here, taps, sum, ahead);
        }
      };
      for (int64_t unit = chunk * share; unit < at_most((chunk + 1) * share, units); unit++) {
        const int64_t n = unit / jobs.bands, oh = unit % jobs.bands * jobs.band,
                      end_row = at_most(oh + jobs.band, s.OH);
        const T *image = x + n * s.IH * s.IW * C, *dy_image = dy + n * s.OH * s.OW * C;
        if (!copied) {
          add(View<T>{image, s.IW * C, C, 0}, View<T>{dy_image, s.OW * C, C, 0}, oh, ahead);
          continue;
        }
        const View<A> vx =
            copy_of(image, vectors, s.IH, s.IW, v0, here, jobs.held, down.top(oh), down.bottom(oh, jobs.band), copy);
        const View<A> vy = copy_of(dy_image, vectors, s.OH, s.OW, v0, here, jobs.held, oh, end_row, copy + x_size);
        add(vx, vy, oh, false);
      }
    }
  });

  for (int64_t v = 0; v < vectors.count; v++) {
    for (int64_t t = 0; t < taps; t++) {
      vec<A> total = {};
      for (int64_t chunk = 0; chunk < chunks; chunk++) total += load(sums + chunk * size + (v * taps + t) * L);
      A lane[L];
      store(lane, total);
      for (int64_t l = 0; l < vectors.lanes; l++) pyconv::store(dw + (vectors.first(v) + l) * taps + t, lane[l]);
    }
  }
}

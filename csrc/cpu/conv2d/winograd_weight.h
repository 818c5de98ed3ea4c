// conv2d / Winograd / weight gradient.
// Computes  dw[k,c] = AT [ sum_t (G dy G') * (BT x B) ] A on the tiles t of outputs: dy is the filter, F(3x3, 4x4) where
//           the forward pass is F(4x4, 3x3). The points, and with them BT, are those of the forward pass
// Shapes    V (f, tile, 2 L);  D (k block, f, tile, L);  sums (part, OC, taps, channels rounded up to L)
// Tiling    thread: a range of (part of the tiles, block of L output channels); V of 2 L channels and D of some tiles at
//           a time, all its own. Products over those tiles end in registers and are transformed and added at once: 9
//           values where M would have 36, and sums that restart with every block of tiles.
//           The parts depend on the shape alone and are added in their order: the same bits for any number of threads
// Cost      as the forward pass; an output transform per (k, c) and block of tiles; the input is transformed again
//           by each thread that shares a part
// Limits, Source   winograd.h

constexpr int64_t part_tiles = 64, most_parts = 8;  // a part is worth its sum from 64 tiles on
constexpr int64_t sums_bytes = int64_t(8) << 20;    // all parts together
// Tiles transformed at a time. 64 and 160 instead of 32: ResNet's 128 channels at 28x28 1.0 and 1.08 times as fast, 512 at
// 7x7, N = 16, 1.38 and 1.35, DeepLab's 2048 at 33x33 1.07 and 1.22, VGG's 64 at 224x224 0.98 and 0.98.
constexpr int64_t block_tiles = 160;

template <class T>
struct WeightProblem {
  using A = acc_t<T>;
  static constexpr int64_t L = Vec<A>::size, BN = 2 * L;
  static constexpr int R = PYCONV_BYTES == 16 ? L : L / 2;  // rows of the register tile: output channels
  Layout layout;
  Transform<A> transform;
  int64_t C, K, IH, IW, PH, PW;  // channels of x and of dy
  const T* x;
  Index4 X;
  const T* dy;
  Index4 Y;
  T* dw;  // (K, C, KH, KW)

  const Tiles& tiles() const { return transform.tiles; }
  int64_t frequencies() const { return transform.frequencies(); }
  int64_t taps() const { return transform.taps(); }
  int64_t c_blocks() const { return divide_up(C, BN); }
  int64_t k_blocks() const { return divide_up(K, L); }
  int64_t vectors(int64_t c_block) const { return C - c_block * BN > L ? 2 : 1; }
  int64_t v_plane(int64_t count) const { return BN * count + plane_pad<A>; }
  int64_t d_plane(int64_t count) const { return L * count + plane_pad<A>; }
  static constexpr int64_t m_plane = R * BN + L;
  int64_t sum_size() const { return K * taps() * round_up(C, L); }

  int64_t parts() const {
    const int64_t fit = sums_bytes / (sum_size() * int64_t(sizeof(A)));
    return at_least(at_most(at_most(tiles().count() / part_tiles, most_parts), fit), 1);
  }
  int64_t part_begin(int64_t part) const {
    const int64_t phases = tiles().phases();
    return tiles().count() / phases * part / parts() * phases;
  }

  // Tiles transformed at a time; of the shape alone, as it decides the order of sums.
  int64_t tiles_per_block(int64_t part) const {
    const int64_t blocks = divide_up(part, block_tiles);
    return round_up(divide_up(part, blocks), tiles().phases());
  }

  void make_v(int64_t c_block, int64_t begin, int64_t end, A* v, A* piece, A* half) const {
    const int64_t plane = v_plane(end - begin), step = vectors(c_block) * L;
    for (int64_t c = c_block * BN; c < at_most((c_block + 1) * BN, C); c += L, v += L) {
      for (int64_t t = begin; t < end;) {
        const Run run = tiles().run(t, end);
        pack(x + X(run.n, c, 0, 0), X, at_most(L, C - c), Span{run.oh - PH, tiles().DH, transform.h.points, IH},
             Span{run.ow - PW, 1, transform.input_columns(run.bundles), IW}, piece);
        transform.inputs(piece, run.bundles, half, v + (t - begin) * step, plane, step);
        t += run.bundles * tiles().phases();
      }
    }
  }

  void make_d(int64_t k_block, int64_t begin, int64_t end, A* d, A* piece, A* half) const {
    const int64_t k = k_block * L;
    for (int64_t t = begin; t < end;) {
      const Run run = tiles().run(t, end);
      pack(dy + Y(run.n, k, 0, 0), Y, at_most(L, K - k), Span{run.oh, tiles().DH, tiles().rows, tiles().OH},
           Span{run.ow, 1, run.bundles * tiles().width(), tiles().OW}, piece);
      transform.gradients(piece, run.bundles, half, d + (t - begin) * L, d_plane(end - begin), L);
      t += run.bundles * tiles().phases();
    }
  }

  // dw[k, c.., :] = the taps of `channels` channels. Of 9 known ones a transpose moves 9 vectors, not L.
  void store_taps(int64_t k, int64_t c, int64_t channels, const A* tap) const {
    taps() == 9 ? store_taps<9>(k, c, channels, tap) : store_taps<0>(k, c, channels, tap);
  }
  template <int known>
  void store_taps(int64_t k, int64_t c, int64_t channels, const A* tap) const {
    const int64_t count = known ? known : taps();
    if (layout == Layout::nhwc) {
      T* to = dw + k * count * C + c;
      for (int64_t e = 0; e < count; e++) store_up_to(to + e * C, load(tap + e * L), channels);
      return;
    }
    const bool one = count <= L;
    for (int64_t e = 0; e < count; e += L) {  // L taps at a time become runs of a channel's own
      vec<A> r[L];
      _Pragma("GCC unroll 16") for (int64_t j = 0; j < L; j++) {
        r[j] = e + j < count ? load(tap + (e + j) * L) : vec<A>{};
      }
      transpose<A>(r);
      T* to = dw + (k * C + c) * count + e;
      _Pragma("GCC unroll 16") for (int64_t i = 0; i < L; i++) {
        if (one && (c + i) * count + L <= C * count) {
          store_narrow(to + i * count, r[i]);  // what is written beyond belongs to the channels written next
        } else if (i < channels) {
          store_up_to(to + i * count, r[i], count - e);
        }
      }
    }
  }

  // The products of R output channels from k on with one block of c, over the tiles of a block; added to `sum`
  // (K, taps, channels) unless it is the first, and stored into dw if it is the last.
  template <int NV>
  void accumulate(int64_t k, int64_t c_block, int64_t count, const A* v, const A* d, A* m, A* half, A* sum, bool first,
                  bool last) const {
    for (int64_t f = 0; f < frequencies(); f++) {
      multiply<A, R, NV, 1>(d + f * d_plane(count), L, v + f * v_plane(count), count, m + f * m_plane, true);
    }
    alignas(64) A tap[49 * L];
    const int64_t rounded = round_up(C, L);
    for (int64_t r = 0; r < R && k + r < K; r++) {
      for (int64_t j = 0; j < NV; j++) {
        const int64_t c = c_block * BN + j * L;
        transform.weights(m + (r * NV + j) * L, m_plane, half, tap);
        A* at = sum + (k + r) * taps() * rounded + c;
        for (int64_t e = 0; e < taps() && !(first && last); e++) {
          const vec<A> total = first ? load(tap + e * L) : load(at + e * rounded) + load(tap + e * L);
          last ? store(tap + e * L, total) : store(at + e * rounded, total);
        }
        if (last) store_taps(k + r, c, at_most(L, C - c), tap);
      }
    }
  }

  // Blocks [k0, k1) of output channels of the part [begin, end) of the tiles.
  void run_part(int64_t begin, int64_t end, int64_t k0, int64_t k1, A* sum, bool only) const {
    const int64_t per_block = at_most(tiles_per_block(end - begin), end - begin);
    const int64_t v_size = frequencies() * v_plane(per_block), d_size = frequencies() * d_plane(per_block);
    const int64_t size = v_size + (k1 - k0) * d_size + 2 * transform.room() + frequencies() * m_plane;
    A* v = static_cast<A*>(scratch(1, sizeof(A) * size));
    A *d = v + v_size, *piece = d + (k1 - k0) * d_size, *half = piece + transform.room(), *m = half + transform.room();
    for (int64_t t = begin; t < end; t += per_block) {
      const int64_t stop = at_most(t + per_block, end), count = stop - t;
      const bool first = t == begin, last = only && stop == end;
      for (int64_t k = k0; k < k1; k++) make_d(k, t, stop, d + (k - k0) * d_size, piece, half);
      for (int64_t c = 0; c < c_blocks(); c++) {
        make_v(c, t, stop, v, piece, half);
        for (int64_t k = k0 * L; k < at_most(k1 * L, K); k += R) {
          const A* dk = d + (k / L - k0) * d_size + k % L;
          if (vectors(c) == 2) {
            accumulate<2>(k, c, count, v, dk, m, half, sum, first, last);
          } else {
            accumulate<1>(k, c, count, v, dk, m, half, sum, first, last);
          }
        }
      }
    }
  }

  void run() const {
    const int64_t all = tiles().count(), S = parts(), rounded = round_up(C, L);
    if (all == 0) {
      for (int64_t i = 0; i < K * C * taps(); i++) pyconv::store(dw + i, A(0));
      return;
    }
    A* sums = static_cast<A*>(scratch(0, sizeof(A) * S * sum_size()));
    const int64_t flops = 2 * frequencies() * divide_up(all, S) * C * L;
    parallel_for(S * k_blocks(), divide_up(serial_flops, flops), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end;) {
        const int64_t s = i / k_blocks(), stop = at_most(end, (s + 1) * k_blocks());
        run_part(part_begin(s), part_begin(s + 1), i - s * k_blocks(), stop - s * k_blocks(), sums + s * sum_size(),
                 S == 1);
        i = stop;
      }
    });
    if (S == 1) return;
    parallel_for(K, divide_up(serial_flops, taps() * C * S), [&](int64_t begin, int64_t end) {
      alignas(64) A tap[49 * L];
      for (int64_t k = begin; k < end; k++) {
        for (int64_t c = 0; c < C; c += L) {
          for (int64_t e = 0; e < taps(); e++) {
            const A* from = sums + (k * taps() + e) * rounded + c;
            vec<A> total = load(from);
            for (int64_t s = 1; s < S; s++) total += load(from + s * sum_size());
            store(tap + e * L, total);
          }
          store_taps(k, c, at_most(L, C - c), tap);
        }
      }
    });
  }
};

// One group at stride 1; dw (K, C, KH, KW) in `layout`, which need not be that of x and dy.
template <class T>
void weight_gradient(const Conv2dShape& s, const T* dy, const Index4& Y, const T* x, const Index4& X, T* dw,
                     Layout layout) {
  const Transform<acc_t<T>> transform = transform_of<acc_t<T>>(s, s.OH, s.OW);
  WeightProblem<T>{layout, transform, s.ic_per_group(), s.oc_per_group(), s.IH, s.IW, s.PH, s.PW, x, X, dy, Y, dw}
      .run();
}

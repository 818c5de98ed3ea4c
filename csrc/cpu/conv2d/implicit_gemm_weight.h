// The weight gradient of implicit_gemm.h, included by it: dw'(j, OC) = U (j, p) dy'(p, OC) in NCHW, dw (OC, j) =
// dy'(OC, p) U (p, j) in channels_last, or what NCHW does where that fills vectors better: 24 taps leave a quarter idle.
// In channels_last both matrices have terms, which are pixels, beside terms: a panel is read where it lies.

constexpr int64_t chunk_pixels = 1024;                 // of a sum: to add it to the others is 3 % of making it
constexpr int64_t most_sum_bytes = int64_t(32) << 20;  // of all chunks
constexpr int64_t most_chunks = 8;
constexpr int64_t dy_bytes = 512 << 10;  // of dy' for KC pixels, in L2

// The slabs are cut into chunks, each with a sum of its own, added at the end in their order: parallel, and the same
// bits for any number of threads. Where chunks are few, the panels of the side that has more are cut into parts.
template <class T>
struct WeightGradient {
  using A = acc_t<T>;
  using P = panel_t<T>;
  static constexpr int64_t L = Vec<A>::size, BN = 2 * L;
  Im2col<T> u;
  const Conv2dShape& s;
  const T* dy;
  const int64_t* tap;
  int64_t J, M;  // M per group

  struct Part {  // panels of U and of dy
    int64_t i0, i1, q0, q1;
  };

  bool nchw() const { return s.layout == Layout::nchw; }
  // What n lanes take: half a panel 3/4 of a whole one, whose two vectors share every broadcast.
  static int64_t time_of(int64_t n) { return round_up(n, L) + (n % BN > 0 && n % BN <= L ? L / 2 : 0); }
  // Tiles are (taps, channels), not (channels, taps). Two threads of Zen 5: 3 -> 96 channels 4x4 with stride 4 in
  // channels_last 1.18 times as fast as not turned, 16 -> 96 of 1x1 1.3.
  bool turned() const { return nchw() || time_of(J) * M > time_of(M) * J; }
  static int64_t panels(int64_t count, bool rows) { return rows ? RowPanels{count}.count() : divide_up(count, BN); }
  static int64_t begin(int64_t panel, int64_t count, bool rows) {
    return rows ? RowPanels{count}.begin(panel) : at_most(panel * BN, count);
  }
  int64_t u_panels() const { return panels(J, turned()); }
  int64_t dy_panels() const { return panels(M, !turned()); }
  int64_t tap_of(int64_t i) const { return begin(i, J, turned()); }
  int64_t channel_of(int64_t q) const { return begin(q, M, !turned()); }
  // dy' is packed some panels at a time.
  int64_t panel_size() const { return (KC + L) * (turned() || in_pairs<P> ? BN : MR); }
  int64_t dy_group() const { return at_most(at_least(dy_bytes / (panel_size() * int64_t(sizeof(P))), 1), dy_panels()); }
  int64_t sum_size() const { return u_panels() * dy_panels() * MR * BN; }

  // channels_last: columns [0, count) of `column` of the rows at `row`, a term each, as rows or as lanes of a product.
  // Rows that are used often are packed: their lines lie far apart.
  static Left<P> columns(const T* at, const int64_t* row, int64_t terms, const int64_t* column, int64_t count,
                         bool rows, int64_t uses, const Run* all, P* to) {
    Run runs[BN];
    const int64_t n = runs_of(column, count, runs);
    if constexpr (in_pairs<P>) {
      pack_b(at, row, terms, runs, n, to);
      return {to, 2, BN, all, 1};
    }
    if constexpr (std::is_same<T, P>::value) {
      const int64_t apart = terms > 1 ? row[1] - row[0] : BN;  // never 0, or nothing is summed
      const bool whole = count % (rows ? 2 : L) == 0;
      if (n == 1 && whole && (!rows || uses <= 2) && evenly_apart(row, terms)) {
        return {at + column[0] + row[0], 1, apart, all, 1};
      }
    }
    if constexpr (!in_pairs<P>) {
      const int64_t pitch = rows ? round_up(count, 2) : BN;
      copy_rows(at, row, terms, runs, n, to, pitch);
      return {to, 1, pitch, all, 1};
    }
  }

  // NCHW: channels [m, m + count) of dy, terms side by side, become lanes.
  Left<P> transposed(const T* at, const int64_t* row, int64_t terms, int64_t m, int64_t count, const Run* all,
                     P* to) const {
    Run runs[KC];
    const int64_t plane = s.OH * s.OW, n = runs_of(row, terms, runs);
    pack_b_turned(at + m * plane, plane, count, runs, n, to);
    return {to, 1, BN, all, 1};
  }

  struct Buffers {
    int64_t *pixel, *dy_pixel, *channel;  // offsets of the pixels of a slab in U and in dy, of channels in dy
    P *dy, *u;
    T* piece;
    Left<P>* panel;  // of dy'
  };

  // sum (U panel, dy panel, MR, BN) += the products of one slab.
  void add(const typename Im2col<T>::Slab& slab, const T* at, const T* from, const Part& part, const Buffers& b, A* sum,
           bool first) const {
    static constexpr A zero[BN] = {};
    const int64_t pixels = slab.images * slab.rows * s.OW, group = dy_group();
    Run runs[KC];
    for (int64_t p = 0; p < pixels; p += block_of(pixels)) {
      const int64_t terms = at_most(block_of(pixels), pixels - p);
      const Run all = {0, 0, terms};
      const int64_t n = nchw() ? runs_of(b.pixel + p, terms, runs) : 0;
      for (int64_t q0 = part.q0; q0 < part.q1; q0 += group) {
        const int64_t q1 = at_most(q0 + group, part.q1);
        for (int64_t q = q0; q < q1; q++) {
          const int64_t m = channel_of(q), count = channel_of(q + 1) - m;
          P* to = b.dy + (q - q0) * panel_size();
          b.panel[q - q0] = nchw() ? transposed(from, b.dy_pixel + p, terms, m, count, &all, to)
                                   : columns(from, b.dy_pixel + p, terms, b.channel + m, count, !turned(),
                                             part.i1 - part.i0, &all, to);
        }
        for (int64_t i = part.i0; i < part.i1; i++) {
          const int64_t j = tap_of(i), taps = tap_of(i + 1) - j;
          const Left<P> panel = nchw() ? left_of(at, tap + j, taps, runs, n, &all, b.u)
                                       : columns(at, b.pixel + p, terms, tap + j, taps, turned(), q1 - q0, &all, b.u);
          for (int64_t q = q0; q < q1; q++) {
            A* c = sum + (i * dy_panels() + q) * MR * BN;
            const bool start = first && p == 0;
            const Left<P>&left = turned() ? panel : b.panel[q - q0], &right = turned() ? b.panel[q - q0] : panel;
            const int64_t channels = channel_of(q + 1) - channel_of(q);
            multiply(turned() ? taps : channels, turned() ? channels : taps, left, Right<P>{right.a, right.term},
                     Start<A>{start ? zero : c, !start, !start}, Target<A>{c, nullptr, 0, 0, {}});
          }
        }
      }
    }
  }

  // dw of one tile: the chunks' sums in their order.
  void finish(const A* sums, int64_t chunks, int64_t g, int64_t i, int64_t q, T* dw) const {
    A tile[(MR + L) * BN];
    for (int64_t k = 0; k < MR * BN; k += L) {
      vec<A> total = {};
      for (int64_t chunk = 0; chunk < chunks; chunk++) {
        total += load(sums + ((chunk * s.G + g) * u_panels() * dy_panels() + i * dy_panels() + q) * MR * BN + k);
      }
      store(tile + k, total);
    }
    const int64_t m0 = channel_of(q), m1 = channel_of(q + 1), j0 = tap_of(i), j1 = tap_of(i + 1);
    dw += g * M * J;
    if (turned()) {
      for (int64_t j = j0; j < j1; j += L) {
        for (int64_t m = m0; m < m1; m += L) {
          store_columns(tile + (j - j0) * BN + m - m0, BN, dw + m * J + j, J, m1 - m, j1 - j, Finish<T>());
        }
      }
    } else {
      for (int64_t m = m0; m < m1; m++) {
        for (int64_t j = j0; j < j1; j += L) {
          store_up_to(dw + m * J + j, load(tile + (m - m0) * BN + j - j0), j1 - j);
        }
      }
    }
  }

  // Memory of a thread.
  Buffers buffers() const {
    const int64_t dy_size = dy_group() * panel_size() + L * BN, u_size = at_least((MR + 1) * KP<P>, (KC + L) * BN);
    const int64_t most = u.pixels();
    Buffers b;
    b.dy = static_cast<P*>(scratch(1, sizeof(P) * (dy_size + u_size) + sizeof(T) * u.piece_size()));
    b.u = b.dy + dy_size;
    b.piece = reinterpret_cast<T*>(b.u + u_size);
    b.panel = static_cast<Left<P>*>(scratch(3, sizeof(Left<P>) * dy_group() + sizeof(int64_t) * (2 * most + M + 1)));
    b.pixel = reinterpret_cast<int64_t*>(b.panel + dy_group());
    b.dy_pixel = b.pixel + most;
    b.channel = b.dy_pixel + most;
    for (int64_t m = 0; m < M; m++) b.channel[m] = m;
    return b;
  }

  void dy_offsets(const typename Im2col<T>::Slab& slab, int64_t* to) const {
    const Index4 Y = s.y_index();
    for (int64_t n = 0; n < slab.images; n++) {
      for (int64_t k = 0; k < slab.rows * s.OW; k++) *to++ = n * Y.n + k * Y.w;
    }
  }

  void run(T* dw) const {
    const int64_t slabs = u.slabs(), flops = 2 * s.N * s.OH * s.OW * J * M;
    const int64_t fit = most_sum_bytes / (s.G * sum_size() * int64_t(sizeof(A)));
    const int64_t wanted = at_most(s.N * s.OH * s.OW / chunk_pixels, most_chunks);
    const int64_t chunks = at_least(at_most(at_most(wanted, slabs), fit), 1);
    const bool cut_u = u_panels() > dy_panels();
    const int64_t parts = at_most(parts_of(chunks * s.G), cut_u ? u_panels() : dy_panels());
    A* sums = static_cast<A*>(scratch(0, sizeof(A) * chunks * s.G * sum_size()));
    parallel_for(chunks * s.G * parts, divide_up(serial_flops, at_least(flops / chunks / parts, 1)),
                 [&](int64_t begin, int64_t end) {
                   const Buffers b = buffers();
                   for (int64_t item = begin; item < end; item++) {
                     const int64_t chunk = item / parts / s.G, g = item / parts % s.G, part = item % parts;
                     Part cut = {0, u_panels(), 0, dy_panels()};
                     int64_t &cut0 = cut_u ? cut.i0 : cut.q0, &cut1 = cut_u ? cut.i1 : cut.q1;
                     const int64_t all = cut1;
                     cut0 = all * part / parts, cut1 = all * (part + 1) / parts;
                     const int64_t taps = s.KH * s.KW, c0 = nchw() ? tap_of(cut.i0) / taps : 0;
                     const int64_t c1 = nchw() ? divide_up(tap_of(cut.i1), taps) : u.C;
                     const int64_t first = slabs * chunk / chunks, last = slabs * (chunk + 1) / chunks;
                     for (int64_t i = first; i < last; i++) {
                       const typename Im2col<T>::Slab slab = u.slab(i);
                       u.pixel_offsets(slab, b.pixel);
                       dy_offsets(slab, b.dy_pixel);
                       add(slab, u.take(slab, g * u.C, c0, c1, b.piece), dy + s.y_index()(slab.n, g * M, slab.oh, 0),
                           cut, b, sums + (chunk * s.G + g) * sum_size(), i == first);
                     }
                   }
                 });
    const int64_t tiles = u_panels() * dy_panels();
    parallel_for(s.G * tiles, divide_up(serial_flops, chunks * MR * BN), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        finish(sums, chunks, t / tiles, t % tiles / dy_panels(), t % dy_panels(), dw);
      }
    });
  }
};

template <class T>
void bwd_weight(const Conv2dShape& given, const T* dy, const T* x, T* dw) {
  const Conv2dShape s = on_a_line(given);
  const int64_t J = s.ic_per_group() * s.KH * s.KW, M = s.oc_per_group();
  if (s.N * s.OH * s.OW == 0) {
    for (int64_t k = 0; k < s.OC * J; k++) dw[k] = T();
    return;
  }
  const int64_t P = s.N * s.OH * s.OW, block = round_up(divide_up(P, divide_up(P, KC)), Vec<acc_t<T>>::size);
  const Im2col<T> u(s.layout, s.N, s.ic_per_group(), forward_axis(s.OH, s.KH, s.SH, s.PH, s.DH, s.IH),
                    forward_axis(s.OW, s.KW, s.SW, s.PW, s.DW, s.IW), x, s.x_index(), at_most(block, KC));
  int64_t* tap = static_cast<int64_t*>(scratch(2, sizeof(int64_t) * J));
  u.tap_offsets(s.layout == Layout::nchw, tap);
  WeightGradient<T>{u, s, dy, tap, J, M}.run(dw);
}

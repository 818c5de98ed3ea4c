// The weight gradient of implicit_gemm.h, included by it: dw'(j, OC) = U (j, p) dy'(p, OC) in NCHW, dw (OC, j) =
// dy'(OC, p) U (p, j) in channels_last. dy' is packed whole for some pixels, U some panels at a time.

// A chunk of a weight gradient's sum: adding 256 pixels takes 128 cycles a vector, adding the chunks 1 to 3.
constexpr int64_t chunk_pixels = 256;
constexpr int64_t most_sum_bytes = int64_t(32) << 20;  // of all chunks
constexpr int64_t most_chunks = 8;
constexpr int64_t dy_bytes = 512 << 10;  // of dy' for KC pixels, in L2
constexpr int64_t u_group = 4;           // panels of U packed together in channels_last: lines of 512 bytes of a pixel

// The slabs are cut into chunks, each with a sum of its own, added at the end in their order: parallel, and the same
// bits for any number of threads. Where chunks would be too small, U's rows are cut into parts.
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

  bool nchw() const { return s.layout == Layout::nchw; }
  // Panels of U, which is packed one at a time, and of dy', packed whole for KC pixels.
  int64_t u_panels() const { return nchw() ? RowPanels{J}.count() : divide_up(J, BN); }
  int64_t dy_panels() const { return nchw() ? divide_up(M, BN) : RowPanels{M}.count(); }
  // dy' is packed some panels at a time: panel q starts at channel channel_of(q).
  int64_t channel_of(int64_t q) const { return nchw() ? at_most(q * BN, M) : RowPanels{M}.begin(q); }
  int64_t channel_size() const { return nchw() ? KC + L : KP<P>; }  // of a packed channel of dy'
  int64_t dy_group() const { return at_least(dy_bytes / int64_t(sizeof(P)) / channel_size() / (nchw() ? BN : MR), 1); }
  int64_t dy_size() const { return at_most(dy_group() * (nchw() ? BN : MR), M + BN) * channel_size() + L * KP<P>; }
  int64_t sum_size() const { return u_panels() * dy_panels() * MR * BN; }

  // Pixels [p, p + terms) of a slab of dy: where they lie, from its image and row on.
  int64_t dy_runs(const typename Im2col<T>::Slab& slab, int64_t p, int64_t terms, Run* runs) const {
    const Index4 Y = s.y_index();
    const int64_t plane = slab.rows * s.OW;  // several images are whole ones
    int64_t n = 0;
    for (int64_t k = 0; k < terms; n++) {
      const int64_t image = (p + k) / plane, at = (p + k) % plane, count = at_most(plane - at, terms - k);
      runs[n] = {image * Y.n + at * Y.w, k, count};
      k += count;
    }
    return n;
  }

  // Channels [m, last) of dy'.
  void pack_dy(const T* from, const Run* runs, int64_t n, int64_t terms, int64_t m, int64_t last, P* to) const {
    if (nchw()) {
      for (; m < last; m += BN, to += (KC + L) * BN) {
        pack_b_turned(from + m * s.OH * s.OW, s.OH * s.OW, at_most(BN, last - m), runs, n, to);
      }
    } else {  // pixels follow one another through the images
      const Run channels = {runs[0].from + m, 0, last - m};
      pack_a_turned(from, s.OC, terms, &channels, 1, to);
    }
  }

  // Panels [begin, end) of U for the pixels at `pixel`. NCHW: one, rows of pixels. channels_last: up to u_group, lanes
  // of taps, a few pixels of all before the next, as they lie in memory.
  void pack_u(const T* at, const int64_t* pixel, int64_t terms, int64_t begin, int64_t end, P* to) const {
    if (nchw()) {
      const RowPanels rows = {J};
      Run runs[KC];
      return pack_rows(at, tap + rows.begin(begin), rows.rows(begin), runs, runs_of(pixel, terms, runs), to);
    }
    Run runs[u_group][BN];
    int64_t n[u_group];
    for (int64_t i = begin; i < end; i++) {
      n[i - begin] = runs_of(tap + i * BN, at_most(BN, J - i * BN), runs[i - begin]);
    }
    for (int64_t p = 0; p < terms; p += L) {
      for (int64_t i = 0; i < end - begin; i++) {
        pack_b(at, pixel + p, at_most(L, terms - p), runs[i], n[i], to + (i * KC + p) * BN);
      }
    }
  }

  // sum (U panel, dy panel, MR, BN) += the products of one slab, for panels [begin, end) of U.
  void add(const typename Im2col<T>::Slab& slab, const T* at, const T* from, const int64_t* pixel, int64_t begin,
           int64_t end, P* packed_dy, P* packed_u, A* sum, bool first) const {
    const int64_t pixels = slab.images * slab.rows * s.OW, together = nchw() ? 1 : u_group;
    Run runs[KC];
    for (int64_t p = 0; p < pixels; p += block_of(pixels)) {
      const int64_t terms = at_most(block_of(pixels), pixels - p), n = dy_runs(slab, p, terms, runs);
      for (int64_t q = 0; q < dy_panels(); q += dy_group()) {
        const int64_t last_q = at_most(q + dy_group(), dy_panels());
        pack_dy(from, runs, n, terms, channel_of(q), channel_of(last_q), packed_dy);
        for (int64_t i = begin; i < end; i += together) {
          const int64_t last_i = at_most(i + together, end);
          pack_u(at, pixel + p, terms, i, last_i, packed_u);
          for (int64_t k = i; k < last_i; k++) {
            multiply_panel(k, packed_u + (k - i) * KC * BN, q, last_q, packed_dy, terms, sum, first && p == 0);
          }
        }
      }
    }
  }

  // One panel of U with panels [q, last_q) of dy'.
  void multiply_panel(int64_t i, const P* u_panel, int64_t q, int64_t last_q, const P* packed_dy, int64_t terms, A* sum,
                      bool first) const {
    const int64_t m0 = channel_of(q), taps = nchw() ? RowPanels{J}.rows(i) : at_most(BN, J - i * BN);
    for (; q < last_q; q++) {
      A* c = sum + (i * dy_panels() + q) * MR * BN;
      const P* d = packed_dy + (channel_of(q) - m0) * channel_size();
      const int64_t channels = channel_of(q + 1) - channel_of(q);
      if (nchw()) {
        multiply(taps, channels, u_panel, d, terms, c, first);
      } else {
        multiply(channels, taps, d, u_panel, terms, c, first);
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
    dw += g * M * J;
    if (nchw()) {
      const RowPanels rows = {J};
      for (int64_t r = 0; r < rows.rows(i); r += L) {
        for (int64_t m = q * BN; m < at_most(M, (q + 1) * BN); m += L) {
          store_columns(tile + r * BN + m - q * BN, BN, dw + m * J + rows.begin(i) + r, J, M - m, rows.rows(i) - r,
                        Finish<T>());
        }
      }
    } else {
      const RowPanels rows = {M};
      for (int64_t r = 0; r < rows.rows(q); r++) {
        for (int64_t j = i * BN; j < at_most(J, (i + 1) * BN); j += L) {
          store_up_to(dw + (rows.begin(q) + r) * J + j, load(tile + r * BN + j - i * BN), J - j);
        }
      }
    }
  }

  void run(T* dw) const {
    const int64_t slabs = u.slabs(), flops = 2 * s.N * s.OH * s.OW * J * M;
    const int64_t fit = most_sum_bytes / (s.G * sum_size() * int64_t(sizeof(A)));
    const int64_t wanted = at_most(s.N * s.OH * s.OW / chunk_pixels, most_chunks);
    const int64_t chunks = at_least(at_most(at_most(wanted, slabs), fit), 1);
    const int64_t parts = at_most(parts_of(chunks * s.G), u_panels());
    A* sums = static_cast<A*>(scratch(0, sizeof(A) * chunks * s.G * sum_size()));
    const int64_t u_size = (nchw() ? (MR + 1) * KP<P> : u_group * KC * BN) + L;
    parallel_for(chunks * s.G * parts, divide_up(serial_flops, at_least(flops / chunks / parts, 1)),
                 [&](int64_t begin, int64_t end) {
                   P* packed_dy =
                       static_cast<P*>(scratch(1, sizeof(P) * (dy_size() + u_size) + sizeof(T) * u.piece_size()));
                   P* packed_u = packed_dy + dy_size();
                   T* piece = reinterpret_cast<T*>(packed_u + u_size);
                   int64_t* pixel = static_cast<int64_t*>(scratch(3, sizeof(int64_t) * u.pixels()));
                   for (int64_t item = begin; item < end; item++) {
                     const int64_t chunk = item / parts / s.G, g = item / parts % s.G, part = item % parts;
                     A* sum = sums + (chunk * s.G + g) * sum_size();
                     const int64_t u0 = u_panels() * part / parts, u1 = u_panels() * (part + 1) / parts;
                     const int64_t taps = s.KH * s.KW, c0 = nchw() ? RowPanels{J}.begin(u0) / taps : 0;
                     const int64_t c1 = nchw() ? divide_up(RowPanels{J}.begin(u1), taps) : u.C;
                     const int64_t first = slabs * chunk / chunks, last = slabs * (chunk + 1) / chunks;
                     for (int64_t i = first; i < last; i++) {
                       const typename Im2col<T>::Slab slab = u.slab(i);
                       u.pixel_offsets(slab, pixel);
                       add(slab, u.take(slab, g * u.C, c0, c1, piece), dy + s.y_index()(slab.n, g * M, slab.oh, 0),
                           pixel, u0, u1, packed_dy, packed_u, sum, i == first);
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
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  const int64_t J = s.ic_per_group() * s.KH * s.KW, M = s.oc_per_group();
  if (s.N * s.OH * s.OW == 0) {
    for (int64_t k = 0; k < s.OC * J; k++) dw[k] = T();
    return;
  }
  const Im2col<T> u(s.layout, s.N, s.ic_per_group(), forward_axis(s.OH, s.KH, s.SH, s.PH, s.DH, s.IH),
                    forward_axis(s.OW, s.KW, s.SW, s.PW, s.DW, s.IW), x, s.x_index(), KC);
  int64_t* tap = static_cast<int64_t*>(scratch(2, sizeof(int64_t) * J));
  u.tap_offsets(s.layout == Layout::nchw, tap);
  WeightGradient<T>{u, s, dy, tap, J, M}.run(dw);
}

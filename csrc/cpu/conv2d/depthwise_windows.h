// 3x3 windows with a stride of 1 or 2 both ways, included once per ISA by depthwise_channels.h: tiles of several rows, so
// that a pixel is loaded once for up to 9 taps, and all vectors of channels of a tile before the next tile, so that memory
// is met in its order. Two Zen 5 cores with AVX-512, channels_last float32, how many times as fast as 14 pixels of a row one
// vector of channels at a time, forward / input gradient / weight gradient: mbv2.dw.s1 1.6 / 1.6 / 1.5, mbv2.dw.s2 1.7 / 2.3
// / 1.7, mbv1.dw5 1.4 / 1.4 / 1.3, 960 channels at 7x7 1.3 / 1.3 / 1.0 to 1.4.
//
// S is the stride of a forward pass, and 1 of its gradient too; -2 the gradient at stride 2, whose tiles hold outputs of
// all four phases: a pixel i of dy meets outputs 2 i + k - padding, k = 0, 1, 2.

// Outputs of a tile down and across: sums in registers, beside 9 weights and a pixel. At stride 1 4 x 4 are as fast but do
// not divide 7 and 14, at stride 2 7 x 2 take up to 1.3 times as long, and 2 x 4 of a gradient 1.2 times.
constexpr bool many_registers = PYCONV_BYTES == 64;
constexpr int tile_rows(int S) { return !many_registers ? 2 : S == 1 ? 7 : 4; }
constexpr int tile_columns(int S) { return !many_registers || S > 0 ? 2 : 4; }
// How many pixels n outputs meet along one axis, and which of the outputs pixel i meets through tap k, if any.
constexpr int pixels_met(int S, int n) { return S < 0 ? n / 2 + 1 : S * (n - 1) + 3; }
constexpr int output_met(int S, int n, int i, int k) {
  const int o = S < 0 ? 2 * (i - 1) + k : (i - k) % S == 0 ? (i - k) / S : -1;
  return o < n ? o : -1;
}

// How many pixels the next tile meets that this one does not.
constexpr int next_pixels(int S, int n) { return S < 0 ? n / 2 : S * n; }

// A tile along one axis: its first pixel and output, and which from there on are in the image.
struct Span {
  int64_t from, to;
  uint64_t pixels, outputs;

  Span(const Grid& g, int S, int n, int64_t i) : pixels(0) {
    to = i * n - (S < 0 ? g.padding % 2 : 0);
    from = S < 0 ? (to + g.padding) / 2 - 1 : to * S + Line(g.axis(0)).low;
    outputs = bits_inside(to, 1, n, g.total);
    const uint64_t inside = bits_inside(from, 1, pixels_met(S, n), g.source);
    for (int p = 0; p < pixels_met(S, n); p++) {
      for (int k = 0; k < 3; k++) {
        const int o = output_met(S, n, p, k);
        if (o >= 0 && (outputs >> o & 1)) pixels |= inside & uint64_t(1) << p;
      }
    }
  }
};

// Most tiles are within the image.
PYCONV_INLINE bool has(uint64_t bits, int i) { return __builtin_expect(bits >> i & 1, 1); }

// Micro-kernel: y = bias + the sums of a tile, for vectors [v, end) of channels.
template <class X, class A, int S>
PYCONV_NOINLINE void window_tile(const Span& h, const Span& w, const View<X>& view, const Vectors<A>& vectors,
                                 int64_t v, int64_t end, const A* weights, const A* bias, X* y, int64_t y_row,
                                 int64_t y_column, const Finish<X>& finish, bool ahead) {
  constexpr int64_t L = Vec<A>::size;
  constexpr int R = tile_rows(S), C = tile_columns(S), IR = pixels_met(S, R), IC = pixels_met(S, C);
  const uint64_t rows = h.pixels, columns = w.pixels;
  const bool plain = finish.plain();  // clipping by nothing takes an eighth of the time
  for (; v < end; v++) {
    vec<A> sum[R][C], weight[9];
    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {
      _Pragma("GCC unroll 8") for (int c = 0; c < C; c++) sum[r][c] = load(bias + v * L);
    }
    _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) weight[t] = keep(load(weights + (v * 9 + t) * L));
    const X *first = view.at + (h.from - view.top) * view.row + w.from * view.column + vectors.first(v), *row = first;
    _Pragma("GCC unroll 16") for (int i = 0; i < IR; i++, row += view.row) {
      if (!has(rows, i)) continue;
      const X* at = row;
      _Pragma("GCC unroll 9") for (int j = 0; j < IC; j++, at += view.column) {
        if (!has(columns, j)) continue;
        const vec<A> pixel = keep(load_wide(at));
        _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) {
          const int r = output_met(S, R, i, t / 3), c = output_met(S, C, j, t % 3);
          if (r >= 0 && c >= 0) sum[r][c] += pixel * weight[t];
        }
      }
    }
    if (ahead) prefetch(first + IC * view.column, IR, view.row, next_pixels(S, C), view.column);
    X* to = y + vectors.first(v);
    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {
      if (!has(h.outputs, r)) continue;
      _Pragma("GCC unroll 8") for (int c = 0; c < C; c++) {
        if (!has(w.outputs, c)) continue;
        if (plain) {
          store_narrow(to + r * y_row + c * y_column, sum[r][c]);
        } else {
          finish.store(to + r * y_row + c * y_column, sum[r][c]);
        }
      }
    }
  }
}

// Micro-kernel of the weight gradient: sums[t] += dy[o] * x[at(o) + off[t]] over a whole tile.
template <class X, class A, int S>
PYCONV_NOINLINE void window_weight_tile(const Span& h, const Span& w, const View<X>& view, const View<X>& dy,
                                        const Vectors<A>& vectors, int64_t v, int64_t end, A* sums, bool ahead) {
  constexpr int64_t L = Vec<A>::size;
  constexpr int R = tile_rows(S), C = tile_columns(S), IR = pixels_met(S, R), IC = pixels_met(S, C);
  const uint64_t rows = h.pixels, columns = w.pixels;
  for (; v < end; v++) {
    vec<A> g[R][C], sum[9];
    const X* output = dy.at + (h.to - dy.top) * dy.row + w.to * dy.column + vectors.first(v);
    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {
      _Pragma("GCC unroll 8") for (int c = 0; c < C; c++) g[r][c] = load_wide(output + r * dy.row + c * dy.column);
    }
    _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) sum[t] = load(sums + (v * 9 + t) * L);
    const X *first = view.at + (h.from - view.top) * view.row + w.from * view.column + vectors.first(v), *row = first;
    _Pragma("GCC unroll 16") for (int i = 0; i < IR; i++, row += view.row) {
      if (!has(rows, i)) continue;
      const X* at = row;
      _Pragma("GCC unroll 9") for (int j = 0; j < IC; j++, at += view.column) {
        if (!has(columns, j)) continue;
        const vec<A> pixel = keep(load_wide(at));
        _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) {
          const int r = output_met(S, R, i, t / 3), c = output_met(S, C, j, t % 3);
          if (r >= 0 && c >= 0) sum[t] += pixel * g[r][c];
        }
      }
    }
    if (ahead) prefetch(first + IC * view.column, IR, view.row, next_pixels(S, C), view.column);
    _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) store(sums + (v * 9 + t) * L, sum[t]);
  }
}

// The same of a tile that the image cuts off, one output after the other: what lies beyond it is not even multiplied by
// zero.
template <class X, class A>
PYCONV_NOINLINE void window_weight_rest(const Span& h, const Span& w, int S, const View<X>& view, const View<X>& dy,
                                        const Vectors<A>& vectors, int64_t v, int64_t end, A* sums) {
  constexpr int64_t L = Vec<A>::size;
  for (; v < end; v++) {
    vec<A> sum[9];
    _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) sum[t] = load(sums + (v * 9 + t) * L);
    for (int r = 0; h.outputs >> r; r++) {
      for (int c = 0; w.outputs >> c; c++) {
        const vec<A> g = load_wide(dy.at + (h.to + r - dy.top) * dy.row + (w.to + c) * dy.column + vectors.first(v));
        const X* at = view.at + (h.from + r * S - view.top) * view.row + (w.from + c * S) * view.column;
        _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) {
          if ((h.pixels >> (r * S + t / 3) & 1) && (w.pixels >> (c * S + t % 3) & 1)) {
            sum[t] += g * load_wide(at + t / 3 * view.row + t % 3 * view.column + vectors.first(v));
          }
        }
      }
    }
    _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) store(sums + (v * 9 + t) * L, sum[t]);
  }
}

// The windows of a problem, if it has such: S = 0 says that it has none.
struct Windows {
  int S, rows, columns;  // of a tile
  Grid h, w;
  int64_t down, across;  // tiles
  Span* spans;           // (across)

  Windows(const Conv2dShape& s, bool gradient, bool fits)
      : S(!fits || s.KH != 3 || s.KW != 3 || s.SH != s.SW || s.SH > 2 || s.DH != 1 || s.DW != 1 ? 0
          : gradient && s.SH == 2                                                               ? -2
                                                                                                : s.SH),
        rows(tile_rows(S)),
        columns(tile_columns(S)),
        h(height(s, gradient)),
        w(width(s, gradient)),
        down(divide_up(h.total + (S < 0 ? h.padding % 2 : 0), rows)),
        across(divide_up(w.total + (S < 0 ? w.padding % 2 : 0), columns)),
        spans(nullptr) {}

  int64_t bytes() const { return S == 0 ? 0 : across * sizeof(Span); }
  void list(void* memory) {  // room for bytes()
    spans = static_cast<Span*>(memory);
    for (int64_t i = 0; i < across; i++) spans[i] = Span(w, S, columns, i);
  }

  // Outputs of rows [oh, end), whole tiles, vectors [v0, v0 + here) of channels. `to`: pixel (0, 0) of the output.
  template <class X, class A>
  void multiply(const View<X>& x, const Vectors<A>& vectors, int64_t oh, int64_t end, int64_t v0, int64_t here,
                const A* weights, const A* bias, X* to, const Finish<X>& finish, bool ahead) const {
    const int64_t y_row = w.total * vectors.C;
    const auto tile = S == 1 ? window_tile<X, A, 1> : S == 2 ? window_tile<X, A, 2> : window_tile<X, A, -2>;
    for (int64_t o = oh / rows; o < end / rows; o++) {
      const Span row(h, S, rows, o);
      for (int64_t i = 0; i < across; i++) {
        tile(row, spans[i], x, vectors, v0, v0 + here, weights, bias, to + row.to * y_row + spans[i].to * vectors.C,
             y_row, vectors.C, finish, ahead);
      }
    }
  }

  // Adds what rows [oh, end) of dy, whole tiles, add to sums (vector, tap, L).
  template <class X, class A>
  void add_weight(const View<X>& x, const View<X>& dy, const Vectors<A>& vectors, int64_t oh, int64_t end, int64_t v0,
                  int64_t here, A* sums, bool ahead) const {
    const auto tile = S == 1 ? window_weight_tile<X, A, 1> : window_weight_tile<X, A, 2>;
    for (int64_t o = oh / rows; o < end / rows; o++) {
      const Span row(h, S, rows, o);
      for (int64_t i = 0; i < across; i++) {
        if (row.outputs >> (rows - 1) && spans[i].outputs >> (columns - 1)) {
          tile(row, spans[i], x, dy, vectors, v0, v0 + here, sums, ahead);
        } else {
          window_weight_rest(row, spans[i], S, x, dy, vectors, v0, v0 + here, sums);
        }
      }
    }
  }
};

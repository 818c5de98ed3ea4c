// The weight gradient of direct_channels.h, included by it: dw[t,m] = sum_p dy[p,m] * x[at(p) + off[t]], with P terms x NV
// vectors of channels in registers while all pixels of a band pass by.

// Pixels of a weight gradient: images of rows of columns, and from one of each to the next in dy and in x.
struct Pixels {
  int64_t images, rows, columns, dy_image, dy_row, dy, x_image, x_row, x;
};

// Micro-kernel of the weight gradient: sums[t] += dy[p] * x[t][p] for P terms and NV vectors of channels.
template <class A, int NV>
PYCONV_NOINLINE void term_tile(const A* const* x, const Pixels& pixels_of, const A* dy, A* sums) {
  constexpr int P = pixels(NV);
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[P][NV];
  const A* at[P];
  _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
    at[p] = x[p];
    _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) sum[p][v] = load(sums + (p * NV + v) * L);
  }
  for (int64_t r = 0; r < pixels_of.images * pixels_of.rows; r++) {
    const int64_t image = r / pixels_of.rows, row = r % pixels_of.rows;
    const A* g = dy + image * pixels_of.dy_image + row * pixels_of.dy_row;
    const int64_t first = image * pixels_of.x_image + row * pixels_of.x_row;
    for (int64_t i = first; i < first + pixels_of.columns * pixels_of.x; i += pixels_of.x, g += pixels_of.dy) {
      vec<A> gradient[NV];
      _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) gradient[v] = keep(load(g + v * L));
      _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
        const vec<A> value = splat(at[p][i]);
        _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) sum[p][v] += value * gradient[v];
      }
    }
  }
  _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) {
    _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) store(sums + (p * NV + v) * L, sum[p][v]);
  }
}

// All terms of one band: sums (block, T, NV * L) += dy x.  off: of the terms; dy (block, pixels, NV * L).
template <class A>
void multiply_weight(const Pixels& band, int64_t blocks, int64_t NV, int64_t T, const int64_t* off, const A* x,
                     const A* dy, int64_t dy_block, A* sums) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t P = NV == NV_MAX ? pixels(NV_MAX) : pixels(1), padded = round_up(T, P);
  const int64_t fit = at_least(dy_bytes / (at_least(band.columns, 1) * NV * L * int64_t(sizeof(A))), 1);
  const int64_t most = band.images > 1 ? band.rows : fit;
  const A* from[8];
  for (int64_t r = 0; r < band.rows; r += most) {
    Pixels part = band;
    part.rows = at_most(most, band.rows - r);
    for (int64_t block = 0; block < blocks; block++) {
      for (int64_t t = 0; t < T; t += P) {
        for (int64_t p = 0; p < P; p++) from[p] = x + r * band.x_row + off[at_most(t + p, T - 1)];
        with_int<NV_MAX>(NV, [&](auto nv) {
          term_tile<A, decltype(nv)::value>(from, part, dy + block * dy_block + r * band.dy_row,
                                            sums + (block * padded + t) * NV * L);
        });
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
  const int64_t C = s.ic_per_group(), M = s.oc_per_group(), terms = C * s.KH * s.KW;
  const int64_t vectors = divide_up(M, L), NV = divide_up(vectors, divide_up(vectors, NV_MAX)), wide = NV * L;
  const int64_t blocks = divide_up(vectors, NV), size = blocks * round_up(terms, NV == NV_MAX ? 6 : 8) * wide;
  const int64_t band = band_rows(h, w, C, s.N * s.G, sizeof(A)), bands = divide_up(s.OH, band);
  const int64_t images = bands > 1 ? 1 : images_per_job(h, w, C, s.N, s.G, sizeof(A));
  const int64_t units = divide_up(s.N, images) * bands;
  const int64_t chunks = at_least(at_most(units, divide_up(8, s.G)), 1), share = divide_up(units, chunks);
  const Border border(h, w, C, band);

  A* sums = static_cast<A*>(scratch(0, sizeof(A) * chunks * s.G * size + sizeof(int64_t) * terms));
  int64_t* off = reinterpret_cast<int64_t*>(sums + chunks * s.G * size);
  for (int64_t t = 0; t < terms; t++) {
    off[t] = t / C / s.KW * s.DH * border.row + t / C % s.KW * s.DW * C + t % C;
  }

  const int64_t flops = 2 * share * images * band * s.OW * terms * blocks * wide;
  parallel_for(chunks * s.G, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    const bool in_place = std::is_same<T, A>::value && M == blocks * wide;
    const int64_t x_image = border.rows * border.row, pixel = in_place ? s.OC : blocks * wide;
    const int64_t dy_image = (in_place ? s.OH : band) * s.OW * pixel;
    A* px = static_cast<A*>(scratch(1, sizeof(A) * images * x_image));
    A* py = static_cast<A*>(scratch(2, sizeof(A) * images * dy_image));
    for (int64_t item = begin; item < end; item++) {
      const int64_t chunk = item / s.G, g = item % s.G;
      A* sum = sums + item * size;
      for (int64_t i = 0; i < size; i += L) store(sum + i, vec<A>{});
      for (int64_t unit = chunk * share; unit < at_most((chunk + 1) * share, units); unit++) {
        const int64_t n = unit / bands * images, oh = unit % bands * band, rows = at_most(band, s.OH - oh);
        const int64_t here = at_most(images, s.N - n);
        const T* first = dy + (n * s.OH + oh) * s.OW * s.OC + g * M;
        for (int64_t i = 0; i < here; i++) {
          border.copy(x + (n + i) * s.IH * s.IW * s.IC, h, w, s.IC, g * C, oh * s.SH + border.top, px + i * x_image);
          if (!in_place) copy_pixels(first + i * s.OH * s.OW * s.OC, s.OC, M, rows * s.OW, py + i * dy_image, pixel);
        }
        const A* gradient = py;
        if constexpr (std::is_same<T, A>::value) gradient = in_place ? first : py;
        const Pixels pixels = {here, rows, s.OW, dy_image, s.OW * pixel, pixel, x_image, s.SH * border.row, s.SW * C};
        multiply_weight(pixels, blocks, NV, terms, off, px, gradient, wide, sum);
      }
    }
  });

  // L terms of L channels at a time: chunks added, transposed to the order of dw.
  const int64_t padded = size / (blocks * wide);
  parallel_for(s.G * vectors, divide_up(serial_flops, terms * chunks * L), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t g = item / vectors, v = item % vectors, count = at_most(L, M - v * L);
      const A* from = sums + g * size + v / NV * padded * wide + v % NV * L;
      for (int64_t t = 0; t < terms; t += L) {
        vec<A> block[L];
        _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
          block[j] = vec<A>{};
          for (int64_t chunk = 0; t + j < terms && chunk < chunks; chunk++) {
            block[j] += load(from + chunk * s.G * size + (t + j) * wide);
          }
        }
        transpose<A>(block);
        _Pragma("GCC unroll 16") for (int j = 0; j < L; j++) {
          T* to = dw + (g * M + v * L + j) * terms + t;
          if (j >= count) continue;
          if (terms - t >= L) {
            store_narrow(to, block[j]);
          } else {
            store_narrow_first(to, block[j], terms - t);
          }
        }
      }
    }
  });
}

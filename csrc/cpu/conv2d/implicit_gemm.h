// conv2d / implicit GEMM: every direction is one matrix product whose left operand is read from the image itself.
// Computes  C[i,:] = sum_j A[row[i] + red[j]] * B[j,:]        A: a zero-bordered piece of an image, copied once
//           fwd         i = output pixel           j = (tap, ic)      : = oc    A = x    B[j,oc]   = w[oc,ic,tap]
//           bwd_input   i = input pixel of a phase j = (tap, oc)      : = ic    A = dy   B[j,ic]   = w[oc,ic,tap]
//           bwd_weight  i = (tap, ic)              j = output pixel   : = oc    A = x    B[pix,oc] = dy[oc,pix]
//           The columns of an im2col matrix differ from one another by constant offsets, so two tables of offsets
//           replace the matrix. With stride S, input pixels ih = phase - PH + S*t meet only the taps kh with
//           kh*DH = phase mod S, and see them at consecutive rows of dy: S*S small stride-1 problems.
// Shapes    A (C, rows, columns) or (rows, columns, C) as the layout has it;  B (J, BN);  C (I, BN)
// Tiling    thread: (image, slab of output rows); BN = NV vectors of channels; BK terms at a time, so that B's block
//           stays in L1; registers: MR x NV accumulators
// Cost      2*N*OC*OH*OW*(IC/G)*KH*KW flops, lanes beyond the group's channels wasted;  loads per FMA 1/NV + 1/MR
//           workspace: packed weights, and per thread one slab of image and of C
// Limits    none in shape or type: bf16 and f16 widen to float in the copy and are rounded once in the store
// Source    Chetlur et al., cuDNN, arXiv:1410.0759, section 3; Goto and van de Geijn, TOMS 34(3), 2008

namespace implicit_gemm {
namespace {

// Registers: MR x 2 accumulators, 2 vectors of B and one broadcast of A out of 32 (AVX-512) or 16.
constexpr int64_t MR = PYCONV_BYTES == 64 ? 14 : PYCONV_BYTES == 32 ? 6 : 4;
static_assert((MR * 2 + 3) * PYCONV_BYTES <= (PYCONV_BYTES == 64 ? 32 : 16) * PYCONV_BYTES, "accumulators would spill");

constexpr int64_t BK = 256;           // terms per block
constexpr int64_t slab_pixels = 448;  // output pixels per slab, at least one row
constexpr int64_t serial_flops = 100000;

// Micro-kernel: c[i,:] (+)= sum_j a[row[i] + red[j]] * b[j,:] for R rows; registers only.
template <class A, int R, int NV>
void tile(const A* a, const int64_t* row, const int64_t* red, int64_t J, const A* b, A* c, bool first) {
  constexpr int64_t L = Vec<A>::size, BN = NV * L;
  vec<A> sum[R][NV];
  _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
    _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) { sum[i][v] = first ? vec<A>{} : load(c + i * BN + v * L); }
  }
  for (int64_t j = 0; j < J; j++) {
    const A* at = a + red[j];
    vec<A> bj[NV];
    _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) bj[v] = load(b + j * BN + v * L);
    _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
      const A ai = at[row[i]];
      _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] += ai * bj[v];
    }
  }
  _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
    _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) store(c + i * BN + v * L, sum[i][v]);
  }
}

// The product for I rows and J terms. row and c are padded to a multiple of MR: the last tile may compute spare rows.
template <class A, int NV>
void product(const A* a, const int64_t* row, int64_t I, const int64_t* red, int64_t J, const A* b, A* c, bool first) {
  constexpr int64_t BN = NV * Vec<A>::size;
  for (int64_t j = 0; j < J || (J == 0 && j == 0 && first); j += BK) {
    const int64_t terms = at_most(BK, J - j);
    for (int64_t i = 0; i < I; i += MR) {
      if (I - i > MR / 2) {
        tile<A, MR, NV>(a, row + i, red + j, terms, b + j * BN, c + i * BN, first && j == 0);
      } else {
        tile<A, MR / 2, NV>(a, row + i, red + j, terms, b + j * BN, c + i * BN, first && j == 0);
      }
    }
  }
}

int64_t padded_rows(int64_t I) { return divide_up(I, MR) * MR; }

// One axis of the image a slab copies: source rows [first, first + count) with zeros outside [0, size).
struct Span {
  int64_t first, count, size;
};

// piece(c, h, w) = image(n, c0 + c, h.first + h, w.first + w), zero outside; its strides come back.
template <class T, class A>
Index4 copy_piece(Layout layout, const T* image, const Index4& I, int64_t n, int64_t c0, int64_t C, Span h, Span w,
                  A* piece) {
  const Index4 P = index_of(layout, C, h.count, w.count);
  const int64_t inside = at_most(at_least(-w.first, 0), w.count);                // first column with data
  const int64_t outside = at_least(at_most(w.size - w.first, w.count), inside);  // first column past it
  const bool nchw = layout == Layout::nchw;
  const int64_t lines = nchw ? C : 1, run = nchw ? 1 : C;  // nhwc: a pixel is a run of C values
  for (int64_t c = 0; c < lines; c++) {
    for (int64_t ih = 0; ih < h.count; ih++) {
      A* to = piece + P(0, c, ih, 0);
      const int64_t y = h.first + ih;
      if (y < 0 || y >= h.size) {
        for (int64_t k = 0; k < w.count * run; k++) to[k] = 0;
        continue;
      }
      for (int64_t k = 0; k < inside * run; k++) to[k] = 0;
      if (outside > inside) {
        const T* from = image + I(n, c0 + c, y, w.first + inside);
        if (I.w == run) {  // the pixels lie side by side
          A* dense = to + inside * run;
          for (int64_t k = 0; k < (outside - inside) * run; k++) dense[k] = widen(from[k]);
        } else {
          for (int64_t iw = inside; iw < outside; iw++, from += I.w) {
            for (int64_t k = 0; k < run; k++) to[iw * run + k] = widen(from[k]);
          }
        }
      }
      for (int64_t k = outside * run; k < w.count * run; k++) to[k] = 0;
    }
  }
  return P;
}

// C channels of source image -> M channels of output per group, weights packed as (group, M block, J, BN).
template <class T, int NV>
struct Problem {
  using A = acc_t<T>;
  static constexpr int64_t BN = NV * Vec<A>::size;
  Layout layout;
  int64_t N, G, C, M;  // C and M per group
  Axis h, w;
  const T* source;
  Index4 S;
  T* output;
  Index4 O;

  int64_t terms() const { return h.taps * w.taps * C; }
  int64_t blocks() const { return divide_up(M, BN); }
  int64_t packed_size() const { return G * blocks() * terms() * BN; }

  // weight(group, m, c, kh, kw) is an element of w; j runs over (tap, c).
  template <class Weight>
  void pack(A* packed, const Weight& weight) const {
    parallel_for(G * blocks(), divide_up(serial_flops, at_least(terms() * BN, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; item++) {
        const int64_t g = item / blocks(), m0 = item % blocks() * BN;
        A* to = packed + item * terms() * BN;
        for (int64_t th = 0; th < h.taps; th++) {
          for (int64_t tw = 0; tw < w.taps; tw++) {
            for (int64_t c = 0; c < C; c++, to += BN) {
              const int64_t kh = h.tap0 + th * h.tap_step, kw = w.tap0 + tw * w.tap_step;
              for (int64_t m = 0; m < BN; m++) to[m] = m0 + m < M ? widen(weight(g, m0 + m, c, kh, kw)) : 0;
            }
          }
        }
      }
    });
  }

  // c (pixels, BN) -> output channels [m0, m0 + BN) of rows [oh0, oh0 + rows).
  void unpack(const A* c, int64_t n, int64_t g, int64_t m0, int64_t oh0, int64_t rows, const T* bias) const {
    const int64_t count = at_most(BN, M - m0), channel = g * M + m0;
    for (int64_t m = 0; m < count; m++) {
      const A b = bias ? widen(bias[channel + m]) : 0;
      for (int64_t oh = 0; oh < rows; oh++) {
        T* to = output + O(n, channel + m, h.out0 + (oh0 + oh) * h.out_step, w.out0);
        const A* from = c + oh * w.out * BN + m;
        for (int64_t ow = 0; ow < w.out; ow++) pyconv::store(to + ow * w.out_step * O.w, from[ow * BN] + b);
      }
    }
  }

  void run(const A* packed, const T* bias) const {
    if (h.out == 0 || w.out == 0) return;
    const int64_t rows = at_most(at_least(slab_pixels / w.out, 1), h.out), slabs = divide_up(h.out, rows);
    const int64_t J = terms(), pixels = rows * w.out;
    const int64_t piece_rows = (rows - 1) * h.step + h.reach() + 1,
                  piece_columns = (w.out - 1) * w.step + w.reach() + 1;
    const int64_t flops = 2 * pixels * J * M;

    parallel_for(N * G * slabs, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
      A* piece = static_cast<A*>(scratch(1, sizeof(A) * (C * piece_rows * piece_columns + padded_rows(pixels) * BN)));
      A* c = piece + C * piece_rows * piece_columns;
      int64_t* row = static_cast<int64_t*>(scratch(2, sizeof(int64_t) * (J + padded_rows(pixels))));
      int64_t* red = row + padded_rows(pixels);
      for (int64_t item = begin; item < end; item++) {
        const int64_t n = item / (G * slabs), g = item / slabs % G, oh0 = item % slabs * rows;
        const int64_t count = at_most(rows, h.out - oh0);
        const Index4 P = copy_piece(layout, source, S, n, g * C, C,
                                    Span{oh0 * h.step + h.lowest(), (count - 1) * h.step + h.reach() + 1, h.source},
                                    Span{w.lowest(), piece_columns, w.source}, piece);
        for (int64_t i = 0; i < padded_rows(count * w.out); i++) {
          const int64_t pixel = at_most(i, count * w.out - 1);  // spare rows repeat the last pixel
          row[i] = P(0, 0, pixel / w.out * h.step, pixel % w.out * w.step);
        }
        for (int64_t th = 0, j = 0; th < h.taps; th++) {
          for (int64_t tw = 0; tw < w.taps; tw++) {
            for (int64_t ch = 0; ch < C; ch++, j++) {
              red[j] =
                  P(0, ch, h.offset0 + th * h.offset_step - h.lowest(), w.offset0 + tw * w.offset_step - w.lowest());
            }
          }
        }
        for (int64_t block = 0; block < blocks(); block++) {
          product<A, NV>(piece, row, count * w.out, red, J, packed + (g * blocks() + block) * J * BN, c, true);
          unpack(c, n, g, block * BN, oh0, count, bias);
        }
      }
    });
  }
};

template <class T, int NV>
void fwd(const Conv2dShape& s, const T* x, const T* w, const T* b, T* y) {
  using A = acc_t<T>;
  const Index4 W = s.w_index();
  const Problem<T, NV> p = {s.layout,
                            s.N,
                            s.G,
                            s.ic_per_group(),
                            s.oc_per_group(),
                            forward_axis(s.OH, s.KH, s.SH, s.PH, s.DH, s.IH),
                            forward_axis(s.OW, s.KW, s.SW, s.PW, s.DW, s.IW),
                            x,
                            s.x_index(),
                            y,
                            s.y_index()};
  A* packed = static_cast<A*>(scratch(0, sizeof(A) * p.packed_size()));
  p.pack(packed, [&](int64_t g, int64_t oc, int64_t ic, int64_t kh, int64_t kw) {
    return w[W(g * s.oc_per_group() + oc, ic, kh, kw)];
  });
  p.run(packed, b);
}

template <class T, int NV>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  using A = acc_t<T>;
  const Index4 W = s.w_index();
  for (int64_t ph = 0; ph < s.SH; ph++) {
    for (int64_t pw = 0; pw < s.SW; pw++) {
      const Problem<T, NV> p = {s.layout,
                                s.N,
                                s.G,
                                s.oc_per_group(),
                                s.ic_per_group(),
                                phase_axis(ph, s.IH, s.KH, s.SH, s.PH, s.DH, s.OH),
                                phase_axis(pw, s.IW, s.KW, s.SW, s.PW, s.DW, s.OW),
                                dy,
                                s.y_index(),
                                dx,
                                s.x_index()};
      A* packed = static_cast<A*>(scratch(0, sizeof(A) * p.packed_size()));
      p.pack(packed, [&](int64_t g, int64_t ic, int64_t oc, int64_t kh, int64_t kw) {
        return w[W(g * s.oc_per_group() + oc, ic, kh, kw)];
      });
      p.run(packed, nullptr);
    }
  }
}

// The images are cut into chunks, each with a sum of its own, added at the end in their order: parallel, and the same
// bits for any number of threads.
template <class T, int NV>
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  using A = acc_t<T>;
  constexpr int64_t BN = NV * Vec<A>::size;
  const Index4 X = s.x_index(), Y = s.y_index(), W = s.w_index();
  const Axis h = forward_axis(s.OH, s.KH, s.SH, s.PH, s.DH, s.IH), w = forward_axis(s.OW, s.KW, s.SW, s.PW, s.DW, s.IW);
  const int64_t C = s.ic_per_group(), M = s.oc_per_group(), blocks = divide_up(M, BN);
  const int64_t I = s.KH * s.KW * C, block_size = padded_rows(I) * BN;  // one block of dw: (I, BN)
  const int64_t most_chunks = at_least((int64_t(8) << 20) / (s.G * blocks * block_size * int64_t(sizeof(A))), 1);
  const int64_t chunks = at_most(at_most(s.N, 16), most_chunks), images = divide_up(s.N, at_least(chunks, 1));
  const int64_t rows = at_most(at_least(slab_pixels / s.OW, 1), s.OH), pixels = rows * s.OW;
  const int64_t piece_rows = (rows - 1) * h.step + h.reach() + 1, piece_columns = (s.OW - 1) * w.step + w.reach() + 1;
  A* sums = static_cast<A*>(scratch(0, sizeof(A) * at_least(chunks, 1) * s.G * blocks * block_size));

  const int64_t flops = 2 * images * s.OH * s.OW * I * BN;
  parallel_for(chunks * s.G * blocks, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    A* piece = static_cast<A*>(scratch(1, sizeof(A) * (C * piece_rows * piece_columns + pixels * BN)));
    A* columns = piece + C * piece_rows * piece_columns;  // dy as (pixel, BN)
    int64_t* row = static_cast<int64_t*>(scratch(2, sizeof(int64_t) * (padded_rows(I) + pixels)));
    int64_t* red = row + padded_rows(I);
    for (int64_t item = begin; item < end; item++) {
      const int64_t chunk = item / (s.G * blocks), g = item / blocks % s.G, m0 = item % blocks * BN;
      A* sum = sums + item * block_size;
      for (int64_t k = 0; k < block_size; k++) sum[k] = 0;
      for (int64_t n = chunk * images; n < at_most((chunk + 1) * images, s.N); n++) {
        for (int64_t oh0 = 0; oh0 < s.OH; oh0 += rows) {
          const int64_t count = at_most(rows, s.OH - oh0);
          const Index4 P = copy_piece(s.layout, x, X, n, g * C, C,
                                      Span{oh0 * h.step + h.lowest(), (count - 1) * h.step + h.reach() + 1, h.source},
                                      Span{w.lowest(), piece_columns, w.source}, piece);
          for (int64_t i = 0; i < padded_rows(I); i++) {
            const int64_t at = at_most(i, I - 1), tap = at / C;
            row[i] = P(0, at % C, tap / s.KW * s.DH, tap % s.KW * s.DW);
          }
          for (int64_t pixel = 0; pixel < count * s.OW; pixel++) {
            red[pixel] = P(0, 0, pixel / s.OW * s.SH, pixel % s.OW * s.SW);
          }
          for (int64_t m = 0; m < BN; m++) {
            for (int64_t oh = 0; oh < count; oh++) {
              const T* from = dy + Y(n, g * M + at_most(m0 + m, M - 1), oh0 + oh, 0);
              A* to = columns + oh * s.OW * BN + m;
              for (int64_t ow = 0; ow < s.OW; ow++) to[ow * BN] = widen(from[ow * Y.w]);
            }
          }
          product<A, NV>(piece, row, I, red, count * s.OW, columns, sum, false);
        }
      }
    }
  });

  parallel_for(s.OC, divide_up(serial_flops, at_least(I * chunks, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t oc = begin; oc < end; oc++) {
      const int64_t g = oc / M, block = oc % M / BN, lane = oc % M % BN;
      for (int64_t i = 0; i < I; i++) {
        A total = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
          total += sums[((chunk * s.G + g) * blocks + block) * block_size + i * BN + lane];
        }
        pyconv::store(dw + W(oc, i % C, i / C / s.KW, i / C % s.KW), total);
      }
    }
  });
}

}  // namespace

// NV = 2 vectors of output channels, or 1 where the group has no more.
#define PYCONV_BY_TYPE_AND_WIDTH(channels, call) \
  with_type(s.dtype, [&](auto type) {            \
    using T = decltype(type);                    \
    if ((channels) > Vec<acc_t<T>>::size) {      \
      constexpr int NV = 2;                      \
      call;                                      \
    } else {                                     \
      constexpr int NV = 1;                      \
      call;                                      \
    }                                            \
  })

void fwd(const Conv2dShape& s, const void* x, const void* w, const void* b, void* y) {
  PYCONV_BY_TYPE_AND_WIDTH(s.oc_per_group(), (fwd<T, NV>(s, (const T*)x, (const T*)w, (const T*)b, (T*)y)));
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  PYCONV_BY_TYPE_AND_WIDTH(s.ic_per_group(), (bwd_input<T, NV>(s, (const T*)dy, (const T*)w, (T*)dx)));
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  PYCONV_BY_TYPE_AND_WIDTH(s.oc_per_group(), (bwd_weight<T, NV>(s, (const T*)dy, (const T*)x, (T*)dw)));
}
#undef PYCONV_BY_TYPE_AND_WIDTH

}  // namespace implicit_gemm

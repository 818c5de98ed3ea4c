// conv2d / implicit GEMM: every direction is one matrix product with the matrix U that im2col would make.
// Computes  U (taps, pixels) in NCHW, (pixels, taps) in channels_last: rows as they lie in memory; j = (ic, kh, kw) or
//           (kh, kw, ic), p = output pixel
//           fwd         NCHW  y (OC, p) = w (OC, j) U (j, p)             channels_last  y (p, OC) = U (p, j) w'(j, OC)
//           bwd_input   the same with dy for x and w (IC, (kh, kw, oc)). With stride S, input pixels ih = phase - PH +
//                       S*t meet only the taps with kh*DH = phase mod S: S*S small problems of stride 1
//           bwd_weight  NCHW  dw'(j, OC) = U (j, p) dy'(p, OC)           channels_last  dw (OC, j) = dy'(OC, p) U (p, j)
// Shapes    panels as in cpu/gemm.h; U is read through two tables of offsets, cpu/conv2d/im2col.h
// Tiling    thread: (slab of pixels, group, part of the channels); KC terms at a time. The operand on the left is packed
//           a panel at a time, MR rows, in L1; the one on the right for the slab, in L2 (or w', once, for the call)
// Cost      2*N*OC*OH*OW*(IC/G)*KH*KW flops, lanes and rows beyond the matrices wasted
//           workspace: per thread a slab of image, U or dy, and C tiles if there are more than KC terms; w'
// Limits    none in shape or type: bf16 and f16 widen to float in the panels and are rounded once in the store. bf16 stays
//           as it is where the CPU multiplies pairs of it, and counts values below 2^-126 as zero: cpu/gemm_bf16.h
// Source    Chetlur et al., cuDNN, arXiv:1410.0759, section 3

namespace implicit_gemm {
namespace {

#include "cpu/conv2d/finish.h"
#include "cpu/conv2d/im2col.h"
#include "cpu/gemm.h"

constexpr int64_t slab_pixels = 448;  // 112 to 448: no difference beyond noise
constexpr int64_t most_lanes = 512;   // of a part of w': KC terms of it are 768 KB, of 1 MB of L2
constexpr int64_t serial_flops = 100000;

// C channels of an image -> M channels of output per group.
template <class T>
struct Problem {
  using A = acc_t<T>;
  using P = panel_t<T>;
  static constexpr int64_t L = Vec<A>::size, BN = 2 * L;
  Im2col<T> u;
  int64_t G, M;  // M per group
  T* output;
  Index4 O;
  Finish<T> finish;
  const int64_t* tap;  // offsets of the J terms in U
  int64_t J;
  bool channel_first;  // j is (c, tap), not (tap, c)
  const T* rows;       // NCHW: weights (G, M, J)
  const P* panels;     // channels_last: weights (G, M / BN, J + L, BN)

  // BN pixels in NCHW: where they lie in U and in the output.
  struct PixelPanel {
    int64_t ins, outs;
    Run in[BN], out[BN];
  };
  // What a thread works on: some pixels of an image, for some channels of a group.
  struct Item {
    typename Im2col<T>::Slab slab;
    const T* at;  // U
    T* piece;     // room for it
    T* y;         // output of the slab's first image, the group's first channel
    int64_t pixels, g, m0, channels;
    const int64_t *pixel, *out;  // offsets of the pixels in U and in the output
    P *a, *b;                    // panels
    A* c;                        // tiles
    PixelPanel* panel;

    // The tile of a panel of rows and one of lanes: kept apart only while a sum is not finished.
    A* tile(int64_t index, int64_t J) const { return c + (J > KC ? index * MR * BN : 0); }
  };

  void output_offsets(const typename Im2col<T>::Slab& slab, int64_t* to) const {
    const Axis &h = u.h, &w = u.w;
    for (int64_t n = 0; n < slab.images; n++) {
      for (int64_t oh = 0; oh < slab.rows; oh++) {
        const int64_t line = O(n, 0, h.out0 + (slab.oh + oh) * h.out_step, w.out0);
        for (int64_t ow = 0; ow < w.out; ow++) *to++ = line + ow * w.out_step * O.w;
      }
    }
  }

  // y (channels, pixels) = w (channels, j) U (j, pixels)
  void planes(const Item& s) const {
    const int64_t lane_panels = divide_up(s.pixels, BN);
    const RowPanels row_panels = {s.channels};
    for (int64_t p = 0; p < lane_panels; p++) {
      const int64_t lanes = at_most(BN, s.pixels - p * BN);
      s.panel[p].ins = runs_of(s.pixel + p * BN, lanes, s.panel[p].in);
      s.panel[p].outs = runs_of(s.out + p * BN, lanes, s.panel[p].out, u.w.out_step);
    }
    int64_t weight_row[MR];
    for (int64_t i = 0; i < MR; i++) weight_row[i] = i * J;
    for (int64_t j = 0; j == 0 || j < J; j += block_of(J)) {
      const int64_t terms = at_most(block_of(J), J - j);
      const Run all = {0, 0, terms};
      // The channels of these terms if they are apart, while their copy is in L2; else all of them, once.
      const T* at = s.at;
      if (channel_first && J > KC) {
        const int64_t taps = J / u.C;
        at = u.take(s.slab, s.g * u.C, j / taps, divide_up(j + terms, taps), s.piece);
      }
      for (int64_t p = 0; p < lane_panels; p++) {
        pack_b(at, tap + j, terms, s.panel[p].in, s.panel[p].ins, s.b + p * KC * BN);
      }
      for (int64_t q = 0; q < row_panels.count(); q++) {
        const int64_t m = s.m0 + row_panels.begin(q), count = row_panels.rows(q);
        pack_rows(rows + (s.g * M + m) * J + j, weight_row, count, &all, 1, s.a);
        for (int64_t p = 0; p < lane_panels; p++) {
          A* c = s.tile(q * lane_panels + p, J);
          multiply(count, at_most(BN, s.pixels - p * BN), s.a, s.b + p * KC * BN, terms, c, j == 0);
          if (j + terms >= J) finish_planes(c, s.g, m, count, s.panel[p].out, s.panel[p].outs, s.y + m * O.c);
        }
      }
    }
  }

  void finish_planes(const A* c, int64_t g, int64_t m, int64_t count, const Run* out, int64_t n, T* y) const {
    for (int64_t r = 0; r < count; r++, c += BN, y += O.c) {
      const vec<A> b = splat<A>(finish.bias ? widen(finish.bias[g * M + m + r]) : A(0));
      for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < out[i].count; k += L) {
          const vec<A> v = load(c + out[i].to + k) + b;
          const int64_t left = out[i].count - k;
          if (u.w.out_step == 1) {
            finish.store_up_to(y + out[i].from + k, v, left);
          } else {
            store_every(y + out[i].from + k * u.w.out_step, u.w.out_step, v, left);
          }
        }
      }
    }
  }

  // y (pixels, channels) = U (pixels, j) w'(j, channels)
  void pixels(const Item& s) const {
    const int64_t lane_panels = divide_up(s.channels, BN);
    const RowPanels row_panels = {s.pixels};
    Run runs[KC];
    for (int64_t j = 0; j == 0 || j < J; j += block_of(J)) {
      const int64_t terms = at_most(block_of(J), J - j), n = runs_of(tap + j, terms, runs);
      for (int64_t q = 0; q < row_panels.count(); q++) {
        const int64_t first = row_panels.begin(q), count = row_panels.rows(q);
        pack_rows(s.at, s.pixel + first, count, runs, n, s.a);
        for (int64_t p = 0; p < lane_panels; p++) {
          const int64_t m = s.m0 + p * BN, lanes = at_most(BN, M - m);
          const P* b = panels + ((s.g * divide_up(M, BN) + m / BN) * (J + L) + j) * BN;
          A* c = s.tile(q * lane_panels + p, J);
          multiply(count, lanes, s.a, b, terms, c, j == 0);
          if (j + terms >= J) finish_pixels(c, s.g, m, lanes, s.out + first, count, s.y + m);
        }
      }
    }
  }

  void finish_pixels(const A* c, int64_t g, int64_t m, int64_t lanes, const int64_t* out, int64_t count, T* y) const {
    for (int64_t v = 0; v < lanes; v += L) {
      const vec<A> b = finish.bias ? load_up_to(finish.bias + g * M + m + v, lanes - v) : vec<A>{};
      for (int64_t r = 0; r < count; r++) finish.store_up_to(y + out[r] + v, load(c + r * BN + v) + b, lanes - v);
    }
  }

  void run() const {
    const bool nchw = u.layout == Layout::nchw;
    const int64_t most = u.pixels(), slabs = u.slabs(), flops = 2 * most * J * M;
    if (most == 0 || N() == 0) return;
    // Channels are cut if there are few pixels, and in channels_last so that KC terms of a part of w' stay in L2.
    const int64_t parts = at_most(at_least(parts_of(slabs * G), nchw ? 1 : divide_up(M, most_lanes)), divide_up(M, BN));
    const int64_t part = round_up(divide_up(M, parts), BN);

    const int64_t lane_panels = divide_up(nchw ? most : part, BN), row_panels = RowPanels{nchw ? part : most}.count();
    const int64_t a_size = (MR + 1) * KP<P>, b_size = nchw ? lane_panels * KC * BN : 0;
    const int64_t c_size = MR * BN * (J > KC ? lane_panels * row_panels : 1) + BN;
    parallel_for(
        slabs * G * parts, divide_up(serial_flops, at_least(flops / parts, 1)), [&](int64_t begin, int64_t end) {
          Item s = {};
          const int64_t bytes = sizeof(P) * (a_size + b_size) + sizeof(A) * c_size + sizeof(T) * u.piece_size();
          s.a = static_cast<P*>(scratch(1, bytes));
          s.b = s.a + a_size;
          s.c = reinterpret_cast<A*>(s.b + b_size);
          s.piece = reinterpret_cast<T*>(s.c + c_size);
          s.panel = static_cast<PixelPanel*>(scratch(3, sizeof(PixelPanel) * lane_panels + sizeof(int64_t) * 2 * most));
          int64_t* offsets = reinterpret_cast<int64_t*>(s.panel + lane_panels);
          for (int64_t item = begin; item < end; item++) {
            s.slab = u.slab(item / parts / G);
            s.g = item / parts % G;
            s.m0 = item % parts * part;
            s.channels = at_most(part, M - s.m0);
            s.pixels = s.slab.images * s.slab.rows * u.w.out;
            if (item == begin || s.m0 == 0) {
              const bool later = nchw && channel_first && J > KC;
              if (J > 0 && !later) s.at = u.take(s.slab, s.g * u.C, 0, u.C, s.piece);
              u.pixel_offsets(s.slab, offsets);
              output_offsets(s.slab, offsets + most);
              s.pixel = offsets;
              s.out = offsets + most;
              s.y = output + O(s.slab.n, s.g * M, 0, 0);
            }
            if (s.channels > 0) nchw ? planes(s) : pixels(s);
          }
        });
  }
  int64_t N() const { return u.N; }
};

template <class T>
Problem<T> problem(const Conv2dShape& s, bool gradient, const Axis& h, const Axis& w, const T* source, T* output,
                   const Finish<T>& finish) {
  const int64_t C = gradient ? s.oc_per_group() : s.ic_per_group(), M = gradient ? s.ic_per_group() : s.oc_per_group();
  // In channels_last there may be as few pixels as threads need.
  const int64_t J = C * h.taps * w.taps, share = divide_up(s.N * h.out * w.out, threads());
  const Im2col<T> u(s.layout, s.N, C, h, w, source, gradient ? s.y_index() : s.x_index(),
                    s.layout == Layout::nchw ? slab_pixels : at_most(at_least(share, MR), slab_pixels));
  int64_t* tap = static_cast<int64_t*>(scratch(2, sizeof(int64_t) * J));
  const bool channel_first = s.layout == Layout::nchw && !gradient;
  u.tap_offsets(channel_first, tap);
  return {u, s.G, M, output, gradient ? s.x_index() : s.y_index(), finish, tap, J, channel_first, nullptr, nullptr};
}

// w' (G, OC / BN, J + L, BN) of channels_last. NCHW reads w where it lies.
template <class T>
int64_t packed_size(const Conv2dShape& s) {
  constexpr int64_t L = Vec<acc_t<T>>::size, BN = 2 * L;
  return s.G * divide_up(s.oc_per_group(), BN) * (s.ic_per_group() * s.KH * s.KW + L) * BN;
}

template <class T>
void pack(const Conv2dShape& s, const T* w, panel_t<T>* panels) {
  constexpr int64_t L = Vec<acc_t<T>>::size, BN = 2 * L;
  const int64_t J = s.ic_per_group() * s.KH * s.KW, M = s.oc_per_group(), blocks = divide_up(M, BN);
  parallel_for(s.G * blocks, divide_up(serial_flops, 4 * J * BN + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t m = i % blocks * BN;
      const Run all = {0, 0, J};
      panel_t<T>* panel = panels + i * (J + L) * BN;
      // What the copy leaves is zero, so that equal weights make equal panels.
      for (int64_t k = M - m > L ? J * BN : 0; k < (J + L) * BN; k++) panel[k] = {};
      pack_b_turned(w + (i / blocks * M + m) * J, J, at_most(BN, M - m), &all, 1, panel);
    }
  });
}

// `panels` may be null: made for this call.
template <class T>
void fwd(const Conv2dShape& s, const T* x, const T* w, const panel_t<T>* panels, const Epilogue& e, T* y) {
  using P = panel_t<T>;
  Problem<T> p = problem<T>(s, false, forward_axis(s.OH, s.KH, s.SH, s.PH, s.DH, s.IH),
                            forward_axis(s.OW, s.KW, s.SW, s.PW, s.DW, s.IW), x, y, {e, y});
  p.rows = w;
  p.panels = panels;
  if (s.layout == Layout::nhwc && !panels) {
    P* made = static_cast<P*>(scratch(0, sizeof(P) * packed_size<T>(s)));
    pack(s, w, made);
    p.panels = made;
  }
  p.run();
}

// rows (G, IC, (tap, oc)) of the taps of a phase, from w (G, OC, IC, KH, KW).
template <class T>
void turn_weights(const Conv2dShape& s, const Axis& h, const Axis& w, const T* weights, T* rows) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const int64_t C = s.oc_per_group(), M = s.ic_per_group(), K = s.KH * s.KW, J = C * h.taps * w.taps;
  const auto position = [](const Axis& a, int64_t k) {  // of a kernel row among the taps of the phase
    const int64_t t = a.taps > 1 ? (k - a.tap0) / a.tap_step : 0;
    return a.taps > 0 && t >= 0 && t < a.taps && a.tap0 + t * a.tap_step == k ? t : -1;
  };
  const int64_t blocks = divide_up(C, L);
  parallel_for(s.G * blocks, divide_up(serial_flops, 4 * L * M * K + 1), [&](int64_t begin, int64_t end) {
    A turned[L * L];
    for (int64_t i = begin; i < end; i++) {
      const int64_t g = i / blocks, oc = i % blocks * L;
      const T* from = weights + (g * C + oc) * M * K;
      for (int64_t e = 0; e < M * K; e += L) {  // (ic, tap) lie side by side
        load_columns(from + e, M * K, C - oc, M * K - e, turned, L);
        for (int64_t k = e; k < at_most(e + L, M * K); k++) {
          const int64_t th = position(h, k % K / s.KW), tw = position(w, k % s.KW);
          if (th < 0 || tw < 0) continue;
          store_up_to(rows + (g * M + k / K) * J + (th * w.taps + tw) * C + oc, load(turned + (k - e) * L), C - oc);
        }
      }
    }
  });
}

// panels (G, IC / BN, (tap, oc), BN) of the taps of a phase, from w (G, OC, KH, KW, IC).
template <class T, class P>
void copy_weights(const Conv2dShape& s, const Axis& h, const Axis& w, const T* weights, P* panels) {
  constexpr int64_t L = Vec<acc_t<T>>::size, BN = 2 * L;
  const int64_t C = s.oc_per_group(), M = s.ic_per_group(), J = C * h.taps * w.taps, blocks = divide_up(M, BN);
  parallel_for(s.G * blocks, divide_up(serial_flops, 4 * J * BN + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t g = i / blocks, m = i % blocks * BN;
      const Run lanes = {m, 0, at_most(BN, M - m)};
      P* to = panels + i * (J + L) * BN;
      int64_t row[KC], n = 0;
      for (int64_t t = 0; t < h.taps * w.taps; t++) {
        const int64_t kh = h.tap0 + t / w.taps * h.tap_step, kw = w.tap0 + t % w.taps * w.tap_step;
        for (int64_t c = 0; c < C; c++) {
          row[n++] = (((g * C + c) * s.KH + kh) * s.KW + kw) * M;
          if (n < KC) continue;
          pack_b(weights, row, n, &lanes, 1, to);
          to += n * BN, n = 0;
        }
      }
      pack_b(weights, row, n, &lanes, 1, to);
    }
  });
}

// Some phase of a stride meets no tap of K.
inline bool phase_without_taps(int64_t K, int64_t stride, int64_t dilation) {
  for (int64_t phase = 0; phase < stride; phase++) {
    bool met = false;
    for (int64_t k = 0; k < K; k++) met = met || (phase - k * dilation) % stride == 0;
    if (!met) return true;
  }
  return false;
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  using P = panel_t<T>;
  constexpr int64_t L = Vec<acc_t<T>>::size, BN = 2 * L;
  const bool gaps = phase_without_taps(s.KH, s.SH, s.DH) || phase_without_taps(s.KW, s.SW, s.DW);
  if (gaps) {  // pixels that no output sees
    const int64_t lines = s.N * s.IC * s.IH;
    parallel_for(lines, divide_up(serial_flops, at_least(s.IW, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin * s.IW; k < end * s.IW; k++) dx[k] = T();
    });
  }
  for (int64_t ph = 0; ph < s.SH; ph++) {
    for (int64_t pw = 0; pw < s.SW; pw++) {
      const Axis h = phase_axis(ph, s.IH, s.KH, s.SH, s.PH, s.DH, s.OH),
                 v = phase_axis(pw, s.IW, s.KW, s.SW, s.PW, s.DW, s.OW);
      if (gaps && h.taps * v.taps == 0) continue;
      Problem<T> p = problem<T>(s, true, h, v, dy, dx, {});
      const int64_t channels = s.layout == Layout::nchw ? p.M : round_up(p.M, BN);
      void* weights = scratch(0, (s.layout == Layout::nchw ? sizeof(T) : sizeof(P)) * s.G * channels * (p.J + L));
      if (s.layout == Layout::nchw) {
        turn_weights(s, h, v, w, static_cast<T*>(weights));
        p.rows = static_cast<const T*>(weights);
      } else {
        copy_weights(s, h, v, w, static_cast<P*>(weights));
        p.panels = static_cast<const P*>(weights);
      }
      p.run();
    }
  }
}

#include "cpu/conv2d/implicit_gemm_weight.h"

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    fwd<T>(s, static_cast<const T*>(x), static_cast<const T*>(w), nullptr, e, static_cast<T*>(y));
  });
}

int64_t packed_bytes(const Conv2dShape& s) {
  if (s.layout == Layout::nchw) return 0;
  int64_t bytes = 0;
  with_storage(s.dtype, [&](auto type) { bytes = sizeof(panel_t<decltype(type)>) * packed_size<decltype(type)>(s); });
  return bytes;
}

void pack(const Conv2dShape& s, const void* w, void* packed) {
  with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    pack(s, static_cast<const T*>(w), static_cast<panel_t<T>*>(packed));
  });
}

void fwd_packed(const Conv2dShape& s, const void* x, const void* packed, const Epilogue& e, void* y) {
  with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    fwd<T>(s, static_cast<const T*>(x), nullptr, static_cast<const panel_t<T>*>(packed), e, static_cast<T*>(y));
  });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    bwd_input(s, static_cast<const T*>(dy), static_cast<const T*>(w), static_cast<T*>(dx));
  });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    bwd_weight(s, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw));
  });
}

}  // namespace implicit_gemm

// conv2d / implicit GEMM: every direction is one matrix product with the matrix U that im2col would make.
// Computes  U (taps, pixels) in NCHW, (pixels, taps) in channels_last: rows as they lie in memory; j = (ic, kh, kw) or
//           (kh, kw, ic), p = output pixel
//           fwd         NCHW  y (OC, p) = w (OC, j) U (j, p)             channels_last  y (p, OC) = U (p, j) w'(j, OC)
//           bwd_input   the same with dy for x and w (IC, (kh, kw, oc)). With stride S, input pixels ih = phase - PH +
//                       S*t meet only the taps with kh*DH = phase mod S: S*S small problems of stride 1
//           bwd_weight  NCHW  dw'(j, OC) = U (j, p) dy'(p, OC)           channels_last  dw (OC, j) = dy'(OC, p) U (p, j)
// Shapes    panels as in cpu/gemm.h; U is read through two tables of offsets, cpu/conv2d/im2col.h
// Tiling    thread: (slab of pixels, group, part of the channels); KC terms at a time. The operand on the left is read
//           where it lies or packed a panel at a time, MR rows, in L1; the one on the right, where it lies or packed for
//           the slab, in L2 (or w', once, for the call)
// Cost      2*N*OC*OH*OW*(IC/G)*KH*KW flops, lanes and rows beyond the matrices wasted
//           workspace: per thread a slab of image, U or dy, and C tiles if there are more than KC terms; w'; in NCHW,
//           where an image has few pixels, channels_last copies of x, y and w
// Limits    none in shape or type: bf16 and f16 widen to float in the panels and are rounded once in the store. bf16 stays
//           as it is where the CPU multiplies pairs of it, and counts values below 2^-126 as zero: cpu/gemm_bf16.h
// Source    Chetlur et al., cuDNN, arXiv:1410.0759, section 3

namespace implicit_gemm {
namespace {

#include "cpu/finish.h"

#include "cpu/conv2d/im2col.h"
#include "cpu/conv2d/nchw_copies.h"
#include "cpu/gemm.h"

constexpr int64_t slab_pixels = 448;  // 112 to 448: no difference beyond noise
constexpr int64_t most_lanes = 512;   // of a part of w': KC terms of it are 768 KB, of 1 MB of L2

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
    A* bias;                     // what the sums start from: channels_last (channels), NCHW (MR, BN)
    PixelPanel* panel;
    Right<P>* right;

    // The tile of a panel of rows and one of lanes: kept apart only while a sum is not finished.
    A* tile(int64_t index, int64_t J) const { return c + (J > KC ? index * MR * BN : 0); }
  };

  void output_offsets(const typename Im2col<T>::Slab& slab, int64_t* to) const {
    const Axis &h = u.h, &w = u.w;
    for (int64_t n = 0; n < slab.images; n++) {
      const int64_t first = O(n, 0, h.out0 + slab.oh * h.out_step, w.out0);
      to = grid_offsets(first, slab.rows, h.out_step * O.h, w.out, w.out_step * O.w, to);
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
      const bool last = j + terms >= J;
      const Run all = {0, 0, terms};
      // The channels of these terms if they are apart, while their copy is in L2; else all of them, once.
      const T* at = s.at;
      if (channel_first && J > KC) {
        const int64_t taps = J / u.C;
        at = u.take(s.slab, s.g * u.C, j / taps, divide_up(j + terms, taps), s.piece);
      }
      for (int64_t p = 0; p < lane_panels; p++) {
        s.right[p] = lanes_of(at, tap + j, terms, s.panel[p].in, s.panel[p].ins, s.b + p * KC * BN);
      }
      for (int64_t q = 0; q < row_panels.count(); q++) {
        const int64_t m = s.m0 + row_panels.begin(q), count = row_panels.rows(q);
        const Left<P> w = left_of(rows + (s.g * M + m) * J + j, weight_row, count, &all, 1, &all, s.a);
        for (int64_t r = 0; r < MR && j == 0; r++) {
          const vec<A> b = splat<A>(finish.bias && r < count ? widen(finish.bias[s.g * M + m + r]) : A(0));
          store(s.bias + r * BN, b);
          store(s.bias + r * BN + L, b);
        }
        for (int64_t p = 0; p < lane_panels; p++) {
          const int64_t lanes = at_most(BN, s.pixels - p * BN);
          const PixelPanel& panel = s.panel[p];
          A* c = s.tile(q * lane_panels + p, J);
          const Start<A> start = {j == 0 ? s.bias : c, true, j > 0};
          const bool direct = last && count % 2 == 0 && panel.outs == 1 && u.w.out_step == 1;
          T* y = s.y + m * O.c;
          multiply(count, lanes, w, s.right[p], start,
                   Target<T>{direct ? nullptr : c, y + panel.out[0].from, O.c, lanes, finish});
          if (last && !direct) finish_planes(c, count, panel.out, panel.outs, y);
        }
      }
    }
  }

  void finish_planes(const A* c, int64_t count, const Run* out, int64_t n, T* y) const {
    for (int64_t r = 0; r < count; r++, c += BN, y += O.c) {
      for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < out[i].count; k += L) {
          const vec<A> v = load(c + out[i].to + k);
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
    for (int64_t m = 0; m < lane_panels * BN; m += L) {
      const int64_t left = s.channels - m;
      store(s.bias + m, finish.bias && left > 0 ? load_up_to(finish.bias + s.g * M + s.m0 + m, left) : vec<A>{});
    }
    Run runs[KC];
    for (int64_t j = 0; j == 0 || j < J; j += block_of(J)) {
      const int64_t terms = at_most(block_of(J), J - j), n = runs_of(tap + j, terms, runs);
      const bool last = j + terms >= J;
      const Run all = {0, 0, terms};
      for (int64_t q = 0; q < row_panels.count(); q++) {
        const int64_t first = row_panels.begin(q), count = row_panels.rows(q);
        const int64_t* out = s.out + first;
        const Left<P> x = left_of(s.at, s.pixel + first, count, runs, n, &all, s.a);
        const bool direct = last && count % 2 == 0 && evenly_apart(out, count);
        for (int64_t p = 0; p < lane_panels; p++) {
          const int64_t m = s.m0 + p * BN, lanes = at_most(BN, M - m);
          const P* b = panels + ((s.g * divide_up(M, BN) + m / BN) * (J + L) + j) * BN;
          A* c = s.tile(q * lane_panels + p, J);
          const Start<A> start = {j == 0 ? s.bias + p * BN : c, j > 0, j > 0};
          T* y = s.y + m;
          multiply(count, lanes, x, Right<P>{b, BN}, start,
                   Target<T>{direct ? nullptr : c, y + out[0], direct ? out[1] - out[0] : 0, lanes, finish});
          if (last && !direct) finish_pixels(c, lanes, out, count, y);
        }
      }
    }
  }

  void finish_pixels(const A* c, int64_t lanes, const int64_t* out, int64_t count, T* y) const {
    for (int64_t v = 0; v < lanes; v += L) {
      for (int64_t r = 0; r < count; r++) finish.store_up_to(y + out[r] + v, load(c + r * BN + v), lanes - v);
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
    const int64_t bias_size = nchw ? MR * BN : lane_panels * BN;
    parallel_for(slabs * G * parts, divide_up(serial_flops, at_least(flops / parts, 1)),
                 [&](int64_t begin, int64_t end) {
                   Item s = {};
                   const int64_t bytes =
                       sizeof(P) * (a_size + b_size) + sizeof(A) * (c_size + bias_size) + sizeof(T) * u.piece_size();
                   s.a = static_cast<P*>(scratch(1, bytes));
                   s.b = s.a + a_size;
                   s.c = reinterpret_cast<A*>(s.b + b_size);
                   s.bias = s.c + c_size;
                   s.piece = reinterpret_cast<T*>(s.bias + bias_size);
                   s.panel = static_cast<PixelPanel*>(
                       scratch(3, (sizeof(PixelPanel) + sizeof(Right<P>)) * lane_panels + sizeof(int64_t) * 2 * most));
                   s.right = reinterpret_cast<Right<P>*>(s.panel + lane_panels);
                   int64_t* offsets = reinterpret_cast<int64_t*>(s.right + lane_panels);
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

// The same convolution on one line of pixels, all images' or an image's, where nothing depends on rows.
inline Conv2dShape on_a_line(Conv2dShape s) {
  if (s.KH * s.KW * s.SH * s.SW != 1 || s.PH + s.PW > 0) return s;
  s.IH *= s.IW;
  if (s.layout == Layout::nhwc) {
    s.IH *= s.N;
    s.N = 1;
  }
  s.OH = s.IH;
  s.IW = s.OW = 1;
  return s;
}

// `panels` may be null: made for this call.
template <class T>
void fwd(const Conv2dShape& given, const T* x, const T* w, const panel_t<T>* panels, const Epilogue& e, T* y) {
  using P = panel_t<T>;
  const Conv2dShape s = on_a_line(given);
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

#include "cpu/conv2d/implicit_gemm_input.h"
#include "cpu/conv2d/implicit_gemm_weight.h"

// Few pixels in NCHW are short runs, to be gathered tap by tap; they go by way of channels_last. Time without over time
// with, two threads of Zen 5, fwd and bwd_input of 3x3 with stride 2: 128 -> 256 to 2x2 2.6 and 3.2, 256 -> 512 to 4x4 1.8
// and 2.2, 64 -> 96 to 7x7 1.4 and 1.9, 16 -> 32 to 14x14 1.4 and 1.8, 64 -> 128 to 20x20 1.1 and 1.3, 8 -> 16 to 7x7 1.6
// and 1.2; LeNet c3, 6 channels, 0.9 and 0.8.
template <class T>
bool by_copies(const Conv2dShape& s, bool weight) {
  const int64_t pixels = s.OH * s.OW;
  const bool few = pixels <= 16 || (!weight && pixels <= 1024 && s.ic_per_group() >= 8 && s.oc_per_group() >= 8);
  return s.layout == Layout::nchw && s.KH * s.KW > 1 && few && !in_pairs<panel_t<T>>;
}

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    if (!by_copies<T>(s, false)) {
      return fwd<T>(s, static_cast<const T*>(x), static_cast<const T*>(w), nullptr, e, static_cast<T*>(y));
    }
    if constexpr (!in_pairs<panel_t<T>>) {
      const Copies<T> copies(s);
      copies.gather_x(static_cast<const T*>(x));
      copies.gather_w(static_cast<const T*>(w));
      const Epilogue bias = {copies.widened(static_cast<const T*>(e.bias))};
      fwd<acc_t<T>>(copies.s, copies.x, copies.w, nullptr, bias, copies.y);
      copies.scatter(copies.y, s.N, s.OC, s.OH * s.OW, static_cast<T*>(y), {e, y});
    }
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
    if (!by_copies<T>(s, false))
      return bwd_input(s, static_cast<const T*>(dy), static_cast<const T*>(w), static_cast<T*>(dx));
    if constexpr (!in_pairs<panel_t<T>>) {
      const Copies<T> copies(s);
      copies.gather_y(static_cast<const T*>(dy));
      copies.gather_w(static_cast<const T*>(w));
      bwd_input(copies.s, copies.y, copies.w, copies.x);
      copies.scatter(copies.x, s.N, s.IC, s.IH * s.IW, static_cast<T*>(dx));
    }
  });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    if (!by_copies<T>(s, true)) {
      return bwd_weight(s, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw));
    }
    if constexpr (!in_pairs<panel_t<T>>) {
      const Copies<T> copies(s);
      copies.gather_x(static_cast<const T*>(x));
      copies.gather_y(static_cast<const T*>(dy));
      bwd_weight<acc_t<T>>(copies.s, copies.y, copies.x, copies.w);
      copies.scatter(copies.w, s.OC, s.ic_per_group(), s.KH * s.KW, static_cast<T*>(dw));
    }
  });
}

}  // namespace implicit_gemm

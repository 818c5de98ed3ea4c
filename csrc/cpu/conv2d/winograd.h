// conv2d / Winograd: filters of 2 to 5 or 7 taps at stride 1 in a fraction of their products.
// Computes  y = AT [ sum_c (G w G') * (BT x B) ] A on tiles of outputs: the products are independent matrix products
//           M[f] (tiles, OC) = V[f] (tiles, IC) U[f] (IC, OC), one per frequency f. An axis of 2, 3, 4, 5, 7 taps takes
//           F(5, 2), F(4, 3), F(5, 4), F(4, 5), F(2, 7), of 1 nothing (and of 3 taps F(3, 3) or F(2, 3) where they
//           leave fewer tiles empty): a 3x3 filter has 36 frequencies for 16 outputs,
//           2.25 products each instead of 9; 5x5 4 instead of 25; 7x7 16 instead of 49; 1x7 4 instead of 7.
//           bwd_input is the same with the filter rotated and padding D * (K - 1) - P; bwd_weight: winograd_weight.h;
//           strides: winograd_strided.h
// Shapes    V (KC channels, f, L channels, tile, L);  U (OC block, KC channels, f, KC, 2 L);  M (OC block, f, tile, 2 L)
// Tiling    registers: MR x 2 accumulators, which start anew every KC channels to bound the growth of the error.
//           Many tiles: U made first, once; thread: a range of (block of tiles, OC block), V and M of a block in L2.
//           Few tiles: thread: a range of OC blocks, for all tiles; U made where it is used, and used once
// Cost      2*N*OC*OH*OW*IC*KH*KW flops over the gains above (tiles beyond the border wasted), transforms beside them
//           workspace: per thread V and M; U, 1.3 to 4 times the weights, where there are many tiles. U is not kept
//           between calls: reading it costs more than making it (ResNet-20 at batch 1 took 1.3 times as long)
// Limits    1 to 5 or 7 taps a stride. Rounds differently from a direct sum: the error is a few times larger, and an inf or NaN spreads
//           over its tile. pyconv.backends.allow_winograd forbids it.
//           F(2x2, 3x3) and F(6x6, 3x3) are not here: a prototype on ResNet and VGG layers (2 threads of Zen 4) was 1.35
//           to 1.97, 1.87 to 3.02 and 1.06 to 3.19 times as fast as torch with F2, F4 and F6; F6 errs 2 to 4 times as
//           much as F4
// Source    Lavin and Gray, arXiv:1509.09308; the points: toom_cook.h

namespace winograd {
namespace {

#include "cpu/finish.h"

#include "cpu/conv2d/winograd_axis.h"
#include "cpu/conv2d/winograd_transform.h"

constexpr int64_t KC = 64;  // channels of one sum: a sum of 512 in one run errs 2.4 times as much (simulated)
constexpr int64_t block_bytes = 704 * 1024;  // V and M of a block, in 1 MB of L2; 450 KB to 1.5 MB: no clear winner
// V of all channels is kept while blocks of OC follow one another; beyond that M is, of the OC blocks that meet one chunk
// of V in turn. A fifth of either lost up to 20 % (7x7 images of 512 channels, 4x4 of 1024), four times as much won nothing.
constexpr int64_t kept_v_bytes = int64_t(8) << 20;
constexpr int64_t group_bytes = int64_t(3) << 20;
constexpr int64_t serial_flops = 100000;

// Adjacent planes start some lines beyond a power of two: otherwise the stores of a transform fall into one set.
template <class A>
constexpr int64_t plane_pad = 7 * 64 / sizeof(A);

// Weights of one group; lanes run over the channels that are produced, first axis (fwd) or second (bwd_input).
template <class T>
struct Weights {
  const T* w;
  Layout layout;
  int64_t C, M;  // channels summed and produced
  int64_t taps;
  bool rotated;  // bwd_input: w (C, M, KH, KW) with taps reversed, else (M, C, KH, KW)

  // block (row axis 0..L, tap, lane) of w at (first, second), in the form that needs the fewest transposes:
  // NCHW gives rows = second axis, lanes = first; channels_last the opposite.
  template <class A>
  void read(int64_t first, int64_t second, A* block) const {
    constexpr int64_t L = Vec<A>::size;
    const int64_t F = rotated ? C : M, S = rotated ? M : C;
    const int64_t firsts = at_most(L, F - first), seconds = at_most(L, S - second);
    // The block read next, to be there by then: its rows are too far apart for a prefetcher.
    const int64_t next = rotated ? L * taps * S : layout == Layout::nhwc ? L : L * taps;
    if (layout == Layout::nhwc) {
      for (int64_t i = 0; i < L; i++) {
        for (int64_t tap = 0; tap < taps; tap++, block += L) {
          const T* from = w + ((first + i) * taps + tap) * S + second;
          __builtin_prefetch(from + next);
          store(block, i < firsts ? load_up_to(from, seconds) : vec<A>{});
        }
      }
      return;
    }
    for (int64_t e = 0; e < L * taps; e += L) {  // (second, tap) lie side by side
      const int64_t count = at_least(at_most(L, seconds * taps - e), 0);
      const T* from = w + (first * S + second) * taps + e;
      for (int64_t i = 0; i < L; i++) __builtin_prefetch(from + i * S * taps + next);
      load_columns(from, S * taps, firsts, count, block + e * L, L);
    }
  }

  // u[f] (channels rounded up to L, NV vectors) for produced channels m0.. and summed channels [c0, c0 + channels).
  template <class A>
  void transform(const Transform<A>& to, int64_t m0, int64_t NV, int64_t c0, int64_t channels, A* u,
                 int64_t plane) const {
    constexpr int64_t L = Vec<A>::size;
    alignas(64) A block[L * 49 * L], half[8 * 7 * L];  // (c, tap, m)
    for (int64_t v = 0; v < NV; v++) {
      for (int64_t c = 0; c < channels; c += L) {
        const int64_t m = m0 + v * L;
        read(rotated ? c0 + c : m, rotated ? m : c0 + c, block);
        for (int64_t tap = 0; tap < taps && rotated == (layout == Layout::nchw);
             tap++) {  // rows and lanes change places
          load_columns(block + tap * L, taps * L, L, L, block + tap * L, taps * L);
        }
        for (int64_t i = 0; i < L; i++) {
          const A* first = block + (i * taps + (rotated ? taps - 1 : 0)) * L;
          to.filter(first, rotated ? -L : L, half, u + ((c + i) * NV + v) * L, plane);
        }
      }
    }
  }
};

// multiply<rows>, MR first as it is the common case.
template <class A, int NV, int R = MR>
PYCONV_INLINE void multiply_rows(int64_t rows, const A* a, int64_t lda, const A* b, int64_t blocks, A* c, bool first) {
  if (rows == R) return multiply<A, R, NV, Vec<A>::size>(a, lda, b, blocks, c, first);
  if constexpr (R > 1) multiply_rows<A, NV, R - 1>(rows, a, lda, b, blocks, c, first);
}

// M[f] (+)= V[f] U[f] for one frequency: the tiles in groups of equal size, at most MR.
template <class A, int NV>
void product(const A* v, int64_t tiles, const A* u, int64_t channels, A* m, bool first) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t groups = divide_up(tiles, MR);
  for (int64_t g = 0; g < groups; g++) {
    const int64_t t = tiles * g / groups, rows = tiles * (g + 1) / groups - t;
    multiply_rows<A, NV>(rows, v + t * L, tiles * L, u, divide_up(channels, L), m + t * NV * L, first);
  }
}

// One group of a convolution, forward or by its input gradient: C channels of x summed into M channels of y.
template <class T>
struct Problem {
  using A = acc_t<T>;
  static constexpr int64_t L = Vec<A>::size, BN = 2 * L;
  Weights<T> weights;
  Transform<A> transform;
  int64_t C, M, IH, IW, PH, PW;
  const T* x;  // at its group's first channel, as y and finish.bias
  Index4 X;
  T* y;
  Index4 Y;
  Finish<T> finish;

  const Tiles& tiles() const { return transform.tiles; }
  int64_t frequencies() const { return transform.frequencies(); }
  int64_t chunk() const { return at_most(KC, divide_up(C, L) * L); }  // channels of V and U between restarts
  int64_t chunks() const { return divide_up(C, chunk()); }
  int64_t channels(int64_t k) const { return at_most(chunk(), C - k * chunk()); }
  int64_t m_blocks() const { return divide_up(M, BN); }
  int64_t vectors(int64_t block) const { return M - block * BN > L ? 2 : 1; }
  int64_t v_plane(int64_t count) const { return chunk() * count + plane_pad<A>; }
  int64_t u_plane() const { return chunk() * BN + plane_pad<A>; }
  int64_t m_plane(int64_t count) const { return BN * count + plane_pad<A>; }

  // Whether all tiles are worked on at once: while there are fewer than would pay for U, writing it and reading it once
  // per block; else how many.
  int64_t tiles_per_block() const {
    const int64_t all = tiles().count(), bytes = frequencies() * sizeof(A) * (chunks() * chunk() + BN);
    if (all * 5 <= M * 6 || all * bytes <= block_bytes / 2) return all;
    const int64_t phases = tiles().phases(), bundles = divide_up(block_bytes / bytes / MR * MR, phases);
    return at_most(all, at_least(bundles * phases, round_up(MR, phases)));
  }

  // Channels of chunk k.
  void make_v(int64_t k, int64_t begin, int64_t end, A* v, A* piece, A* half) const {
    const int64_t plane = v_plane(end - begin), phases = tiles().phases();
    for (int64_t c = 0; c < channels(k); c += L) {
      const int64_t channel = k * chunk() + c;
      for (int64_t t = begin; t < end;) {
        const Run run = tiles().run(t, end);
        pack(x + X(run.n, channel, 0, 0), X, at_most(L, C - channel),
             Span{run.oh - PH, tiles().DH, transform.h.points, IH},
             Span{run.ow - PW, 1, transform.input_columns(run.bundles), IW}, piece);
        transform.inputs(piece, run.bundles, half, v + c * (end - begin) + (t - begin) * L, plane, L);
        t += run.bundles * phases;
      }
    }
  }

  void make_u(int64_t block, int64_t k, A* u) const {
    weights.transform(transform, block * BN, vectors(block), k * chunk(), channels(k), u, u_plane());
  }

  void multiply_all(int64_t block, int64_t k, int64_t count, const A* v, const A* u, A* m) const {
    for (int64_t f = 0; f < frequencies(); f++) {
      const A *vf = v + f * v_plane(count), *uf = u + f * u_plane();
      A* mf = m + f * m_plane(count);
      if (vectors(block) == 2) {
        product<A, 2>(vf, count, uf, channels(k), mf, k == 0);
      } else {
        product<A, 1>(vf, count, uf, channels(k), mf, k == 0);
      }
    }
  }

  void make_y(int64_t block, int64_t begin, int64_t end, const A* m, A* piece, A* half) const {
    const int64_t NV = vectors(block);
    for (int64_t v = 0; v < NV; v++) {
      const int64_t channel = block * BN + v * L, count = at_most(L, M - channel);
      alignas(64) A bias[L];
      store(bias, finish.bias ? load_up_to(finish.bias + channel, count) : vec<A>{});
      for (int64_t t = begin; t < end;) {
        const Run run = tiles().run(t, end);
        transform.outputs(m + ((t - begin) * NV + v) * L, m_plane(end - begin), NV * L, run.bundles, bias, half, piece);
        unpack(piece, count, Span{run.oh, tiles().DH, tiles().rows, tiles().OH},
               Span{run.ow, 1, run.bundles * tiles().width(), tiles().OW}, y + Y(run.n, channel, 0, 0), Y, finish);
        t += run.bundles * tiles().phases();
      }
    }
  }

  // Thread: a range of (block of tiles, OC block); V holds all channels of a block of tiles.
  void run_blocks(int64_t per_block) const {
    const int64_t all = tiles().count(), u_size = chunks() * frequencies() * u_plane();
    A* u = static_cast<A*>(scratch(0, sizeof(A) * m_blocks() * u_size));
    parallel_for(m_blocks() * chunks(), divide_up(serial_flops, 100 * chunk() * BN), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) make_u(i / chunks(), i % chunks(), u + i * frequencies() * u_plane());
    });
    const int64_t v_size = frequencies() * v_plane(per_block), m_size = frequencies() * m_plane(per_block);
    const int64_t flops = 2 * frequencies() * per_block * C * BN, blocks = m_blocks();
    parallel_for(divide_up(all, per_block) * blocks, divide_up(serial_flops, flops), [&](int64_t begin, int64_t end) {
      A* v = static_cast<A*>(scratch(1, sizeof(A) * (chunks() * v_size + m_size + 2 * transform.room())));
      A *m = v + chunks() * v_size, *piece = m + m_size, *half = piece + transform.room();
      for (int64_t i = begin; i < end; i++) {
        const int64_t t0 = i / blocks * per_block, t1 = at_most(t0 + per_block, all), block = i % blocks;
        const int64_t size = frequencies() * v_plane(t1 - t0);
        for (int64_t k = 0; k < chunks() && (i == begin || block == 0); k++) {
          make_v(k, t0, t1, v + k * size, piece, half);
        }
        for (int64_t k = 0; k < chunks(); k++) {
          multiply_all(block, k, t1 - t0, v + k * size, u + (block * chunks() + k) * frequencies() * u_plane(), m);
        }
        make_y(block, t0, t1, m, piece, half);
      }
    });
  }

  // Thread: a range of OC blocks, some of them at a time: each chunk of V is made for all of these, and where it is
  // small kept for those after them.
  void run_at_once() const {
    const int64_t all = tiles().count();
    const int64_t v_size = frequencies() * v_plane(all), m_size = frequencies() * m_plane(all);
    const bool keep = chunks() * v_size * int64_t(sizeof(A)) <= kept_v_bytes;
    const int64_t group = at_least(keep ? 1 : group_bytes / int64_t(sizeof(A)) / m_size, 1);
    const int64_t flops = 2 * frequencies() * all * C * BN, kept = keep ? chunks() : 1;
    parallel_for(m_blocks(), divide_up(serial_flops, flops), [&](int64_t begin, int64_t end) {
      const int64_t blocks = at_most(group, end - begin);
      const int64_t size = kept * v_size + blocks * m_size + frequencies() * u_plane() + 2 * transform.room();
      A* v = static_cast<A*>(scratch(1, sizeof(A) * size));
      A *m = v + kept * v_size, *u = m + blocks * m_size, *piece = u + frequencies() * u_plane();
      A* half = piece + transform.room();
      for (int64_t b0 = begin; b0 < end; b0 += group) {
        const int64_t b1 = at_most(b0 + group, end);
        for (int64_t k = 0; k < chunks(); k++) {
          A* vk = v + (keep ? k : 0) * v_size;
          if (b0 == begin || !keep) make_v(k, 0, all, vk, piece, half);
          for (int64_t b = b0; b < b1; b++) {
            make_u(b, k, u);
            multiply_all(b, k, all, vk, u, m + (b - b0) * m_size);
          }
        }
        for (int64_t b = b0; b < b1; b++) make_y(b, 0, all, m + (b - b0) * m_size, piece, half);
      }
    });
  }

  void run() const {
    if (tiles().count() == 0) return;
    const int64_t per_block = tiles_per_block();
    per_block < tiles().count() ? run_blocks(per_block) : run_at_once();
  }
};

// The algorithms of both axes, on the tiles of an OH x OW output.
template <class A>
Transform<A> transform_of(const Conv2dShape& s, int64_t OH, int64_t OW) {
  const int64_t DH = s.KH > 1 ? s.DH : 1, DW = s.KW > 1 ? s.DW : 1;
  const Algorithm<A>&h = algorithm_of<A>(s.KH, OH, DH), &w = algorithm_of<A>(s.KW, OW, DW);
  return {h, w, {s.N, OH, OW, DH, DW, h.step, w.step}};
}

// One group at stride 1; w (M, C, KH, KW) in `layout`, which need not be that of x and y.
template <class T>
void forward(const Conv2dShape& s, const T* x, const Index4& X, const T* w, Layout layout, T* y, const Index4& Y,
             const Finish<T>& finish) {
  const int64_t C = s.ic_per_group(), M = s.oc_per_group();
  const Weights<T> weights = {w, layout, C, M, s.KH * s.KW, false};
  Problem<T>{weights, transform_of<acc_t<T>>(s, s.OH, s.OW), C, M, s.IH, s.IW, s.PH, s.PW, x, X, y, Y, finish}.run();
}
template <class T>
void gradient(const Conv2dShape& s, const T* dy, const Index4& Y, const T* w, Layout layout, T* dx, const Index4& X) {
  const int64_t C = s.oc_per_group(), M = s.ic_per_group();
  const int64_t PH = s.DH * (s.KH - 1) - s.PH, PW = s.DW * (s.KW - 1) - s.PW;
  const Weights<T> weights = {w, layout, C, M, s.KH * s.KW, true};
  Problem<T>{weights, transform_of<acc_t<T>>(s, s.IH, s.IW), C, M, s.OH, s.OW, PH, PW, dy, Y, dx, X, {}}.run();
}

#include "cpu/conv2d/winograd_strided.h"

template <class T>
void fwd(const Conv2dShape& s, const T* x, const T* w, const Epilogue& e, T* y) {
  const int64_t C = s.ic_per_group(), M = s.oc_per_group();
  const Index4 X = s.x_index(), Y = s.y_index();
  Finish<T> finish(e, y);
  for (int64_t g = 0; g < s.G; g++) {
    const T *xg = x + X(0, g * C, 0, 0), *wg = w + g * M * C * s.KH * s.KW;
    T* yg = y + Y(0, g * M, 0, 0);
    if (s.SH * s.SW > 1) {
      strided_forward(s, xg, wg, yg, finish);
    } else {
      forward(s, xg, X, wg, s.layout, yg, Y, finish);
    }
    if (finish.bias) finish.bias += M;
  }
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  const int64_t C = s.ic_per_group(), M = s.oc_per_group();
  const Index4 X = s.x_index(), Y = s.y_index();
  for (int64_t g = 0; g < s.G; g++) {
    const T *dyg = dy + Y(0, g * M, 0, 0), *wg = w + g * M * C * s.KH * s.KW;
    T* dxg = dx + X(0, g * C, 0, 0);
    if (s.SH * s.SW > 1) {
      strided_gradient(s, dyg, wg, dxg);
    } else {
      gradient(s, dyg, Y, wg, s.layout, dxg, X);
    }
  }
}

template <class T>
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  const int64_t C = s.ic_per_group(), M = s.oc_per_group();
  const Index4 X = s.x_index(), Y = s.y_index();
  for (int64_t g = 0; g < s.G; g++) {
    const T *xg = x + X(0, g * C, 0, 0), *dyg = dy + Y(0, g * M, 0, 0);
    T* dwg = dw + g * M * C * s.KH * s.KW;
    if (s.SH * s.SW > 1) {
      strided_weight_gradient(s, dyg, xg, dwg);
    } else {
      weight_gradient(s, dyg, Y, xg, X, dwg, s.layout);
    }
  }
}

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    fwd(s, static_cast<const T*>(x), static_cast<const T*>(w), e, static_cast<T*>(y));
  });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    bwd_input(s, static_cast<const T*>(dy), static_cast<const T*>(w), static_cast<T*>(dx));
  });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    bwd_weight(s, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw));
  });
}

}  // namespace winograd

// conv2d / Winograd: 3 x 3 filters at stride 1 in 2.25 products per output instead of 9.
// Computes  y = AT [ sum_c (G w G') * (BT x B) ] A on tiles of 4 x 4 outputs, F(4x4, 3x3): the products are 36
//           independent matrix products M[f] (tiles, OC) = V[f] (tiles, IC) U[f] (IC, OC), one per frequency.
//           bwd_input is the same with the filter rotated and padding 2 - P; bwd_weight is in winograd_weight.h
// Shapes    V (KC channels, 36, L channels, tile, L);  U (OC block, KC channels, 36, KC, 2 L);  M (36, tile, 2 L)
// Tiling    thread: a range of (block of tiles, OC block), V and M of the block its own, in L2; registers: MR x 2
//           accumulators, which start anew every KC channels to bound the growth of the error.
//           Many tiles: U made first, once. Few tiles: one block, U made where it is used, and used once
// Cost      2*N*OC*OH*OW*IC*9 / 4 flops in the products (tiles beyond the border wasted), transforms beside them
//           workspace: per thread one block of V and M; U, 4 times the weights, where there are many tiles. U is not
//           kept between calls: reading it costs more than making it (ResNet-20 at batch 1 took 1.3 times as long)
// Limits    3x3, stride 1, dilation 1. Rounds differently from a direct sum: the error is a few times larger, and an
//           inf or NaN spreads over its 4 x 4 tile. pyconv.backends.allow_winograd forbids it
//           F(2x2) and F(6x6) are not here: a prototype on ResNet and VGG layers (2 threads of Zen 4) was 1.35 to 1.97,
//           1.87 to 3.02 and 1.06 to 3.19 times as fast as torch with F2, F4 and F6; F6 errs 2 to 4 times as much as F4
// Source    Lavin and Gray, arXiv:1509.09308; the points: toom_cook.h

namespace winograd {
namespace {

#include "cpu/conv2d/finish.h"
#include "cpu/conv2d/winograd_transform.h"

constexpr int64_t KC = 64;  // channels of one sum: a sum of 512 in one run errs 2.4 times as much (simulated)
constexpr int64_t block_bytes = 704 * 1024;  // V and M of a block, in 1 MB of L2; 450 KB to 1.5 MB: no clear winner
constexpr int64_t serial_flops = 100000;

// Adjacent planes start some lines beyond a power of two: otherwise the 36 stores of a transform fall into one set.
template <class A>
constexpr int64_t plane_pad = 7 * 64 / sizeof(A);

// Weights of one group; lanes run over the channels that are produced, first axis (fwd) or second (bwd_input).
template <class T>
struct Weights {
  const T* w;
  Layout layout;
  int64_t C, M;  // channels summed and produced
  bool rotated;  // bwd_input: w (C, M, 3, 3) with taps reversed, else (M, C, 3, 3)

  // block (row axis 0..L, tap, lane) of w at (first, second), in the form that needs the fewest transposes:
  // NCHW gives rows = second axis, lanes = first; channels_last the opposite.
  template <class A>
  void read(int64_t first, int64_t second, A* block) const {
    constexpr int64_t L = Vec<A>::size;
    const int64_t F = rotated ? C : M, S = rotated ? M : C;
    const int64_t firsts = at_most(L, F - first), seconds = at_most(L, S - second);
    // The block read next, to be there by then: its rows are too far apart for a prefetcher.
    const int64_t next = rotated ? L * 9 * S : layout == Layout::nhwc ? L : L * 9;
    if (layout == Layout::nhwc) {
      for (int64_t i = 0; i < L * 9; i++) {
        const T* from = w + ((first + i / 9) * 9 + i % 9) * S + second;
        __builtin_prefetch(from + next);
        store(block + i * L, i / 9 < firsts ? load_up_to(from, seconds) : vec<A>{});
      }
      return;
    }
    for (int64_t e = 0; e < L * 9; e += L) {  // (second, tap) lie side by side
      const int64_t count = at_least(at_most(L, seconds * 9 - e), 0);
      const T* from = w + (first * S + second) * 9 + e;
      for (int64_t i = 0; i < L; i++) __builtin_prefetch(from + i * S * 9 + next);
      load_columns(from, S * 9, firsts, count, block + e * L, L);
    }
  }

  // u[f] (channels rounded up to L, NV vectors) for produced channels m0.. and summed channels [c0, c0 + channels).
  template <class A>
  void transform(int64_t m0, int64_t NV, int64_t c0, int64_t channels, A* u, int64_t plane) const {
    constexpr int64_t L = Vec<A>::size;
    A block[L * 9 * L];  // (c, tap, m)
    for (int64_t v = 0; v < NV; v++) {
      for (int64_t c = 0; c < channels; c += L) {
        const int64_t m = m0 + v * L;
        read(rotated ? c0 + c : m, rotated ? m : c0 + c, block);
        for (int64_t tap = 0; tap < 9 && rotated == (layout == Layout::nchw); tap++) {  // rows and lanes change places
          load_columns(block + tap * L, 9 * L, L, L, block + tap * L, 9 * L);
        }
        for (int64_t i = 0; i < L; i++) {
          const A* taps = block + i * 9 * L;
          const auto tap = [&](int kh, int kw) { return taps + (rotated ? 8 - kh * 3 - kw : kh * 3 + kw) * L; };
          to_frequencies<A, 3>(tap, u + ((c + i) * NV + v) * L, plane);
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
  int64_t C, M, IH, IW, PH, PW;
  Tiles tiles;
  const T* x;  // at its group's first channel, as y and finish.bias
  Index4 X;
  T* y;
  Index4 Y;
  Finish<T> finish;

  int64_t chunk() const { return at_most(KC, divide_up(C, L) * L); }  // channels of V and U between restarts
  int64_t chunks() const { return divide_up(C, chunk()); }
  int64_t m_blocks() const { return divide_up(M, BN); }
  int64_t vectors(int64_t block) const { return M - block * BN > L ? 2 : 1; }
  int64_t v_plane(int64_t count) const { return chunk() * count + plane_pad<A>; }
  int64_t u_plane() const { return chunk() * BN + plane_pad<A>; }
  int64_t m_plane(int64_t count) const { return BN * count + plane_pad<A>; }

  // One block holds all tiles while there are fewer than would pay for U: writing it and reading it once per block.
  int64_t tiles_per_block() const {
    const int64_t all = tiles.count(), bytes = frequencies * sizeof(A) * (chunks() * chunk() + BN);
    if (all * 5 <= M * 6 || all * bytes <= block_bytes / 2) return all;
    return at_most(all, at_least(block_bytes / bytes / MR, 1) * MR);
  }

  void make_v(int64_t begin, int64_t end, A* v, A* piece) const {
    const int64_t plane = v_plane(end - begin);
    for (int64_t c = 0; c < C; c += L) {
      A* to = v + c / chunk() * frequencies * plane + c % chunk() * (end - begin);
      for (int64_t t = begin; t < end;) {
        const Run run = tiles.run(t, end);
        const int64_t columns = run.count * tile_step + 2;
        pack(x + X(run.n, c, 0, 0), X, at_most(L, C - c), Span{run.oh - PH, 6, IH}, Span{run.ow - PW, columns, IW},
             piece);
        transform_tiles<A, 6>(piece, columns, run.count, to + (t - begin) * L, plane, L);
        t += run.count;
      }
    }
  }

  void make_u(int64_t block, int64_t k, A* u) const {
    weights.transform(block * BN, vectors(block), k * chunk(), at_most(chunk(), C - k * chunk()), u, u_plane());
  }

  void make_y(int64_t block, int64_t begin, int64_t end, const A* m, A* piece) const {
    const int64_t NV = vectors(block);
    for (int64_t v = 0; v < NV; v++) {
      const int64_t channel = block * BN + v * L, count = at_most(L, M - channel);
      const vec<A> b = finish.bias ? load_up_to(finish.bias + channel, count) : vec<A>{};
      for (int64_t t = begin; t < end;) {
        const Run run = tiles.run(t, end);
        const int64_t columns = run.count * tile_step;
        for (int64_t i = 0; i < run.count; i++) {
          vec<A> out[4][4];
          from_frequencies<A, 4>(m + ((t - begin + i) * NV + v) * L, m_plane(end - begin), out);
          A* to = piece + i * tile_step * L;
          _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++) {
            _Pragma("GCC unroll 4") for (int s = 0; s < 4; s++) store(to + (r * columns + s) * L, out[r][s] + b);
          }
        }
        unpack(piece, count, Span{run.oh, 4, tiles.OH}, Span{run.ow, columns, tiles.OW}, y + Y(run.n, channel, 0, 0), Y,
               finish);
        t += run.count;
      }
    }
  }

  // Tiles [begin, end) of one block of produced channels. u: all of the block's, or null to make it chunk by chunk.
  void produce(int64_t block, int64_t begin, int64_t end, const A* v, const A* u, A* own_u, A* m, A* piece) const {
    const int64_t count = end - begin;
    for (int64_t k = 0; k < chunks(); k++) {
      if (!u) make_u(block, k, own_u);
      const A* from = u ? u + k * frequencies * u_plane() : own_u;
      const int64_t channels = at_most(chunk(), C - k * chunk());
      for (int64_t f = 0; f < frequencies; f++) {
        const A* vf = v + (k * frequencies + f) * v_plane(count);
        A* mf = m + f * m_plane(count);
        if (vectors(block) == 2) {
          product<A, 2>(vf, count, from + f * u_plane(), channels, mf, k == 0);
        } else {
          product<A, 1>(vf, count, from + f * u_plane(), channels, mf, k == 0);
        }
      }
    }
    make_y(block, begin, end, m, piece);
  }

  void run() const {
    const int64_t all = tiles.count(), per_block = tiles_per_block();
    if (all == 0) return;
    const int64_t u_size = chunks() * frequencies * u_plane();
    A* u = nullptr;
    if (per_block < all) {
      u = static_cast<A*>(scratch(0, sizeof(A) * m_blocks() * u_size));
      parallel_for(m_blocks() * chunks(), divide_up(serial_flops, 100 * chunk() * BN), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
          make_u(i / chunks(), i % chunks(), u + i * frequencies * u_plane());
        }
      });
    }
    const int64_t v_size = chunks() * frequencies * v_plane(per_block), m_size = frequencies * m_plane(per_block);
    const int64_t piece_size = 6 * (most_columns * tile_step + 2 + L) * L;
    const int64_t own_u_size = u ? 0 : frequencies * u_plane();
    const int64_t flops = 2 * frequencies * per_block * C * BN;
    parallel_for(
        divide_up(all, per_block) * m_blocks(), divide_up(serial_flops, flops), [&](int64_t begin, int64_t end) {
          A* v = static_cast<A*>(scratch(1, sizeof(A) * (v_size + m_size + piece_size + own_u_size)));
          A *m = v + v_size, *piece = m + m_size, *own_u = piece + piece_size;
          for (int64_t i = begin; i < end; i++) {
            const int64_t t0 = i / m_blocks() * per_block, t1 = at_most(t0 + per_block, all), block = i % m_blocks();
            if (i == begin || block == 0) make_v(t0, t1, v, piece);
            produce(block, t0, t1, v, u ? u + block * u_size : nullptr, own_u, m, piece);
          }
        });
  }
};

template <class T>
void fwd(const Conv2dShape& s, const T* x, const T* w, const Epilogue& e, T* y) {
  const int64_t C = s.ic_per_group(), M = s.oc_per_group();
  Finish<T> finish(e, y);
  for (int64_t g = 0; g < s.G; g++) {
    const Problem<T> p = {{w + g * M * C * 9, s.layout, C, M, false},
                          C,
                          M,
                          s.IH,
                          s.IW,
                          s.PH,
                          s.PW,
                          {s.N, s.OH, s.OW},
                          x + s.x_index()(0, g * C, 0, 0),
                          s.x_index(),
                          y + s.y_index()(0, g * M, 0, 0),
                          s.y_index(),
                          finish};
    p.run();
    if (finish.bias) finish.bias += M;
  }
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  const int64_t C = s.oc_per_group(), M = s.ic_per_group();
  for (int64_t g = 0; g < s.G; g++) {
    const Problem<T> p = {{w + g * M * C * 9, s.layout, C, M, true},
                          C,
                          M,
                          s.OH,
                          s.OW,
                          2 - s.PH,
                          2 - s.PW,
                          {s.N, s.IH, s.IW},
                          dy + s.y_index()(0, g * C, 0, 0),
                          s.y_index(),
                          dx + s.x_index()(0, g * M, 0, 0),
                          s.x_index(),
                          {}};
    p.run();
  }
}

#include "cpu/conv2d/winograd_weight.h"

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

// pool2d / transposed.
// Computes  what channels.h does, for small planes of NCHW: some planes at a time are turned so that lanes are planes, pooled
//           by channels.h, and turned back. Neither the width of a plane nor the window, plain or adaptive, leaves lanes idle
// Shapes    x (N,C,IH,IW), y and where (N,C,OH,OW): NCHW. A tile is W planes as (pixels, W), widened to acc_t<T>
// Tiling    thread: tiles, which fit in L2; registers: L pixels of L planes, turned in log2(L) rounds of shuffles
// Cost      channels.h's, and log2(L) shuffles per vector read or written
// Limits    NCHW, planes below 2^31 pixels. The gradient of adaptive maxima is rows.h's, a scatter
// Source    reference.cpp

namespace pool2d_transposed {
namespace {

#include "cpu/pool2d/where.h"

constexpr int64_t serial_values = 16384;  // values read or written, below which one thread is enough
constexpr int64_t wide_tile = 4;          // vectors of planes, as many as channels.h takes at a time
constexpr int64_t widest = 393216;        // bytes of such a tile: less than half of L2

struct Narrow {  // for store_columns
  template <class T>
  void store_up_to(T* to, vec<acc_t<T>> v, int64_t count) const {
    count >= Vec<acc_t<T>>::size ? store_narrow(to, v) : store_narrow_first(to, v, count);
  }
};

// One thread's tile as channels.h sees it, with L pixels to spare behind each operand for whole blocks.
template <class A>
struct Tile {
  static constexpr int64_t L = Vec<A>::size;
  Pool2dShape s;
  int64_t pixels, outputs, W;
  A *x, *y;
  int64_t* indices;
  uint8_t* taps;

  Tile(const Pool2dShape& of, int64_t width) : s(of), pixels(s.h.in * s.w.in), outputs(s.h.out * s.w.out), W(width) {
    s.N = 1, s.C = W, s.layout = Layout::nhwc, s.dtype = sizeof(A) == 8 ? DType::f64 : DType::f32;
    const int64_t in = (pixels + L) * W, out = (outputs + L) * W;
    indices = static_cast<int64_t*>(scratch(4, sizeof(int64_t) * out + sizeof(A) * (in + out) + out));
    x = reinterpret_cast<A*>(indices + out);
    y = x + in;
    taps = reinterpret_cast<uint8_t*>(y + out);
  }

  // `planes` planes of `size` values to (size, W), and back.
  template <class T>
  void turn(const T* from, int64_t planes, int64_t size, A* to) const {
    for (int64_t c = 0; c < W; c += L) {
      for (int64_t i = 0; i < size; i += L)
        load_columns(from + c * size + i, size, planes - c, size - i, to + i * W + c, W);
    }
  }
  template <class T>
  void turn_back(const A* from, int64_t planes, int64_t size, T* to) const {
    for (int64_t c = 0; c < planes; c += L) {
      for (int64_t i = 0; i < size; i += L) {
        store_columns(from + i * W + c, W, to + c * size + i, size, planes - c, size - i, Narrow());
      }
    }
  }
  // The same of positions.
  template <class To>
  void turn_positions(const To* from, int64_t planes, To* to) const {
    vec<A> r[L];
    for (int64_t c = 0; c < W; c += L) {
      for (int64_t o = 0; o < outputs; o += L) {
        _Pragma("GCC unroll 16") for (int64_t i = 0; i < L; i++) {
          r[i] = c + i < planes ? (vec<A>)get<A>(from + (c + i) * outputs + o, outputs - o) : vec<A>{};
        }
        transpose<A>(r);
        _Pragma("GCC unroll 16") for (int64_t j = 0; j < L; j++) put<A>(to + (o + j) * W + c, (lanes<A>)r[j], L);
      }
    }
  }
  template <class To>
  void turn_positions_back(const To* from, int64_t planes, To* to) const {
    vec<A> r[L];
    for (int64_t c = 0; c < planes; c += L) {
      for (int64_t o = 0; o < outputs; o += L) {
        _Pragma("GCC unroll 16") for (int64_t j = 0; j < L; j++) r[j] = (vec<A>)get<A>(from + (o + j) * W + c, L);
        transpose<A>(r);
        _Pragma("GCC unroll 16") for (int64_t i = 0; i < L; i++) {
          if (c + i < planes) put<A>(to + (c + i) * outputs + o, (lanes<A>)r[i], outputs - o);
        }
      }
    }
  }
};

// body(tile, first plane, planes) for every tile.
template <class T, class Body>
void for_tiles(const Pool2dShape& s, const Body& body) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const int64_t planes = s.N * s.C, values = s.h.in * s.w.in + s.h.out * s.w.out;
  const bool wide = planes >= 8 * wide_tile * L && wide_tile * L * values * int64_t(sizeof(A)) <= widest;
  const int64_t W = wide ? wide_tile * L : L;
  parallel_for(divide_up(planes, W), divide_up(serial_values, W * values), [&](int64_t begin, int64_t end) {
    const Tile<A> tile(s, W);
    for (int64_t t = begin; t < end; t++) body(tile, t * W, at_most(planes - t * W, W));
  });
}

template <class T>
void max_fwd(const Pool2dShape& s, const T* x, T* y, const pool2d::Where& where) {
  for_tiles<T>(s, [&](const auto& tile, int64_t first, int64_t planes) {
    const int64_t out = first * tile.outputs;
    tile.turn(x + first * tile.pixels, planes, tile.pixels, tile.x);
    pool2d::channels_max_fwd(tile.s, tile.x, tile.y,
                             {where.indices ? tile.indices : nullptr, where.taps ? tile.taps : nullptr});
    tile.turn_back(tile.y, planes, tile.outputs, y + out);
    if (where.indices) tile.turn_positions_back(tile.indices, planes, where.indices + out);
    if (where.taps) tile.turn_positions_back(tile.taps, planes, where.taps + out);
  });
}

template <class T>
void max_bwd(const Pool2dShape& s, const T* dy, const pool2d::WhereWas& where, T* dx) {
  for_tiles<T>(s, [&](const auto& tile, int64_t first, int64_t planes) {
    const int64_t out = first * tile.outputs;
    tile.turn(dy + out, planes, tile.outputs, tile.y);
    if (where.indices) tile.turn_positions(where.indices + out, planes, tile.indices);
    if (where.taps) tile.turn_positions(where.taps + out, planes, tile.taps);
    pool2d::channels_max_bwd(tile.s, tile.y, {where.indices ? tile.indices : nullptr, where.taps ? tile.taps : nullptr},
                             tile.x);
    tile.turn_back(tile.x, planes, tile.pixels, dx + first * tile.pixels);
  });
}

template <class T>
void avg_fwd(const Pool2dShape& s, const T* x, T* y) {
  for_tiles<T>(s, [&](const auto& tile, int64_t first, int64_t planes) {
    tile.turn(x + first * tile.pixels, planes, tile.pixels, tile.x);
    pool2d::channels_avg_fwd(tile.s, tile.x, tile.y);
    tile.turn_back(tile.y, planes, tile.outputs, y + first * tile.outputs);
  });
}

template <class T>
void avg_bwd(const Pool2dShape& s, const T* dy, T* dx) {
  for_tiles<T>(s, [&](const auto& tile, int64_t first, int64_t planes) {
    tile.turn(dy + first * tile.outputs, planes, tile.outputs, tile.y);
    pool2d::channels_avg_bwd(tile.s, tile.y, tile.x);
    tile.turn_back(tile.x, planes, tile.pixels, dx + first * tile.pixels);
  });
}

}  // namespace

void max_fwd(const Pool2dShape& s, const void* x, void* y, const pool2d::Where& where) {
  with_type(s.dtype, [&](auto type) { max_fwd(s, (const decltype(type)*)x, (decltype(type)*)y, where); });
}

void max_bwd(const Pool2dShape& s, const void* dy, const pool2d::WhereWas& where, void* dx) {
  with_type(s.dtype, [&](auto type) { max_bwd(s, (const decltype(type)*)dy, where, (decltype(type)*)dx); });
}

void avg_fwd(const Pool2dShape& s, const void* x, void* y) {
  with_type(s.dtype, [&](auto type) { avg_fwd(s, (const decltype(type)*)x, (decltype(type)*)y); });
}

void avg_bwd(const Pool2dShape& s, const void* dy, void* dx) {
  with_type(s.dtype, [&](auto type) { avg_bwd(s, (const decltype(type)*)dy, (decltype(type)*)dx); });
}

}  // namespace pool2d_transposed

// conv2d / depthwise on planes: vectors of the pixels of a row, four rows at a time.
// Computes  y[c,r,:] = b[c] + sum_{kh,kw} w[c,kh,kw] * x[c, S*r + kh, off[kw] + :]
//           bwd_input   the same from dy, once per phase of the stride, with the taps that the phase meets
//           bwd_weight  dw[c,kh,kw] = sum_{r,:} dy[c,r,:] * x[c, S*r + kh, off[kw] + :]
// Shapes    planes (C, SH, SW, rows, pitch), see planes.h;  y (phases, rows, pitch)
// Tiling    thread: (image, band of rows, channels); registers: NR = 4 rows x NV = 2 vectors against KH = 3 rows of
//           taps, or 3 rows x 7 columns of taps
// Cost      2*N*C*OH*OW*KH*KW flops;  a row of x is loaded once for the NR rows that it meets: loads per FMA 1/2 + 1/8
// Limits    one input and one output channel per group, dilation 1, and a vertical stride of at most 2 forward
// Source    Lu, Zhang, Wang, Optimizing Depthwise Separable Convolution Operations on GPUs, TPDS 33(1), 2022

namespace depthwise_planes {
namespace {

#include "cpu/conv2d/planes.h"

// Micro-kernel: NR rows x NV vectors of one channel, y[r] (+)= sum over KH x KW taps of rows S*r + kh;
// a row of x is loaded once for all the rows of y that it meets. x[i % S] + i / S * pitch is row i, off[kw] a column.
template <class A, int S, int KH, int NR, int NV>
PYCONV_NOINLINE void rows_tile(const A* const* x, int64_t pitch, const int64_t* off, int64_t KW, const A* w,
                               int64_t w_row, int64_t w_column, A* y, int64_t y_pitch, bool first) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> sum[NR][NV];
  _Pragma("GCC unroll 4") for (int r = 0; r < NR; r++) {
    _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) sum[r][v] = first ? vec<A>{} : load(y + r * y_pitch + v * L);
  }
  for (int64_t kw = 0; kw < KW; kw++) {
    vec<A> wk[KH];
    _Pragma("GCC unroll 4") for (int kh = 0; kh < KH; kh++) wk[kh] = keep(splat(w[kh * w_row + kw * w_column]));
    _Pragma("GCC unroll 10") for (int i = 0; i < S * (NR - 1) + KH; i++) {
      const A* at = x[i % S] + i / S * pitch + off[kw];
      _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) {
        const vec<A> pixels = keep(load(at + v * L));
        _Pragma("GCC unroll 4") for (int r = 0; r < NR; r++) {
          if (i - S * r >= 0 && i - S * r < KH) sum[r][v] += wk[i - S * r] * pixels;
        }
      }
    }
  }
  _Pragma("GCC unroll 4") for (int r = 0; r < NR; r++) {
    _Pragma("GCC unroll 4") for (int v = 0; v < NV; v++) store(y + r * y_pitch + v * L, sum[r][v]);
  }
}

// One output phase.
struct Phase {
  Axis h, w;
};

// off[kw]: where column 0 of the phase finds its pixel in a row.
void list_columns(const Grid& w, const Planes& planes, const Axis& aw, int64_t* off) {
  for (int64_t tw = 0; tw < aw.taps; tw++) off[tw] = w.source_phase(aw, tw) * planes.size + w.q(aw, tw);
}

// Rows [oh, oh + rows) of one channel: a row of x is loaded once for four rows of y, and tap rows that meet nothing but
// padding are left out. w: the taps as the weight has them, KW to a row.
template <class A>
PYCONV_NOINLINE void multiply_rows(const A* x, const Grid& h, const Grid& w, const Planes& planes, const Phase& a,
                                   const int64_t* off, const A* taps, int64_t KW, int64_t oh, int64_t rows, A* y,
                                   int64_t pitch) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t S = h.source_phases, vectors = divide_up(a.w.out, L), sign = a.h.offset_step < 0 ? -1 : 1;
  for (int64_t r = 0; r < rows; r += 4) {
    const int64_t NR = at_most(rows - r, 4);
    const int64_t top = (oh + r) * S + a.h.lowest();  // the source row that the first tap of row r meets
    const int64_t first = at_least(-top - (NR - 1) * S, 0), last = at_most(h.source - top, a.h.taps);
    if (last <= first || a.w.taps == 0) clear(y + r * pitch, NR * pitch);
    for (int64_t t = first, KH; t < last; t += KH) {
      const int64_t left = last - t;
      KH = left == 4 ? 2 : at_most(left, 3);           // never one row alone beyond the first
      const int64_t row = top + t - (oh + h.low) * S;  // of all phases
      const A* from[2] = {x + planes.row(h, w, row), x + planes.row(h, w, row + 1)};
      const A* weights = taps + (a.h.tap0 + (sign > 0 ? t : a.h.taps - 1 - t) * a.h.tap_step) * KW + a.w.tap0;
      const int64_t wide = NR == 1 ? 4 : 2;
      for (int64_t v = 0; v < vectors; v += wide, from[0] += wide * L, from[1] += wide * L) {
        with_int<2>(S, [&](auto s) {
          with_int<3>(KH, [&](auto kh) {
            with_int<4>(NR, [&](auto nr) {
              with_int<decltype(nr)::value == 1 ? 4 : 2>(vectors - v, [&](auto nv) {
                rows_tile<A, decltype(s)::value, decltype(kh)::value, decltype(nr)::value, decltype(nv)::value>(
                    from, planes.pitch, off, a.w.taps, weights, sign * a.h.tap_step * KW, a.w.tap_step,
                    y + r * pitch + v * L, pitch, t == first);
              });
            });
          });
        });
      }
    }
  }
}

// Channels of a source image, each with taps of its own; S and O index source and output.
template <class T>
void run(const Conv2dShape& s, bool gradient, const T* source, const Index4& S, const T* weights,
         const Finish<T>& finish, T* output, const Index4& O) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Grid h = height(s, gradient), w = width(s, gradient);
  const int64_t phases = h.phases * w.phases, taps = s.KH * s.KW;
  const int64_t band = band_rows(h, w, h.source_phases * w.source_phases, phases, s.N * s.G, sizeof(A));
  const int64_t bands = divide_up(h.out(), band);
  const Planes planes(h, w, 1, band, A());
  const int64_t channel = planes.count * planes.size, pitch = round_up(w.out(), L), line = band * pitch;
  const int64_t GB = groups_per_job(sizeof(A) * (channel + phases * line), s.G, s.N * s.G * bands);
  const int64_t blocks = divide_up(s.G, GB);

  Phase* phase = static_cast<Phase*>(scratch(0, phases * (sizeof(Phase) + s.KW * sizeof(int64_t))));
  int64_t* off = reinterpret_cast<int64_t*>(phase + phases);
  for (int64_t p = 0; p < phases; p++) {
    phase[p] = {h.axis(p / w.phases), w.axis(p % w.phases)};
    list_columns(w, planes, phase[p].w, off + p * s.KW);
  }

  const int64_t flops = 2 * GB * band * pitch * taps;
  parallel_for(s.N * blocks * bands, divide_up(serial_flops, flops), [&](int64_t begin, int64_t end) {
    A* x = static_cast<A*>(scratch(1, sizeof(A) * (GB * channel + taps)));
    A* wide = x + GB * channel;  // the taps of one channel
    A* y = static_cast<A*>(scratch(2, sizeof(A) * (phases + L) * line));
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / (blocks * bands), c0 = item / bands % blocks * GB, oh = item % bands * band;
      const int64_t rows = at_most(band, h.out() - oh), channels = at_most(GB, s.G - c0);
      planes.copy(h, w, source, S, n, c0, channels, oh, x);
      for (int64_t c = c0; c < c0 + channels; c++) {
        for (int64_t t = 0; t < taps; t++) wide[t] = widen(weights[c * taps + t]);
        for (int64_t p = 0; p < phases; p++) {
          const int64_t here = at_most(rows, phase[p].h.out - oh);
          if (here <= 0) continue;
          multiply_rows(x + (c - c0) * channel, h, w, planes, phase[p], off + p * s.KW, wide, s.KW, oh, here,
                        y + p * line, pitch);
        }
        unpack(y, 1, line, pitch, 1, finish.bias ? finish.bias + c : nullptr, h, w, oh, rows, O, output + O(n, c, 0, 0),
               finish);
      }
    }
  });
}

template <class T>
void fwd(const Conv2dShape& s, const T* x, const T* w, const Epilogue& e, T* y) {
  run<T>(s, false, x, s.x_index(), w, {e, y}, y, s.y_index());
}

template <class T>
void bwd_input(const Conv2dShape& s, const T* dy, const T* w, T* dx) {
  run<T>(s, true, dy, s.y_index(), w, {}, dx, s.x_index());
}

// Weight gradient of one channel: rows of dy, a tap row apart, stand in the place of channels, so that a vector of x is
// loaded once for three tap rows. off: of the taps; tap rows `step` apart meet neighbouring rows of one phase of x.
template <class A>
PYCONV_NOINLINE void multiply_weight_rows(const Gradient& dy, const A* py, const A* px, const int64_t* off,
                                          int64_t band, int64_t KH, int64_t KW, int64_t step, A* sum) {
  constexpr int64_t L = Vec<A>::size;
  Lines lines = dy.lines;
  const bool flat = lines.dy == lines.x;
  for (int64_t kh = 0; kh < KH; kh += kh % step == step - 1 ? 2 * step + 1 : 1) {
    const int64_t KR = at_most(divide_up(KH - kh, step), 3), tall = band + KR - 1;
    lines.rows = flat ? divide_up(tall * dy.pitch, lines.vectors * L) : tall;
    for (int64_t kw = 0; kw < KW; kw += widest(3)) {
      with_tile<3>(KR, at_most(KW - kw, widest(3)), [&](auto kr, auto tr) {
        weight_tile<A, decltype(kr)::value, decltype(tr)::value>(
            lines, py + dy.margin * dy.pitch, -dy.pitch, px, off + kh * KW + kw, sum + (kh * KW + kw) * L, step * KW);
      });
    }
  }
}

// Bands of images are dealt into chunks, each with sums of its own, lane by lane; lanes and chunks are added in their
// order at the end: parallel, and the same bits for any number of threads.
template <class T>
void bwd_weight(const Conv2dShape& s, const T* dy, const T* x, T* dw) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const Grid h = height(s, false), w = width(s, false);
  const Axis ah = h.axis(0), aw = w.axis(0);
  const Index4 X = s.x_index(), Y = s.y_index();
  const int64_t taps = s.KH * s.KW, band = band_rows(h, w, s.SH * s.SW, 1, s.N * s.G, sizeof(A));
  const int64_t bands = divide_up(s.OH, band), units = s.N * bands;
  const Planes planes(h, w, 1, band, A());
  const Gradient grad(planes, band, s.OW, 2, A());
  const int64_t channel = planes.count * planes.size;
  const int64_t chunks = at_least(at_most(units, divide_up(16, s.G)), 1), share = divide_up(units, chunks);
  const int64_t GB = groups_per_job(sizeof(A) * (channel + grad.size + taps * L), s.G, chunks * s.G);
  const int64_t blocks = divide_up(s.G, GB);

  int64_t* off = static_cast<int64_t*>(scratch(0, sizeof(int64_t) * taps + sizeof(A) * chunks * s.G * taps));
  A* sums = reinterpret_cast<A*>(off + taps);  // (chunk, channel, tap)
  for (int64_t t = 0; t < taps; t++) {
    off[t] = h.source_phase(ah, t / s.KW) * s.SW * planes.size + planes.left +
             (h.q(ah, t / s.KW) - h.low) * planes.pitch + w.source_phase(aw, t % s.KW) * planes.size +
             w.q(aw, t % s.KW);
  }

  const int64_t flops = 2 * GB * share * band * planes.pitch * taps;
  parallel_for(chunks * blocks, divide_up(serial_flops, at_least(flops, 1)), [&](int64_t begin, int64_t end) {
    A* px = static_cast<A*>(scratch(1, sizeof(A) * GB * channel));
    A* py = static_cast<A*>(scratch(2, sizeof(A) * grad.size));
    A* sum = static_cast<A*>(scratch(3, sizeof(A) * GB * taps * L));
    for (int64_t item = begin; item < end; item++) {
      const int64_t chunk = item / blocks, c0 = item % blocks * GB, channels = at_most(GB, s.G - c0);
      clear(sum, channels * taps * L);
      for (int64_t unit = chunk * share; unit < at_most((chunk + 1) * share, units); unit++) {
        const int64_t n = unit / bands, oh = unit % bands * band, rows = at_most(band, s.OH - oh);
        planes.copy(h, w, x, X, n, c0, channels, oh, px);
        for (int64_t c = 0; c < channels; c++) {
          grad.copy(dy + Y(n, c0 + c, oh, 0), Y, 1, rows, s.OW, py);
          multiply_weight_rows(grad, py, px + c * channel, off, band, s.KH, s.KW, s.SH, sum + c * taps * L);
        }
      }
      for (int64_t i = 0; i < channels * taps; i++) {
        sums[(chunk * s.G + c0) * taps + i] = sum_lanes<A>(load(sum + i * L));
      }
    }
  });

  for (int64_t i = 0; i < s.G * taps; i++) {
    A total = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) total += sums[chunk * s.G * taps + i];
    pyconv::store(dw + i, total);
  }
}

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto t) { fwd(s, (const decltype(t)*)x, (const decltype(t)*)w, e, (decltype(t)*)y); });
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  with_type(s.dtype, [&](auto t) { bwd_input(s, (const decltype(t)*)dy, (const decltype(t)*)w, (decltype(t)*)dx); });
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  with_type(s.dtype, [&](auto t) { bwd_weight(s, (const decltype(t)*)dy, (const decltype(t)*)x, (decltype(t)*)dw); });
}

}  // namespace depthwise_planes

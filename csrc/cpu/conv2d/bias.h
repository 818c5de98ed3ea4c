// conv2d / bias.
// Computes  db[oc] = sum over n, oh, ow of dy[n,oc,oh,ow], the bias's gradient, of any convolution
// Shapes    dy (N,OC,OH,OW) in either layout -> db (OC,)
// Tiling    thread: parts of dy in ascending order, each with sums of its own: a plane of NCHW, a block of pixels of
//           channels_last; registers: vectors along a plane, or as many as bring the same channels to the same lanes again
// Cost      a load and an addition per vector of dy; db is the parts' sums, one part after the other
// Limits    none
// Source    reference.cpp's formula for y, by whose bias dy is multiplied with one

namespace conv2d_bias {
namespace {

constexpr int64_t serial_values = 32768;  // values of dy below which one thread is enough
constexpr int64_t block_values = 8192;    // of a part of channels_last

template <class T>
acc_t<T> sum_of(const T* values, int64_t count) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  vec<A> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L) {
    _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) sums[v] += load_wide(values + i + v * L);
  }
  for (; i < count; i += L) sums[0] += load_up_to(values + i, at_most(count - i, L));
  const vec<A> all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  A sum = 0;
  for (int64_t l = 0; l < L; l++) sum += all[l];
  return sum;
}

// Of `count` values, pixel after pixel, into sums (C,). `period` values, whole vectors and whole pixels, are added up in
// `lanes`.
template <class T>
void sum_pixels(const T* values, int64_t count, int64_t C, int64_t period, acc_t<T>* lanes, acc_t<T>* sums) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  for (int64_t i = 0; i < period; i += L) store(lanes + i, vec<A>{});
  int64_t at = 0;
  for (; at + 4 * period <= count; at += 4 * period) {  // four for each time that lanes are loaded and stored
    for (int64_t i = 0; i < period; i += L) {
      const T *p = values + at + i, *q = p + 2 * period;
      const vec<A> four = (load_wide(p) + load_wide(p + period)) + (load_wide(q) + load_wide(q + period));
      store(lanes + i, load(lanes + i) + four);
    }
  }
  for (; at < count; at += period) {
    const int64_t here = at_most(count - at, period);
    int64_t i = 0;
    for (; i + L <= here; i += L) store(lanes + i, load(lanes + i) + load_wide(values + at + i));
    if (i < here) store(lanes + i, load(lanes + i) + load_up_to(values + at + i, here - i));
  }
  for (int64_t c = 0; c < C; c++) {
    sums[c] = 0;
    for (int64_t i = c; i < period; i += C) sums[c] += lanes[i];
  }
}

// The least number of values that are whole vectors, whole pixels, and vectors enough to add without waiting.
template <class A>
int64_t period_of(int64_t C) {
  int64_t period = C;
  while (period % Vec<A>::size != 0) period += C;
  return round_up(8 * Vec<A>::size, period);
}

template <class T>
void bwd_bias(const Conv2dShape& s, const T* dy, T* db) {
  using A = acc_t<T>;
  const bool nchw = s.layout == Layout::nchw;
  const int64_t C = s.OC, plane = s.OH * s.OW, all = s.N * plane, pixels = at_least(block_values / C, 1);
  const int64_t parts = nchw ? s.N : divide_up(all, pixels);
  A* sums = static_cast<A*>(scratch(0, sizeof(A) * at_least(parts * C, 1)));  // (parts, OC)
  if (nchw) {
    parallel_for(parts * C, divide_up(serial_values, plane), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) sums[i] = sum_of(dy + i * plane, plane);
    });
  } else {
    const int64_t period = period_of<A>(C);
    parallel_for(parts, divide_up(serial_values, pixels * C), [&](int64_t begin, int64_t end) {
      A* lanes = static_cast<A*>(scratch(1, sizeof(A) * period));
      for (int64_t part = begin; part < end; part++) {
        const int64_t first = part * pixels;
        sum_pixels(dy + first * C, at_most(all - first, pixels) * C, C, period, lanes, sums + part * C);
      }
    });
  }
  for (int64_t part = 1; part < parts; part++) {
    for (int64_t c = 0; c < C; c++) sums[c] += sums[part * C + c];
  }
  for (int64_t c = 0; c < C; c++) pyconv::store(db + c, parts ? sums[c] : A(0));
}

}  // namespace

void bwd_bias(const Conv2dShape& s, const void* dy, void* db) {
  with_type(s.dtype, [&](auto t) { bwd_bias(s, (const decltype(t)*)dy, (decltype(t)*)db); });
}

}  // namespace conv2d_bias

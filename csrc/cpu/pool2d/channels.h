// pool2d / channels.
// Computes  what reference.cpp says, with the same sums in the same order, for every window, plain or adaptive
// Shapes    x (N,IH,IW,C), y and indices (N,OH,OW,C): float32 channels_last, lanes are channels
// Tiling    thread: (n, row of what is written); registers: one vector of maxima and its indices, or of sums.
//           Backward gathers: an input pixel asks every window that may hold it, so no two threads share a sum
// Cost      one load and one comparison or addition per window pixel and vector; backward the same per input pixel
// Limits    float32, channels_last, planes below 2^31 pixels; max's backward needs the windows, so no adaptive ones
//           Source: reference.cpp

namespace pool2d_channels {
namespace {

constexpr int64_t L = Vec<float>::size;
typedef int64_t Offsets __attribute__((vector_size(L * sizeof(int64_t))));  // L indices, as they are stored

// Lanes of values with the integers that go with them: a vector, or one float where C is smaller than a vector.
struct Wide {
  using Value = vec<float>;
  using Index = vec<int32_t>;
  using Stored = Offsets;
  static constexpr int64_t lanes = L;
  static Stored stored(Index i) { return __builtin_convertvector(i, Stored); }
  static Index index(Stored i) { return __builtin_convertvector(i, Index); }
};
struct Narrow {
  using Value = float;
  using Index = int32_t;
  using Stored = int64_t;
  static constexpr int64_t lanes = 1;
  static Stored stored(Index i) { return i; }
  static Index index(Stored i) { return Index(i); }
};

template <class V, class T>
PYCONV_INLINE V get(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
PYCONV_INLINE void put(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Calls block(lanes, c) until all C channels are covered; the last block may overlap the one before it.
template <class Block>
PYCONV_INLINE void for_channels(int64_t C, const Block& block) {
  if (C < L) {
    for (int64_t c = 0; c < C; c++) block(Narrow(), c);
  } else {
    for (int64_t c = 0; c < C; c += L) block(Wide(), at_most(c, C - L));
  }
}

constexpr int64_t serial_values = 16384;  // values written, below which one thread is enough

// row(n, r) for each of the R rows of each image.
template <class Row>
void for_rows(const Pool2dShape& s, int64_t R, int64_t values, const Row& row) {
  parallel_for(s.N * R, divide_up(serial_values, at_least(values, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) row(item / R, item % R);
  });
}

void max_fwd(const Pool2dShape& s, const float* x, float* y, int64_t* indices) {
  const Index4 X = s.x_index(), Y = s.y_index();
  for_rows(s, s.h.out, s.w.out * s.C, [&](int64_t n, int64_t oh) {
    const int64_t top = s.h.start(oh), bottom = s.h.stop(oh);
    for (int64_t ow = 0; ow < s.w.out; ow++) {
      const int64_t left = s.w.start(ow), right = s.w.stop(ow), out = Y(n, 0, oh, ow);
      const bool empty = top >= bottom || left >= right;
      for_channels(s.C, [&](auto lanes, int64_t c) {
        using V = decltype(lanes);
        typename V::Value best = typename V::Value{} - __builtin_inff();
        typename V::Index index = typename V::Index{} + int32_t(empty ? -1 : top * s.w.in + left);
        for (int64_t ih = top; ih < bottom; ih += s.h.step()) {
          for (int64_t iw = left; iw < right; iw += s.w.step()) {
            const auto v = get<typename V::Value>(x + X(n, c, ih, iw));
            const auto take = (v > best) | (v != v);
            best = take ? v : best;
            index = take ? typename V::Index{} + int32_t(ih * s.w.in + iw) : index;
          }
        }
        put(y + out + c, best);
        put(indices + out + c, V::stored(index));
      });
    }
  });
}

void max_bwd(const Pool2dShape& s, const float* dy, const int64_t* indices, float* dx) {
  const Index4 X = s.x_index(), Y = s.y_index();
  for_rows(s, s.h.in, s.w.in * s.C, [&](int64_t n, int64_t ih) {
    for (int64_t iw = 0; iw < s.w.in; iw++) {
      for_channels(s.C, [&](auto lanes, int64_t c) {
        using V = decltype(lanes);
        const typename V::Index here = typename V::Index{} + int32_t(ih * s.w.in + iw);
        typename V::Value sum = {};
        for (int64_t oh = s.h.first_output(ih); oh <= s.h.last_output(ih); oh++) {
          for (int64_t ow = s.w.first_output(iw); ow <= s.w.last_output(iw); ow++) {
            const int64_t out = Y(n, c, oh, ow);
            const auto from_here = V::index(get<typename V::Stored>(indices + out)) == here;
            const auto v = get<typename V::Value>(dy + out);
            sum += from_here ? v : typename V::Value{};
          }
        }
        put(dx + X(n, c, ih, iw), sum);
      });
    }
  });
}

void avg_fwd(const Pool2dShape& s, const float* x, float* y) {
  const Index4 X = s.x_index(), Y = s.y_index();
  for_rows(s, s.h.out, s.w.out * s.C, [&](int64_t n, int64_t oh) {
    const int64_t top = s.h.start(oh), bottom = s.h.stop(oh);
    for (int64_t ow = 0; ow < s.w.out; ow++) {
      const int64_t left = s.w.start(ow), right = s.w.stop(ow), out = Y(n, 0, oh, ow);
      const float divisor = float(s.divisor(oh, ow));
      for_channels(s.C, [&](auto lanes, int64_t c) {
        using V = decltype(lanes);
        typename V::Value sum = {};
        for (int64_t ih = top; ih < bottom; ih++) {
          for (int64_t iw = left; iw < right; iw++) sum += get<typename V::Value>(x + X(n, c, ih, iw));
        }
        put(y + out + c, sum / divisor);
      });
    }
  });
}

void avg_bwd(const Pool2dShape& s, const float* dy, float* dx) {
  const Index4 X = s.x_index(), Y = s.y_index();
  for_rows(s, s.h.in, s.w.in * s.C, [&](int64_t n, int64_t ih) {
    for (int64_t iw = 0; iw < s.w.in; iw++) {
      for_channels(s.C, [&](auto lanes, int64_t c) {
        using V = decltype(lanes);
        typename V::Value sum = {};
        for (int64_t oh = s.h.first_output(ih); oh <= s.h.last_output(ih); oh++) {
          for (int64_t ow = s.w.first_output(iw); ow <= s.w.last_output(iw); ow++) {
            sum += get<typename V::Value>(dy + Y(n, c, oh, ow)) / float(s.divisor(oh, ow));
          }
        }
        put(dx + X(n, c, ih, iw), sum);
      });
    }
  });
}

}  // namespace
}  // namespace pool2d_channels

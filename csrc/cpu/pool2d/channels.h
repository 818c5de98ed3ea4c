// pool2d / channels.
// Computes  what reference.cpp says, max with the same choices, average with the same sums, for every window, plain or
//           adaptive; the gradient of the average multiplies by the reciprocal of the divisor
// Shapes    x (N,IH,IW,C), y and indices (N,OH,OW,C): float32 channels_last, lanes are channels. The last vector of a
//           pixel runs on into the next one: what it reads there is ignored, what it writes there is written again
// Tiling    thread: rows of what is written, in ascending order; registers: one vector of maxima and indices, or of sums.
//           Backward gathers: an input pixel asks every window that may hold it, so no two threads share a sum
// Cost      one load and one comparison or addition per window pixel and vector; backward the same per input pixel
// Limits    float32, channels_last, planes below 2^31 pixels; max's backward needs the windows, so no adaptive ones
// Source    reference.cpp

namespace pool2d_channels {
namespace {

constexpr int64_t L = Vec<float>::size;
using Values = vec<float>;
using Index = vec<int32_t>;
typedef int64_t Stored __attribute__((vector_size(L * sizeof(int64_t))));  // L indices as they are stored

// A vector of a tensor that has `room` values from p on.
template <class V, class T>
PYCONV_INLINE V get(const T* p, int64_t room) {
  V v = {};
  if (room >= L) {
    __builtin_memcpy(&v, p, sizeof v);
  } else {
    for (int64_t k = 0; k < room; k++) v[k] = p[k];
  }
  return v;
}

template <class V, class T>
PYCONV_INLINE void put(T* p, V v, int64_t room) {
  if (room >= L) {
    __builtin_memcpy(p, &v, sizeof v);
  } else {
    for (int64_t k = 0; k < room; k++) p[k] = v[k];
  }
}

constexpr int64_t serial_values = 16384;  // values written, below which one thread is enough

// rows(begin, end) of the N*R rows, of `values` each, that are written.
template <class Rows>
void for_rows(const Pool2dShape& s, int64_t R, int64_t values, const Rows& rows) {
  parallel_for(s.N * R, divide_up(serial_values, at_least(values, 1)), rows);
}

void max_fwd(const Pool2dShape& s, const float* x, float* y, int64_t* indices) {
  const Index4 X = s.x_index(), Y = s.y_index();
  const int64_t x_end = s.N * X.n;
  for_rows(s, s.h.out, Y.h, [&](int64_t begin, int64_t end) {
    const int64_t y_end = end * Y.h;
    for (int64_t row = begin; row < end; row++) {
      const int64_t n = row / s.h.out, oh = row % s.h.out, top = s.h.start(oh), bottom = s.h.stop(oh);
      for (int64_t ow = 0; ow < s.w.out; ow++) {
        const int64_t left = s.w.start(ow), right = s.w.stop(ow);
        const int64_t first = top < bottom && left < right ? top * s.w.in + left : -1;
        for (int64_t c = 0; c < s.C; c += L) {
          Values best = Values{} - __builtin_inff();
          Index index = Index{} + int32_t(first);
          for (int64_t ih = top; ih < bottom; ih += s.h.step()) {
            for (int64_t iw = left; iw < right; iw += s.w.step()) {
              const int64_t in = X(n, c, ih, iw);
              const Values v = get<Values>(x + in, x_end - in);
              const auto take = (v > best) | (v != v);
              best = take ? v : best;
              index = take ? Index{} + int32_t(ih * s.w.in + iw) : index;
            }
          }
          const int64_t out = Y(n, c, oh, ow);
          put(y + out, best, y_end - out);
          put(indices + out, __builtin_convertvector(index, Stored), y_end - out);
        }
      }
    }
  });
}

void avg_fwd(const Pool2dShape& s, const float* x, float* y) {
  const Index4 X = s.x_index(), Y = s.y_index();
  const int64_t x_end = s.N * X.n;
  for_rows(s, s.h.out, Y.h, [&](int64_t begin, int64_t end) {
    const int64_t y_end = end * Y.h;
    for (int64_t row = begin; row < end; row++) {
      const int64_t n = row / s.h.out, oh = row % s.h.out, top = s.h.start(oh), bottom = s.h.stop(oh);
      for (int64_t ow = 0; ow < s.w.out; ow++) {
        const int64_t left = s.w.start(ow), right = s.w.stop(ow);
        const float divisor = float(s.divisor(oh, ow));
        for (int64_t c = 0; c < s.C; c += L) {
          Values sum = {};
          for (int64_t ih = top; ih < bottom; ih++) {
            for (int64_t iw = left; iw < right; iw++) {
              const int64_t in = X(n, c, ih, iw);
              sum += get<Values>(x + in, x_end - in);
            }
          }
          const int64_t out = Y(n, c, oh, ow);
          put(y + out, sum / divisor, y_end - out);
        }
      }
    }
  });
}

// The gradient's loops: term(n, c, ih, iw, oh, ow) of every window that may hold the pixel, summed in row-major order.
template <class Term>
PYCONV_INLINE void gather(const Pool2dShape& s, float* dx, const Term& term) {
  const Index4 X = s.x_index();
  for_rows(s, s.h.in, X.h, [&](int64_t begin, int64_t end) {
    const int64_t x_end = end * X.h;
    int64_t* first = static_cast<int64_t*>(scratch(0, size_t(s.w.in) * 2 * sizeof(int64_t)));  // (IW,) outputs
    int64_t* last = first + s.w.in;
    for (int64_t iw = 0; iw < s.w.in; iw++) {
      first[iw] = s.w.first_output(iw);
      last[iw] = s.w.last_output(iw);
    }
    for (int64_t row = begin; row < end; row++) {
      const int64_t n = row / s.h.in, ih = row % s.h.in;
      const int64_t top = s.h.first_output(ih), bottom = s.h.last_output(ih);
      for (int64_t iw = 0; iw < s.w.in; iw++) {
        for (int64_t c = 0; c < s.C; c += L) {
          Values sum = {};
          for (int64_t oh = top; oh <= bottom; oh++) {
            for (int64_t ow = first[iw]; ow <= last[iw]; ow++) sum += term(n, c, ih, iw, oh, ow);
          }
          const int64_t in = X(n, c, ih, iw);
          put(dx + in, sum, x_end - in);
        }
      }
    }
  });
}

void max_bwd(const Pool2dShape& s, const float* dy, const int64_t* indices, float* dx) {
  const Index4 Y = s.y_index();
  const int64_t y_end = s.N * Y.n;
  gather(s, dx, [&](int64_t n, int64_t c, int64_t ih, int64_t iw, int64_t oh, int64_t ow) {
    const int64_t out = Y(n, c, oh, ow);
    const Index index = __builtin_convertvector(get<Stored>(indices + out, y_end - out), Index);
    return index == int32_t(ih * s.w.in + iw) ? get<Values>(dy + out, y_end - out) : Values{};
  });
}

void avg_bwd(const Pool2dShape& s, const float* dy, float* dx) {
  const Index4 Y = s.y_index();
  const int64_t y_end = s.N * Y.n;
  float* share = static_cast<float*>(scratch(1, size_t(s.h.out * s.w.out) * sizeof(float)));  // (OH, OW)
  for (int64_t o = 0; o < s.h.out * s.w.out; o++) share[o] = 1 / float(s.divisor(o / s.w.out, o % s.w.out));
  gather(s, dx, [&](int64_t n, int64_t c, int64_t, int64_t, int64_t oh, int64_t ow) {
    const int64_t out = Y(n, c, oh, ow);
    return get<Values>(dy + out, y_end - out) * share[oh * s.w.out + ow];
  });
}

}  // namespace
}  // namespace pool2d_channels

// pool2d / reference.
// Computes  max      y = max of the window, indices = ih*IW + iw of it: the first of equals in row-major order, the last
//                    NaN if there is one, the first pixel if all are -inf;   dx[index] += dy
//           average  y = (sum of the window) / divisor;   dx[n,c,ih,iw] = sum of dy / divisor over the windows holding it
//           unpool   y[index] = x, zero elsewhere, the last of equals;     dx = dy[index], zero where index is -1
// Shapes    planes (N,C,IH,IW), pooled (N,C,OH,OW); plain and adaptive windows; any layout, through index functions
// Cost      one comparison or addition per window pixel; max's backward keeps one plane of sums per thread
// Limits    none: the floor under every other kernel, and never tuned. One thread owns a plane; sums run in a fixed order
// Source    LeCun et al., Proc. IEEE 86(11), 1998, section II.B (average); Zeiler and Fergus, arXiv:1311.2901 (unpool)
#include <atomic>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"

namespace pyconv::pool2d {
namespace {

// body(n, c) for every plane, each on one thread.
template <class Body>
void for_planes(const Pool2dShape& s, const Body& body) {
  parallel_for(s.N * s.C, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) body(item / s.C, item % s.C);
  });
}

// body(oh, ow) for every output of a plane, row by row.
template <class Body>
void for_outputs(const Pool2dShape& s, const Body& body) {
  for (int64_t oh = 0; oh < s.h.out; oh++) {
    for (int64_t ow = 0; ow < s.w.out; ow++) body(oh, ow);
  }
}

// body(ih, iw) for every pixel that output (oh, ow) sees, row by row.
template <class Body>
void for_window(const Pool2dShape& s, int64_t oh, int64_t ow, const Body& body) {
  const int64_t top = s.h.start(oh), bottom = s.h.stop(oh), left = s.w.start(ow), right = s.w.stop(ow);
  for (int64_t ih = top; ih < bottom; ih += s.h.step()) {
    for (int64_t iw = left; iw < right; iw += s.w.step()) body(ih, iw);
  }
}

// body(oh, ow) for every output that sees pixel (ih, iw) of undilated windows, row by row.
template <class Body>
void for_outputs_seeing(const Pool2dShape& s, int64_t ih, int64_t iw, const Body& body) {
  const int64_t top = s.h.first_output(ih), bottom = s.h.last_output(ih);
  const int64_t left = s.w.first_output(iw), right = s.w.last_output(iw);
  for (int64_t oh = top; oh <= bottom; oh++) {
    for (int64_t ow = left; ow <= right; ow++) body(oh, ow);
  }
}

// The tap of pixel `index` in window (oh, ow), and back; -1 where there is none.
int64_t tap_of(const Pool2dShape& s, int64_t oh, int64_t ow, int64_t index) {
  const int64_t kh = index / s.w.in + s.h.padding - oh * s.h.stride,
                kw = index % s.w.in + s.w.padding - ow * s.w.stride;
  return kh * s.w.kernel + kw;
}
int64_t index_of_tap(const Pool2dShape& s, int64_t oh, int64_t ow, int64_t tap) {
  const int64_t ih = oh * s.h.stride - s.h.padding + tap / s.w.kernel;
  const int64_t iw = ow * s.w.stride - s.w.padding + tap % s.w.kernel;
  return ih >= 0 && ih < s.h.in && iw >= 0 && iw < s.w.in ? ih * s.w.in + iw : -1;
}

template <class T>
void max_fwd(const Pool2dShape& s, const T* x, T* y, const Where& where) {
  const Index4 X = s.x_index(), Y = s.y_index();
  for_planes(s, [&](int64_t n, int64_t c) {
    for_outputs(s, [&](int64_t oh, int64_t ow) {
      acc_t<T> best = -std::numeric_limits<acc_t<T>>::infinity();
      int64_t index = -1;
      for_window(s, oh, ow, [&](int64_t ih, int64_t iw) {
        const acc_t<T> v = widen(x[X(n, c, ih, iw)]);
        if (index < 0 || v > best || v != v) {
          best = v;
          index = ih * s.w.in + iw;
        }
      });
      store(&y[Y(n, c, oh, ow)], best);
      if (where.indices) where.indices[Y(n, c, oh, ow)] = index;
      if (where.taps) where.taps[Y(n, c, oh, ow)] = static_cast<uint8_t>(tap_of(s, oh, ow, index));
    });
  });
}

template <class T>
void max_bwd(const Pool2dShape& s, const T* dy, const WhereWas& where, T* dx) {
  const Index4 X = s.x_index(), Y = s.y_index();
  const int64_t pixels = s.h.in * s.w.in;
  for_planes(s, [&](int64_t n, int64_t c) {
    std::vector<acc_t<T>> sum(pixels);
    for_outputs(s, [&](int64_t oh, int64_t ow) {
      const int64_t at = Y(n, c, oh, ow);
      const int64_t index = where.indices ? where.indices[at] : index_of_tap(s, oh, ow, where.taps[at]);
      if (index >= 0 && index < pixels) sum[index] += widen(dy[Y(n, c, oh, ow)]);
    });
    for (int64_t i = 0; i < pixels; i++) store(&dx[X(n, c, i / s.w.in, i % s.w.in)], sum[i]);
  });
}

template <class T>
void avg_fwd(const Pool2dShape& s, const T* x, T* y) {
  const Index4 X = s.x_index(), Y = s.y_index();
  for_planes(s, [&](int64_t n, int64_t c) {
    for_outputs(s, [&](int64_t oh, int64_t ow) {
      acc_t<T> sum = 0;
      for_window(s, oh, ow, [&](int64_t ih, int64_t iw) { sum += widen(x[X(n, c, ih, iw)]); });
      store(&y[Y(n, c, oh, ow)], sum / acc_t<T>(s.divisor(oh, ow)));
    });
  });
}

template <class T>
void avg_bwd(const Pool2dShape& s, const T* dy, T* dx) {
  const Index4 X = s.x_index(), Y = s.y_index();
  for_planes(s, [&](int64_t n, int64_t c) {
    for (int64_t ih = 0; ih < s.h.in; ih++) {
      for (int64_t iw = 0; iw < s.w.in; iw++) {
        acc_t<T> sum = 0;
        for_outputs_seeing(s, ih, iw, [&](int64_t oh, int64_t ow) {
          sum += widen(dy[Y(n, c, oh, ow)]) / acc_t<T>(s.divisor(oh, ow));
        });
        store(&dx[X(n, c, ih, iw)], sum);
      }
    }
  });
}

template <class T>
bool unpool_fwd(const Pool2dShape& s, const T* x, const int64_t* indices, T* y) {
  const Index4 X = s.y_index(), Y = s.x_index();  // x is the pooled side
  const int64_t pixels = s.h.in * s.w.in;
  std::atomic<bool> fit = true;
  for_planes(s, [&](int64_t n, int64_t c) {
    for (int64_t i = 0; i < pixels; i++) y[Y(n, c, i / s.w.in, i % s.w.in)] = T();
    for_outputs(s, [&](int64_t oh, int64_t ow) {
      const int64_t index = indices[X(n, c, oh, ow)];
      if (index < 0 || index >= pixels) {
        fit = false;
      } else {
        y[Y(n, c, index / s.w.in, index % s.w.in)] = x[X(n, c, oh, ow)];
      }
    });
  });
  return fit;
}

template <class T>
bool unpool_bwd(const Pool2dShape& s, const T* dy, const int64_t* indices, T* dx) {
  const Index4 X = s.y_index(), Y = s.x_index();
  const int64_t pixels = s.h.in * s.w.in;
  std::atomic<bool> fit = true;
  for_planes(s, [&](int64_t n, int64_t c) {
    for_outputs(s, [&](int64_t oh, int64_t ow) {
      const int64_t index = indices[X(n, c, oh, ow)];
      if (index < -1 || index >= pixels) fit = false;
      const bool is_pixel = index >= 0 && index < pixels;
      dx[X(n, c, oh, ow)] = is_pixel ? dy[Y(n, c, index / s.w.in, index % s.w.in)] : T();
    });
  });
  return fit;
}

}  // namespace

std::string reference_why_not(const Pool2dShape&, Pass, Ask) { return ""; }

void reference_max_fwd(const Pool2dShape& s, const void* x, void* y, const Where& where) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    max_fwd(s, static_cast<const T*>(x), static_cast<T*>(y), where);
  });
}

void reference_max_bwd(const Pool2dShape& s, const void* dy, const WhereWas& where, void* dx) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    max_bwd(s, static_cast<const T*>(dy), where, static_cast<T*>(dx));
  });
}

void reference_avg_fwd(const Pool2dShape& s, const void* x, void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    avg_fwd(s, static_cast<const T*>(x), static_cast<T*>(y));
  });
}

void reference_avg_bwd(const Pool2dShape& s, const void* dy, void* dx) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    avg_bwd(s, static_cast<const T*>(dy), static_cast<T*>(dx));
  });
}

bool reference_unpool_fwd(const Pool2dShape& s, const void* x, const int64_t* indices, void* y) {
  bool fit = true;
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    fit = unpool_fwd(s, static_cast<const T*>(x), indices, static_cast<T*>(y));
  });
  return fit;
}

bool reference_unpool_bwd(const Pool2dShape& s, const void* dy, const int64_t* indices, void* dx) {
  bool fit = true;
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    fit = unpool_bwd(s, static_cast<const T*>(dy), indices, static_cast<T*>(dx));
  });
  return fit;
}

}  // namespace pyconv::pool2d

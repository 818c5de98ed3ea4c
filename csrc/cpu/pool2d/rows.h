// pool2d / rows.
// Computes  maxima with their indices, means, and both gradients, of plain windows. Separably: a row of x is reduced over
//           KW once, and the KH row results of a window are then combined: KH + KW steps a window, not KH*KW. A row of
//           columns then rows keeps reference.cpp's choice among equals; a mean adds in another order
// Shapes    x (N,C,IH,IW), y and indices (N,C,OH,OW): float32 NCHW, lanes are columns of y.
//           A padded row is split by column modulo SW into phases (SW, length): column p lies at phases[p % SW][p / SW],
//           so that tap kw meets ow at phases[kw*DW % SW][ow + kw*DW / SW], contiguous in ow for every stride
// Tiling    thread: (n, c) planes; per thread one split row and a ring of row results, all in L1 for common widths
// Cost      forward per row of x: one copy and KW vector steps per L outputs, KH per L outputs per row of y
// Limits    float32, NCHW, planes below 2^31 pixels, no adaptive windows.   Source: reference.cpp; separable
//           filtering as in van Herk, Pattern Recognition Letters 13(7), 1992

namespace pool2d_rows {
namespace {

constexpr int64_t L = Vec<float>::size;
using Values = vec<float>;
using Columns = vec<int32_t>;
typedef int64_t Offsets __attribute__((vector_size(L * sizeof(int64_t))));  // L indices, as they are stored

constexpr int64_t serial_pixels = 16384;  // pixels below which one thread is enough

int64_t round_up(int64_t n) { return divide_up(n, L) * L; }

template <class Body>
void for_planes(const Pool2dShape& s, const Body& body) {
  parallel_for(s.N * s.C, divide_up(serial_pixels, s.h.in * s.w.in), body);
}

template <class T>
T* array(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, size_t(count) * sizeof(T)));
}

// body(ow, count) for the vectors of a row of `width` values: all of them full, the last one shifted back onto its
// neighbour, unless the row itself is shorter than a vector.
template <class Body>
PYCONV_INLINE void for_vectors(int64_t width, const Body& body) {
  if (width < L) return body(int64_t(0), width);
  for (int64_t ow = 0; ow < width; ow += L) body(at_most(ow, width - L), L);
}

PYCONV_INLINE void put(float* p, Values v, int64_t count) { count == L ? store(p, v) : store_first(p, v, count); }

PYCONV_INLINE void put(int64_t* p, Columns v, int64_t count) {
  const Offsets wide = __builtin_convertvector(v, Offsets);
  if (count == L) {
    __builtin_memcpy(p, &wide, sizeof wide);
  } else {
    for (int64_t k = 0; k < count; k++) p[k] = wide[k];
  }
}

// A row of `columns` values standing at column `padding` of a padded row, between that and the phases of `stride`.
struct Phases {
  int64_t columns, padding, stride, length;

  template <class T>
  T* at(T* phases, int64_t column) const {
    return phases + (padding + column) % stride * length + (padding + column) / stride;
  }

  void split(const float* row, float* phases) const {
    if (stride == 1) {
      __builtin_memcpy(phases + padding, row, size_t(columns) * sizeof(float));
    } else if (stride == 2) {
      float* __restrict even = at(phases, 0), * __restrict odd = at(phases, 1);
      const int64_t pairs = columns / 2;
      for (int64_t j = 0; j < pairs; j++) {
        even[j] = row[2 * j];
        odd[j] = row[2 * j + 1];
      }
      if (columns % 2) even[pairs] = row[2 * pairs];
    } else {
      for (int64_t first = 0; first < at_most(stride, columns); first++) {
        float* phase = at(phases, first);
        for (int64_t column = first; column < columns; column += stride) *phase++ = row[column];
      }
    }
  }

  void join(const float* phases, float* row) const {
    if (stride == 1) {
      __builtin_memcpy(row, phases + padding, size_t(columns) * sizeof(float));
    } else if (stride == 2) {
      const float* __restrict even = at(phases, 0), * __restrict odd = at(phases, 1);
      const int64_t pairs = columns / 2;
      for (int64_t j = 0; j < pairs; j++) {
        row[2 * j] = even[j];
        row[2 * j + 1] = odd[j];
      }
      if (columns % 2) row[2 * pairs] = even[pairs];
    } else {
      for (int64_t first = 0; first < at_most(stride, columns); first++) {
        const float* phase = at(phases, first);
        for (int64_t column = first; column < columns; column += stride) row[column] = *phase++;
      }
    }
  }
};

// What the forward passes share: the split row, where its taps lie, and the ring of rows of x already reduced.
struct Windows {
  const PoolAxis h, w;
  int64_t width, ring;  // a row result is `width` wide; the rows of one window fit the ring
  Phases row;
  float* phases;   // (SW, row.length), of one row of x
  float* reduced;  // (ring, width)
  int64_t* tap;    // (KW,) offsets into phases
  int64_t* holds;  // (ring,) the row of x in each slot

  Windows(const Pool2dShape& s, float padding_value) : h(s.h), w(s.w) {
    width = round_up(w.out);
    ring = (h.kernel - 1) * h.dilation + 1;
    const int64_t read = width + (w.kernel - 1) * w.dilation / w.stride,
                  written = (w.padding + w.in - 1) / w.stride + 1;
    row = {w.in, w.padding, w.stride, at_least(read, written)};
    phases = array<float>(0, w.stride * row.length);
    reduced = array<float>(1, ring * width);
    tap = array<int64_t>(3, w.kernel + ring);
    holds = tap + w.kernel;
    for (int64_t i = 0; i < w.stride * row.length; i++) phases[i] = padding_value;
    for (int64_t kw = 0; kw < w.kernel; kw++) {
      const int64_t column = kw * w.dilation;
      tap[kw] = column % w.stride * row.length + column / w.stride;
    }
  }

  void new_plane() const {
    for (int64_t slot = 0; slot < ring; slot++) holds[slot] = -1;
  }

  // The window rows of oh that the ring does not hold yet, split, then reduced into their slots.
  template <class Reduce>
  void bring(const float* x, int64_t oh, const Reduce& reduce) const {
    for (int64_t ih = h.start(oh); ih < h.stop(oh); ih += h.dilation) {
      const int64_t slot = ih % ring;
      if (holds[slot] == ih) continue;
      row.split(x + ih * w.in, phases);
      reduce(slot);
      holds[slot] = ih;
    }
  }
};

void max_fwd(const Pool2dShape& s, const float* x, float* y, int64_t* indices) {
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Windows f(s, -__builtin_inff());
    int32_t* columns = array<int32_t>(2, (f.ring + 1) * f.width);  // (ring, width) where each row maximum stands
    int32_t* first = columns + f.ring * f.width;                   // (width,) each window's first column
    for (int64_t ow = 0; ow < f.width; ow++) first[ow] = int32_t(s.w.start(ow));
    Columns lane;
    for (int64_t k = 0; k < L; k++) lane[k] = int32_t(k * s.w.stride - s.w.padding);

    const auto reduce = [&](int64_t slot) {
      for (int64_t ow = 0; ow < f.width; ow += L) {
        Values best = Values{} - __builtin_inff();
        Columns column = load(first + ow);
        for (int64_t kw = 0; kw < s.w.kernel; kw++) {
          const Values v = load(f.phases + f.tap[kw] + ow);
          const auto take = (v > best) | (v != v);
          best = take ? v : best;
          column = take ? lane + int32_t(ow * s.w.stride + kw * s.w.dilation) : column;
        }
        store(f.reduced + slot * f.width + ow, best);
        store(columns + slot * f.width + ow, column);
      }
    };

    for (int64_t plane = begin; plane < end; plane++) {
      f.new_plane();
      for (int64_t oh = 0; oh < s.h.out; oh++) {
        f.bring(x + plane * s.h.in * s.w.in, oh, reduce);
        const int64_t top = s.h.start(oh), bottom = s.h.stop(oh), out = (plane * s.h.out + oh) * s.w.out;
        for_vectors(s.w.out, [&](int64_t ow, int64_t count) {
          const int64_t slot = top % f.ring;
          Values best = load(f.reduced + slot * f.width + ow);
          Columns index = load(columns + slot * f.width + ow) + int32_t(top * s.w.in);
          for (int64_t ih = top + s.h.dilation; ih < bottom; ih += s.h.dilation) {
            const int64_t next = ih % f.ring * f.width + ow;
            const Values v = load(f.reduced + next);
            const auto take = (v > best) | (v != v);
            best = take ? v : best;
            index = take ? load(columns + next) + int32_t(ih * s.w.in) : index;
          }
          put(y + out + ow, best, count);
          put(indices + out + ow, index, count);
        });
      }
    }
  });
}

// A scatter: the plane has one owner, and the outputs come in row-major order.
void max_bwd(const Pool2dShape& s, const float* dy, const int64_t* indices, float* dx) {
  const int64_t pixels = s.h.in * s.w.in, outputs = s.h.out * s.w.out;
  for_planes(s, [&](int64_t begin, int64_t end) {
    __builtin_memset(dx + begin * pixels, 0, size_t((end - begin) * pixels) * sizeof(float));
    for (int64_t plane = begin; plane < end; plane++) {
      for (int64_t o = plane * outputs; o < (plane + 1) * outputs; o++) {
        if (uint64_t(indices[o]) < uint64_t(pixels)) dx[plane * pixels + indices[o]] += dy[o];
      }
    }
  });
}

// across[ow], for ow < width: columns each window counts, or 1 where the divisor is given.
float* divisors_across(const Pool2dShape& s, int64_t width) {
  float* across = array<float>(2, width);
  for (int64_t ow = 0; ow < width; ow++) {
    across[ow] = s.divisor_override || ow >= s.w.out ? 1 : float(s.w.count(ow, s.count_include_pad));
  }
  return across;
}

float divisor_down(const Pool2dShape& s, int64_t oh) {
  return s.divisor_override ? float(s.divisor_override) : float(s.h.count(oh, s.count_include_pad));
}

void avg_fwd(const Pool2dShape& s, const float* x, float* y) {
  for_planes(s, [&](int64_t begin, int64_t end) {
    const Windows f(s, 0);
    const float* across = divisors_across(s, f.width);

    const auto reduce = [&](int64_t slot) {
      for (int64_t ow = 0; ow < f.width; ow += L) {
        Values sum = {};
        for (int64_t kw = 0; kw < s.w.kernel; kw++) sum += load(f.phases + f.tap[kw] + ow);
        store(f.reduced + slot * f.width + ow, sum);
      }
    };

    for (int64_t plane = begin; plane < end; plane++) {
      f.new_plane();
      for (int64_t oh = 0; oh < s.h.out; oh++) {
        f.bring(x + plane * s.h.in * s.w.in, oh, reduce);
        const float down = divisor_down(s, oh);
        for_vectors(s.w.out, [&](int64_t ow, int64_t count) {
          Values sum = {};
          for (int64_t ih = s.h.start(oh); ih < s.h.stop(oh); ih++) sum += load(f.reduced + ih % f.ring * f.width + ow);
          put(y + (plane * s.h.out + oh) * s.w.out + ow, sum / (load(across + ow) * down), count);
        });
      }
    }
  });
}

// Each row of dy is divided, then spread over its windows' columns, phase by phase; a row of dx adds the spread rows of
// the windows that hold it.
void avg_bwd(const Pool2dShape& s, const float* dy, float* dx) {
  const int64_t SW = s.w.stride, KW = s.w.kernel, reach = (KW - 1) / SW;  // windows that hold a column, less one
  const int64_t length = round_up((s.w.padding + s.w.in - 1) / SW + 1), ring = divide_up(s.h.kernel, s.h.stride);
  const Phases row = {s.w.in, s.w.padding, SW, length};
  for_planes(s, [&](int64_t begin, int64_t end) {
    const float* across = divisors_across(s, length);
    float* share =
        array<float>(0, reach + length + SW * length);    // (reach + length,) zeros, then one divided row of dy
    float* phases = share + reach + length;               // (SW, length) the row of dx
    float* spread = array<float>(1, ring * SW * length);  // (ring, SW, length)
    int64_t* holds = array<int64_t>(3, ring);             // (ring,) the row of dy in each slot
    for (int64_t i = 0; i < reach + length; i++) share[i] = 0;

    const auto bring = [&](int64_t plane, int64_t oh) {
      const float* from = dy + (plane * s.h.out + oh) * s.w.out;
      const float down = divisor_down(s, oh);
      for (int64_t ow = 0; ow < s.w.out; ow++) share[reach + ow] = from[ow] / (across[ow] * down);
      for (int64_t q = 0; q < SW; q++) {
        const int64_t taps = q < KW ? (KW - 1 - q) / SW + 1 : 0;
        for (int64_t j = 0; j < length; j += L) {
          Values sum = {};
          for (int64_t t = 0; t < taps; t++) sum += load(share + reach + j - t);
          store(spread + (oh % ring * SW + q) * length + j, sum);
        }
      }
    };

    for (int64_t plane = begin; plane < end; plane++) {
      for (int64_t slot = 0; slot < ring; slot++) holds[slot] = -1;
      for (int64_t ih = 0; ih < s.h.in; ih++) {
        const int64_t first = s.h.first_output(ih), last = s.h.last_output(ih);
        for (int64_t oh = first; oh <= last; oh++) {
          if (holds[oh % ring] != oh) bring(plane, oh);
          holds[oh % ring] = oh;
        }
        for (int64_t j = 0; j < SW * length; j += L) {
          Values sum = {};
          for (int64_t oh = first; oh <= last; oh++) sum += load(spread + oh % ring * SW * length + j);
          store(phases + j, sum);
        }
        row.join(phases, dx + (plane * s.h.in + ih) * s.w.in);
      }
    }
  });
}

}  // namespace
}  // namespace pool2d_rows

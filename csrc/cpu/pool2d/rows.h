// pool2d / rows.
// Computes  maxima with their indices, means, and both gradients, of plain windows. Separably: a row of x is reduced over
//           KW once, and the KH row results of a window are then combined: KH + KW steps a window, not KH*KW. Columns
//           first, then rows, keeps reference.cpp's choice among equals; a mean adds in another order than it
// Shapes    x (N,C,IH,IW), y and indices (N,C,OH,OW): float32 NCHW, lanes are columns of y.
//           A padded row is split by column modulo SW into phases (SW, length): column p lies at phases[p % SW][p / SW],
//           so that tap kw meets ow at phases[kw*DW % SW][ow + kw*DW / SW], contiguous in ow for every stride
// Tiling    thread: planes in ascending order; one split row and a ring of row results, all in L1 for common widths.
//           The last vector of a row of y runs on into the next one, which is written later
// Cost      forward, per row of x: one copy and KW vector steps per L outputs; per row of y: KH more
// Limits    float32, NCHW, planes below 2^31 pixels, no adaptive windows (max's backward, a scatter, takes any)
// Source    reference.cpp; separable windows as in van Herk, Pattern Recognition Letters 13(7), 1992

namespace pool2d_rows {
namespace {

constexpr int64_t L = Vec<float>::size;
using Values = vec<float>;
using Columns = vec<int32_t>;
typedef int64_t Stored __attribute__((vector_size(L * sizeof(int64_t))));  // L indices as they are stored

constexpr int64_t serial_pixels = 16384;  // pixels below which one thread is enough

// planes(begin, end) of the N*C planes.
template <class Planes>
void for_planes(const Pool2dShape& s, const Planes& planes) {
  parallel_for(s.N * s.C, divide_up(serial_pixels, s.h.in * s.w.in), planes);
}

int64_t whole_vectors(int64_t width) { return divide_up(width, L) * L; }

// Memory of this thread for one call, one array per slot.
template <class T>
T* array(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, size_t(count) * sizeof(T)));
}

// A vector of outputs where there is `room` for that many.
PYCONV_INLINE void put(float* p, Values v, int64_t room) { room >= L ? store(p, v) : store_first(p, v, room); }

PYCONV_INLINE void put(int64_t* p, Columns v, int64_t room) {
  const Stored wide = __builtin_convertvector(v, Stored);
  if (room >= L) {
    __builtin_memcpy(p, &wide, sizeof wide);
  } else {
    for (int64_t k = 0; k < room; k++) p[k] = wide[k];
  }
}

// The (SW, length) phases of a padded row, and the way there and back for the columns inside the padding.
struct Phases {
  int64_t columns, stride, length;
  int64_t* origin;  // (SW,) where column 0 .. SW-1 of the row lies; the next of its phase follows

  Phases(const PoolAxis& w, int64_t length, int64_t* origin)
      : columns(w.in), stride(w.stride), length(length), origin(origin) {
    for (int64_t column = 0; column < stride; column++) origin[column] = at(w.padding + column);
  }

  int64_t at(int64_t padded_column) const { return padded_column % stride * length + padded_column / stride; }

  void split(const float* row, float* phases) const {
    if (stride == 1) {
      __builtin_memcpy(phases + origin[0], row, size_t(columns) * sizeof(float));
    } else if (stride == 2) {
      float* __restrict even = phases + origin[0], * __restrict odd = phases + origin[1];
      for (int64_t j = 0; j < columns / 2; j++) {
        even[j] = row[2 * j];
        odd[j] = row[2 * j + 1];
      }
      if (columns % 2) even[columns / 2] = row[columns - 1];
    } else {
      for (int64_t first = 0; first < at_most(stride, columns); first++) {
        float* phase = phases + origin[first];
        for (int64_t column = first; column < columns; column += stride) *phase++ = row[column];
      }
    }
  }

  void join(const float* phases, float* row) const {
    if (stride == 1) {
      __builtin_memcpy(row, phases + origin[0], size_t(columns) * sizeof(float));
    } else if (stride == 2) {
      const float* __restrict even = phases + origin[0], * __restrict odd = phases + origin[1];
      for (int64_t j = 0; j < columns / 2; j++) {
        row[2 * j] = even[j];
        row[2 * j + 1] = odd[j];
      }
      if (columns % 2) row[columns - 1] = even[columns / 2];
    } else {
      for (int64_t first = 0; first < at_most(stride, columns); first++) {
        const float* phase = phases + origin[first];
        for (int64_t column = first; column < columns; column += stride) row[column] = *phase++;
      }
    }
  }
};

// What the forward passes share: the split row, where its taps lie, and the ring of rows of x already reduced.
struct Windows {
  const PoolAxis h, w;
  const int64_t width, ring;  // a row result is `width` wide; the rows of one window fit the ring
  int64_t* const table;       // the four tables below
  const Phases row;
  int64_t* const tap;    // (KW,) where each tap lies in phases
  int64_t* const holds;  // (ring,) the row of x in each slot
  int64_t* const place;  // (KH,) where the rows of the present window lie in reduced
  float* const phases;   // (SW, row.length), of one row of x
  float* const reduced;  // (ring, width)

  Windows(const Pool2dShape& s, float padding_value)
      : h(s.h),
        w(s.w),
        width(whole_vectors(w.out)),
        ring((h.kernel - 1) * h.dilation + 1),
        table(array<int64_t>(3, w.stride + w.kernel + ring + h.kernel)),
        row(w, at_least(width + (w.kernel - 1) * w.dilation / w.stride, (w.padding + w.in - 1) / w.stride + 1), table),
        tap(table + w.stride),
        holds(tap + w.kernel),
        place(holds + ring),
        phases(array<float>(0, w.stride * row.length)),
        reduced(array<float>(1, ring * width)) {
    for (int64_t i = 0; i < w.stride * row.length; i++) phases[i] = padding_value;
    for (int64_t kw = 0; kw < w.kernel; kw++) tap[kw] = row.at(kw * w.dilation);
  }

  void new_plane() const {
    for (int64_t slot = 0; slot < ring; slot++) holds[slot] = -1;
  }

  // The number of rows in the window of oh, all of them in the ring: a new one is split, then reduced into its slot.
  template <class Reduce>
  int64_t bring(const float* x, int64_t oh, const Reduce& reduce) const {
    int64_t rows = 0;
    for (int64_t ih = h.start(oh); ih < h.stop(oh); ih += h.dilation, rows++) {
      const int64_t slot = ih % ring;
      place[rows] = slot * width;
      if (holds[slot] == ih) continue;
      row.split(x + ih * w.in, phases);
      reduce(place[rows]);
      holds[slot] = ih;
    }
    return rows;
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

    const auto reduce = [&](int64_t place) {
      for (int64_t ow = 0; ow < f.width; ow += L) {
        Values best = Values{} - __builtin_inff();
        Columns column = load(first + ow);
        for (int64_t kw = 0; kw < s.w.kernel; kw++) {
          const Values v = load(f.phases + f.tap[kw] + ow);
          const auto take = (v > best) | (v != v);
          best = take ? v : best;
          column = take ? lane + int32_t(ow * s.w.stride + kw * s.w.dilation) : column;
        }
        store(f.reduced + place + ow, best);
        store(columns + place + ow, column);
      }
    };

    int64_t out = begin * s.h.out * s.w.out;
    const int64_t out_end = end * s.h.out * s.w.out;
    for (int64_t plane = begin; plane < end; plane++) {
      f.new_plane();
      for (int64_t oh = 0; oh < s.h.out; oh++, out += s.w.out) {
        const int64_t rows = f.bring(x + plane * s.h.in * s.w.in, oh, reduce), top = s.h.start(oh);
        for (int64_t ow = 0; ow < s.w.out; ow += L) {
          Values best = load(f.reduced + f.place[0] + ow);
          Columns index = load(columns + f.place[0] + ow) + int32_t(top * s.w.in);
          for (int64_t kh = 1; kh < rows; kh++) {
            const Values v = load(f.reduced + f.place[kh] + ow);
            const auto take = (v > best) | (v != v);
            const int32_t row = int32_t((top + kh * s.h.dilation) * s.w.in);
            best = take ? v : best;
            index = take ? load(columns + f.place[kh] + ow) + row : index;
          }
          put(y + out + ow, best, out_end - out - ow);
          put(indices + out + ow, index, out_end - out - ow);
        }
      }
    }
  });
}

// A scatter: the plane has one owner, and the outputs come in row-major order.
void max_bwd(const Pool2dShape& s, const float* dy, const int64_t* indices, float* dx) {
  const int64_t pixels = s.h.in * s.w.in, outputs = s.h.out * s.w.out;
  for_planes(s, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane++) {
      float* to = dx + plane * pixels;
      __builtin_memset(to, 0, size_t(pixels) * sizeof(float));
      for (int64_t o = plane * outputs; o < (plane + 1) * outputs; o++) {
        if (uint64_t(indices[o]) < uint64_t(pixels)) to[indices[o]] += dy[o];
      }
    }
  });
}

// (width,) columns each window counts, or 1 where the divisor is given or there is no window.
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

    const auto reduce = [&](int64_t place) {
      for (int64_t ow = 0; ow < f.width; ow += L) {
        Values sum = {};
        for (int64_t kw = 0; kw < s.w.kernel; kw++) sum += load(f.phases + f.tap[kw] + ow);
        store(f.reduced + place + ow, sum);
      }
    };

    int64_t out = begin * s.h.out * s.w.out;
    const int64_t out_end = end * s.h.out * s.w.out;
    for (int64_t plane = begin; plane < end; plane++) {
      f.new_plane();
      for (int64_t oh = 0; oh < s.h.out; oh++, out += s.w.out) {
        const int64_t rows = f.bring(x + plane * s.h.in * s.w.in, oh, reduce);
        const float down = divisor_down(s, oh);
        for (int64_t ow = 0; ow < s.w.out; ow += L) {
          Values sum = {};
          for (int64_t kh = 0; kh < rows; kh++) sum += load(f.reduced + f.place[kh] + ow);
          put(y + out + ow, sum / (load(across + ow) * down), out_end - out - ow);
        }
      }
    }
  });
}

// Each row of dy is divided, then spread over its windows' columns, phase by phase; a row of dx adds the spread rows of
// the windows that hold it.
void avg_bwd(const Pool2dShape& s, const float* dy, float* dx) {
  const int64_t SW = s.w.stride, KW = s.w.kernel, reach = (KW - 1) / SW;  // windows that hold a column, less one
  const int64_t length = whole_vectors((s.w.padding + s.w.in - 1) / SW + 1), ring = divide_up(s.h.kernel, s.h.stride);
  for_planes(s, [&](int64_t begin, int64_t end) {
    int64_t* holds = array<int64_t>(3, ring + SW);  // (ring,) the row of dy in each slot
    const Phases row(s.w, length, holds + ring);
    const float* across = divisors_across(s, length);
    float* share =
        array<float>(0, reach + length + SW * length);    // (reach + length,) zeros, then one divided row of dy
    float* phases = share + reach + length;               // (SW, length) the row of dx
    float* spread = array<float>(1, ring * SW * length);  // (ring, SW, length)
    for (int64_t i = 0; i < reach + length; i++) share[i] = 0;

    const auto bring = [&](int64_t plane, int64_t oh) {
      const float* from = dy + (plane * s.h.out + oh) * s.w.out;
      const float down = divisor_down(s, oh);
      for (int64_t ow = 0; ow < s.w.out; ow++) share[reach + ow] = from[ow] / (across[ow] * down);
      for (int64_t phase = 0; phase < SW; phase++) {
        const int64_t taps = phase < KW ? (KW - 1 - phase) / SW + 1 : 0;
        for (int64_t j = 0; j < length; j += L) {
          Values sum = {};
          for (int64_t t = 0; t < taps; t++) sum += load(share + reach + j - t);
          store(spread + (oh % ring * SW + phase) * length + j, sum);
        }
      }
      holds[oh % ring] = oh;
    };

    for (int64_t plane = begin; plane < end; plane++) {
      for (int64_t slot = 0; slot < ring; slot++) holds[slot] = -1;
      for (int64_t ih = 0; ih < s.h.in; ih++) {
        const int64_t first = s.h.first_output(ih), last = s.h.last_output(ih);
        for (int64_t i = 0; i < SW * length; i++) phases[i] = 0;
        for (int64_t oh = first; oh <= last; oh++) {
          if (holds[oh % ring] != oh) bring(plane, oh);
          const float* from = spread + oh % ring * SW * length;
          for (int64_t i = 0; i < SW * length; i += L) store(phases + i, load(phases + i) + load(from + i));
        }
        row.join(phases, dx + (plane * s.h.in + ih) * s.w.in);
      }
    }
  });
}

}  // namespace
}  // namespace pool2d_rows

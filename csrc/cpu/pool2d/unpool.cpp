// pool2d / offsets.
// Computes  y[index] = x, zero elsewhere, the last of equals;   dx = dy[index], zero where index is -1
// Shapes    pooled x and indices (N,C,OH,OW), planes y (N,C,IH,IW), in either layout: indices are offsets into a plane, and
//           with a stride, C in channels_last, into memory; no index is ever taken apart into a row and a column
// Tiling    thread: planes in NCHW, images in channels_last, or some channels of each where images are few
// Cost      one load and one store per output, beside writing the plane's zeros
// Limits    none. Copies bits, so that one instance serves every type of a size
// Source    Zeiler and Fergus, arXiv:1311.2901
#include <atomic>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"

namespace pyconv::pool2d {
namespace {

template <class Body>
void with_bits(DType dtype, const Body& body) {
  const int64_t size = size_of(dtype);
  size == 2 ? body(uint16_t()) : size == 4 ? body(uint32_t()) : body(uint64_t());
}

// body(base of the plane side, of the pooled side, channels) for pieces that no two threads share: `channels` neighbours
// of every pixel.
template <class Body>
void for_pieces(const Pool2dShape& s, int64_t stride, const Body& body) {
  const int64_t plane = s.h.in * s.w.in * stride, pooled = s.h.out * s.w.out * stride;
  const int64_t items = s.N * s.C / stride, parts = at_most(parts_of(items), divide_up(stride, 16));
  parallel_for(items * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / parts, c0 = stride * (item % parts) / parts, c1 = stride * (item % parts + 1) / parts;
      body(n * plane + c0, n * pooled + c0, c1 - c0);
    }
  });
}

// From a pixel of a plane to the next: 1 in NCHW.
int64_t stride_of(const Pool2dShape& s) { return s.layout == Layout::nchw ? 1 : s.C; }

// visit(at, c) for `channels` neighbours of every one of `count` pixels.
template <class Visit>
void for_values(int64_t count, int64_t stride, int64_t channels, const Visit& visit) {
  if (stride == 1) {
    for (int64_t at = 0; at < count; at++) visit(at, 0);
  } else {
    for (int64_t i = 0; i < count; i++) {
      for (int64_t c = 0; c < channels; c++) visit(i * stride + c, c);
    }
  }
}

}  // namespace

bool offsets_unpool_fwd(const Pool2dShape& s, const void* pooled, const int64_t* indices, void* plane) {
  std::atomic<bool> all_fit = true;
  with_bits(s.dtype, [&](auto bits) {
    using T = decltype(bits);
    const T* x = static_cast<const T*>(pooled);
    T* y = static_cast<T*>(plane);
    const int64_t stride = stride_of(s), pixels = s.h.in * s.w.in, outputs = s.h.out * s.w.out;
    for_pieces(s, stride, [&](int64_t to, int64_t from, int64_t channels) {
      if (channels == stride) {
        std::memset(y + to, 0, sizeof(T) * pixels * stride);
      } else {
        for_values(pixels, stride, channels, [&](int64_t at, int64_t) { y[to + at] = T(); });
      }
      bool fit = true;
      for_values(outputs, stride, channels, [&](int64_t at, int64_t c) {
        const int64_t index = indices[from + at];
        const bool is_pixel = uint64_t(index) < uint64_t(pixels);
        if (is_pixel) y[to + index * stride + c] = x[from + at];
        fit &= is_pixel;
      });
      if (!fit) all_fit = false;
    });
  });
  return all_fit;
}

// Indices of windows two rows high lead to and fro between rows, which no CPU takes for a sequence: without asking ahead the
// gradient takes 1.8 to 2.6 times as long in NCHW (4x64x240x320 planes, Zen 5). In channels_last, where a pixel is a sequence
// of its own, asking gains nothing.
constexpr int64_t ahead = 4096;  // bytes; 2048 and 8192 do as well

bool offsets_unpool_bwd(const Pool2dShape& s, const void* plane, const int64_t* indices, void* pooled) {
  std::atomic<bool> all_fit = true;
  with_bits(s.dtype, [&](auto bits) {
    using T = decltype(bits);
    const T* dy = static_cast<const T*>(plane);
    T* dx = static_cast<T*>(pooled);
    const int64_t stride = stride_of(s), pixels = s.h.in * s.w.in, outputs = s.h.out * s.w.out;
    for_pieces(s, stride, [&](int64_t from, int64_t to, int64_t channels) {
      bool fit = true;
      for_values(outputs, stride, channels, [&](int64_t at, int64_t c) {
        const int64_t index = indices[to + at];
        const bool is_pixel = uint64_t(index) < uint64_t(pixels);
        if (stride == 1) __builtin_prefetch(dy + from + index * stride + c + ahead / int64_t(sizeof(T)));
        dx[to + at] = is_pixel ? dy[from + index * stride + c] : T();
        fit &= is_pixel | (index == -1);
      });
      if (!fit) all_fit = false;
    });
  });
  return all_fit;
}

}  // namespace pyconv::pool2d

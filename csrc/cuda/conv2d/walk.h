// Indices of three digits, as gemm.h describes them, on the device: where they lead, and how they advance without division.
#pragma once
#include "cuda/conv2d/gemm.h"
#include "cuda/vocabulary.h"

namespace pyconv::cuda::conv2d {

struct Walk {
  int digit[3];

  PYCONV_DEVICE Walk(const Digit (&d)[3], int i)
      : digit{i % d[0].radix, i / d[0].radix % d[1].radix, i / d[0].radix / d[1].radix} {}

  // By the number whose digits `step` has.
  PYCONV_DEVICE void advance(const Digit (&d)[3], const Walk& step) {
    digit[0] += step.digit[0];
    digit[1] += step.digit[1];
    digit[2] += step.digit[2];
    if (digit[0] >= d[0].radix) {
      digit[0] -= d[0].radix;
      digit[1]++;
    }
    if (digit[1] >= d[1].radix) {
      digit[1] -= d[1].radix;
      digit[2]++;
    }
  }
};

PYCONV_DEVICE int a_of(const Digit (&d)[3], const Walk& i) {
  return i.digit[0] * d[0].a + i.digit[1] * d[1].a + i.digit[2] * d[2].a;
}

PYCONV_DEVICE int d_of(const Digit (&d)[3], const Walk& i) {
  return i.digit[0] * d[0].d + i.digit[1] * d[1].d + i.digit[2] * d[2].d;
}

// Where a column or a term leads in B's image. An element lies where the two of them lead together.
struct Pixel {
  int offset, h, w;
};

PYCONV_DEVICE Pixel pixel_of(const Digit (&d)[3], const Walk& i) {
  return {i.digit[0] * d[0].b + i.digit[1] * d[1].b + i.digit[2] * d[2].b,
          i.digit[0] * d[0].h + i.digit[1] * d[1].h + i.digit[2] * d[2].h,
          i.digit[0] * d[0].w + i.digit[1] * d[1].w + i.digit[2] * d[2].w};
}

// Column i, outside every image if there is none.
PYCONV_DEVICE Pixel column_of(const Gemm& g, int i) {
  Pixel p = pixel_of(g.column, Walk(g.column, i < g.N ? i : 0));
  p.h += i < g.N ? g.h : -(1 << 30);
  p.w += g.w;
  return p;
}

PYCONV_DEVICE bool inside(const Gemm& g, const Pixel& column, const Pixel& term) {
  return unsigned(column.h + term.h) < unsigned(g.H) && unsigned(column.w + term.w) < unsigned(g.W);
}

// A block's share of the work: its tile of D, its group and its part of the terms.
struct Share {
  int row, column, group, split, begin, end;

  PYCONV_DEVICE Share(const Gemm& g, int BM, int BN)
      : row(blockIdx.y * BM),
        column(blockIdx.x * BN),
        group(blockIdx.z / g.splits),
        split(blockIdx.z % g.splits),
        begin(split * ((g.K + g.splits - 1) / g.splits)),
        end(begin + (g.K + g.splits - 1) / g.splits) {
    if (end > g.K) end = g.K;
  }
  PYCONV_DEVICE int steps(int BK) const { return end > begin ? (end - begin + BK - 1) / BK : 0; }
};

constexpr int add_threads = 256;

// d = the sum of its `splits` parts, in their order. The parts' taps before channels become d's channels before taps.
template <class T>
__global__ void __launch_bounds__(add_threads)
    add_parts(const float* parts, int splits, int count, int taps, int channels, T* d) {
  const int i = blockIdx.x * add_threads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int s = 0; s < splits; s++) sum += parts[int64_t(s) * count + i];
  const int row = i / (taps * channels), tap = i / channels % taps, channel = i % channels;
  write(&d[(row * channels + channel) * taps + tap], sum);
}

template <class T>
int launch_add_parts(const Gemm& g, const float* parts, T* d, void* stream, int64_t taps = 1, int64_t channels = 1) {
  return launch(add_parts<T>, dim3{unsigned(divide_up(g.split_d, add_threads)), 1, 1}, dim3{add_threads, 1, 1}, 0,
                stream, parts, g.splits, g.split_d, int(taps), int(channels), d);
}

}  // namespace pyconv::cuda::conv2d

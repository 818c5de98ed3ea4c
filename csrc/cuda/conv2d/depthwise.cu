// conv2d on CUDA / depthwise: one channel per group, in channels_last.
// Computes  D[group,column] = sum over terms of A[group,term] * B[group,term,column]: gemm.h with one row, whose groups are
//           neighbours in memory
// Shapes    as implicit_gemm.cu; V channels, 16 bytes, are moved at once
// Tiling    block: 8*V channels, 128 bytes, of 16 pixels at a time; a thread has V channels.
//           fwd, bwd_input: of P pixels; the block's weights lie in shared memory by taps, which threads of one lane share
//           bwd_weight: of every 16th pixel of a part, and of C taps; threads, then parts are added in a fixed order
// Cost      2*N*C*OH*OW*KH*KW flops; each value is read KH*KW times, all but once from L1: at 3x3 that takes a third of the
//           time of an A100's memory, at 7x7 twice it
// Limits    float32 with multiples of 4 channels, bfloat16 and float16 with multiples of 8; channels_last; fewer than 2^31
//           values per tensor; a pointer that is not aligned to 16 bytes goes to direct
// Source    Howard et al., MobileNets, arXiv:1704.04861
#include "cuda/conv2d/few_channels.h"

namespace pyconv::cuda {
namespace {

using namespace conv2d;

constexpr int threads = 128, lanes = 8, pixels = threads / lanes;
constexpr int P = 4, C = depthwise_taps, chunk = 64;

template <class T>
constexpr int V = 16 / sizeof(T);

// The channel, of a block's, at a place in shared memory: fours of a thread's V lie apart, so that eight threads read or
// write 128 bytes in a row.
template <class T>
PYCONV_DEVICE int channel_at(int place) {
  return place / 4 % lanes * V<T> + place / (4 * lanes) * 4 + place % 4;
}
template <class T>
PYCONV_DEVICE int place_of(int lane, int v) {
  return (v / 4 * lanes + lane) * 4;
}

template <class T>
struct SumShared {
  struct alignas(16) Term {
    Pixel at;
  } term[chunk];
  alignas(16) float a[chunk][lanes * V<T> + 4];  // so that a warp stores taps of a channel in a few passes
};

template <class T>
__global__ void __launch_bounds__(threads) sums(Gemm g, FewOperands<T> o) {
  auto& shared = cuda::shared<SumShared<T>>();
  const int lane = threadIdx.x % lanes, first_group = blockIdx.y * lanes * V<T>, group = first_group + lane * V<T>;
  const int i = blockIdx.x * pixels * P + threadIdx.x / lanes;
  Pixel column[P];
#pragma unroll
  for (int p = 0; p < P; p++) column[p] = column_of(g, i + p * pixels);
  float sum[P][V<T>] = {};
  for (int first = 0; first < g.K; first += chunk) {
    const int count = g.K - first < chunk ? g.K - first : chunk;
    if (first) __syncthreads();  // all have read the last terms
    for (int j = threadIdx.x; j < count * lanes * V<T>; j += threads) {
      const int place = j / count, k = j % count, c = channel_at<T>(place);
      const Walk walk(g.term, first + k);
      if (c == 0) shared.term[k].at = pixel_of(g.term, walk);
      if (first_group + c < g.groups) {
        shared.a[k][place] = read(&o.a[g.a + a_of(g.term, walk) + (first_group + c) * g.group_a]);
      }
    }
    __syncthreads();
    if (group >= g.groups) continue;
    for (int k = 0; k < count; k++) {
      const Pixel term = shared.term[k].at;
      float w[V<T>];
#pragma unroll
      for (int v = 0; v < V<T>; v += 4) {
        const float4 four = read4(&shared.a[k][place_of<T>(lane, v)]);
        w[v] = four.x, w[v + 1] = four.y, w[v + 2] = four.z, w[v + 3] = four.w;
      }
#pragma unroll
      for (int p = 0; p < P; p++) {
        if (!inside(g, column[p], term)) continue;
        const auto x = read_pack<V<T>>(&o.b[g.b + column[p].offset + term.offset + group]);
#pragma unroll
        for (int v = 0; v < V<T>; v++) sum[p][v] = fmaf(w[v], read(&x.v[v]), sum[p][v]);
      }
    }
  }
  if (group >= g.groups) return;
#pragma unroll
  for (int p = 0; p < P; p++) {
    if (i + p * pixels >= g.N) continue;
    const int64_t to = g.d + int64_t(group) + d_of(g.column, Walk(g.column, i + p * pixels));
    Pack<T, V<T>> out, bias, residual;
    if (o.bias) bias = read_pack<V<T>>(&o.bias[group]);
    if (o.residual) residual = read_pack<V<T>>(&o.residual[to]);
#pragma unroll
    for (int v = 0; v < V<T>; v++) {
      float y = sum[p][v];
      if (o.bias) y += read(&bias.v[v]);
      if (o.residual) y += read(&residual.v[v]);
      write(&out.v[v], o.clip(y));
    }
    write_pack(&o.d[to], out);
  }
}

template <class T>
struct PixelShared {
  alignas(16) float sum[C][pixels][lanes * V<T>];
};

// The weight gradient: terms are pixels, columns taps.
template <class T>
__global__ void __launch_bounds__(threads, 4) pixel_sums(Gemm g, FewOperands<T> o) {
  auto& shared = cuda::shared<PixelShared<T>>();
  const Share at(g, 1, C);
  const int lane = threadIdx.x % lanes, pixel = threadIdx.x / lanes;
  const int first_group = blockIdx.y * lanes * V<T>, group = first_group + lane * V<T>;
  Pixel column[C];
#pragma unroll
  for (int c = 0; c < C; c++) column[c] = column_of(g, at.column + c);
  float sum[C][V<T>] = {};
  if (group < g.groups) {
    Walk walk(g.term, at.begin + pixel);
    const Walk step(g.term, pixels);
    for (int k = at.begin + pixel; k < at.end; k += pixels) {
      const Pixel term = pixel_of(g.term, walk);
      const auto dy = read_pack<V<T>>(&o.a[g.a + a_of(g.term, walk) + group]);
#pragma unroll
      for (int c = 0; c < C; c++) {
        if (!inside(g, column[c], term)) continue;
        const auto x = read_pack<V<T>>(&o.b[g.b + column[c].offset + term.offset + group]);
#pragma unroll
        for (int v = 0; v < V<T>; v++) sum[c][v] = fmaf(read(&dy.v[v]), read(&x.v[v]), sum[c][v]);
      }
      walk.advance(g.term, step);
    }
  }
#pragma unroll
  for (int c = 0; c < C; c++) {
#pragma unroll
    for (int v = 0; v < V<T>; v += 4) {
      write4(&shared.sum[c][pixel][place_of<T>(lane, v)], {sum[c][v], sum[c][v + 1], sum[c][v + 2], sum[c][v + 3]});
    }
  }
  __syncthreads();
  for (int j = threadIdx.x; j < C * lanes * V<T>; j += threads) {
    const int c = j / (lanes * V<T>), place = j % (lanes * V<T>), channel = channel_at<T>(place);
    if (at.column + c >= g.N || first_group + channel >= g.groups) continue;
    float all = 0;
    for (int p = 0; p < pixels; p++) all += shared.sum[c][p][place];
    o.parts[int64_t(at.split) * g.split_d + int64_t(first_group + channel) * g.group_d +
            d_of(g.column, Walk(g.column, at.column + c))] = all;
  }
}

// ------------------------------------------------------------------------------------------------------------ launchers

template <class T>
int launch_sums(const Place& at, const Gemm& g, const FewOperands<T>& o) {
  if (g.N == 0) return 0;
  const dim3 grid = {unsigned(divide_up(g.N, pixels * P)), unsigned(divide_up(g.groups, lanes * V<T>)), 1};
  return launch(sums<T>, grid, dim3{threads, 1, 1}, sizeof(SumShared<T>), at.stream, g, o);
}

template <class T>
int launch_pixel_sums(const Place& at, const Gemm& g, const FewOperands<T>& o) {
  const dim3 grid = {unsigned(divide_up(g.N, C)), unsigned(divide_up(g.groups, lanes * V<T>)), unsigned(g.splits)};
  return launch(pixel_sums<T>, grid, dim3{threads, 1, 1}, sizeof(PixelShared<T>), at.stream, g, o);
}

}  // namespace

int pyconv_cuda_conv2d_depthwise_fwd(const Place& at, const Conv2dShape& s, const void* x, const void* w,
                                     const Epilogue& e, void* y) {
  if (!aligned({x, y, e.bias, e.residual})) return pyconv_cuda_conv2d_direct_fwd(at, s, x, w, e, y);
  return few_fwd(s, x, w, e, y, [&](const Gemm& g, const auto& o) { return launch_sums(at, g, o); });
}

int pyconv_cuda_conv2d_depthwise_bwd_input(const Place& at, const Conv2dShape& s, const void* dy, const void* w,
                                           void* dx) {
  if (!aligned({dy, dx})) return pyconv_cuda_conv2d_direct_bwd_input(at, s, dy, w, dx);
  return few_bwd_input(s, dy, w, dx, [&](const Gemm& g, const auto& o) { return launch_sums(at, g, o); });
}

int pyconv_cuda_conv2d_depthwise_bwd_weight(const Place& at, const Conv2dShape& s, const void* dy, const void* x,
                                            void* dw) {
  if (!aligned({dy, x})) return pyconv_cuda_conv2d_direct_bwd_weight(at, s, dy, x, dw);
  return few_bwd_weight(at, s, depthwise_splits_of(s), dy, x, dw,
                        [&](const Gemm& g, const auto& o) { return launch_pixel_sums(at, g, o); });
}

}  // namespace pyconv::cuda

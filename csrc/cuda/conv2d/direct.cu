// conv2d on CUDA / direct: few channels per group, where a tile of a matrix product would stay empty.
// Computes  D[row,column] = sum over terms of A[row,term] * B[term,column]; which tensors those are: cuda/conv2d/gemm.h
// Shapes    as implicit_gemm.cu; float32, bfloat16 and float16, summed in float
// Tiling    fwd, bwd_input: a thread has R rows of some columns, neighbouring pixels in neighbouring threads; the block's
//           weights and the terms' offsets lie in shared memory, where all lanes read one address
//           bwd_weight: a thread has the sums of R rows by C columns over every so many pixels; lanes, then warps, then parts
//           are added in a fixed order
// Cost      2*M*N*K flops; one value read per R multiply-adds, 1/R + 1/C in bwd_weight, of which neighbours share sectors
// Limits    float32, bfloat16, float16; fewer than 2^31 values per tensor
// Source    Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285
#include "cuda/conv2d/walk.h"

#include "cuda/library.h"
#include "cuda/operands.h"

namespace pyconv::cuda {
namespace {

using namespace conv2d;

constexpr int threads = 128, warps = threads / 32, chunk = 128;

template <class T>
struct Operands {
  const T *a, *b;
  const T *bias, *residual;  // of fwd, or null
  T* d;
  float* parts;  // of bwd_weight
  bool relu;
};

template <int R>
struct alignas(R % 4 == 0 ? 16 : 4) Row {
  float value[R];
};

template <int R>
struct SumShared {
  struct alignas(16) Term {
    Pixel at;
  } term[chunk];
  Row<R> a[chunk];
};

// R rows, P columns a thread: one row is a depthwise convolution's, whose columns then share its weights.
template <class T, int R, int P>
__global__ void __launch_bounds__(threads) sums(Gemm g, Operands<T> o) {
  auto& shared = cuda::shared<SumShared<R>>();
  const Share at(g, R, threads * P);
  const T *a = o.a + g.a + at.group * g.group_a + at.row * g.row_a, *b = o.b + g.b + at.group * g.group_b;
  Pixel column[P];
#pragma unroll
  for (int p = 0; p < P; p++) column[p] = column_of(g, at.column + threadIdx.x + p * threads);
  float sum[P][R] = {};
  for (int first = 0; first < g.K; first += chunk) {
    const int count = g.K - first < chunk ? g.K - first : chunk;
    if (first) __syncthreads();  // all have read the last terms
    if (threadIdx.x < count) {
      const Walk walk(g.term, first + threadIdx.x);
      shared.term[threadIdx.x].at = pixel_of(g.term, walk);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const bool exists = at.row + r < g.M;
        shared.a[threadIdx.x].value[r] = exists ? read(&a[a_of(g.term, walk) + r * g.row_a]) : 0;
      }
    }
    __syncthreads();
    for (int k = 0; k < count; k++) {
      const Pixel term = shared.term[k].at;
      const Row<R> w = shared.a[k];
#pragma unroll
      for (int p = 0; p < P; p++) {
        if (!inside(g, column[p], term)) continue;
        const float x = read(&b[column[p].offset + term.offset]);
#pragma unroll
        for (int r = 0; r < R; r++) sum[p][r] = fmaf(w.value[r], x, sum[p][r]);
      }
    }
  }
#pragma unroll
  for (int p = 0; p < P; p++) {
    const int i = at.column + threadIdx.x + p * threads;
    if (i >= g.N) continue;
    const int64_t base = g.d + int64_t(at.group) * g.group_d + d_of(g.column, Walk(g.column, i));
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (at.row + r >= g.M) continue;
      const int64_t to = base + int64_t(at.row + r) * g.row_d;
      float y = sum[p][r];
      if (o.bias) y += read(&o.bias[at.group * g.M + at.row + r]);
      if (o.residual) y += read(&o.residual[to]);
      write(&o.d[to], o.relu && y < 0 ? 0 : y);  // a NaN stays
    }
  }
}

template <int sums>
struct WarpShared {
  float warp[warps][sums];
};

// The weight gradient: terms are pixels, columns taps.
template <class T, int R, int C>
__global__ void __launch_bounds__(threads) pixel_sums(Gemm g, Operands<T> o) {
  auto& shared = cuda::shared<WarpShared<R * C>>();
  const Share at(g, R, C);
  const T *a = o.a + g.a + at.group * g.group_a + at.row * g.row_a, *b = o.b + g.b + at.group * g.group_b;
  Pixel column[C];
#pragma unroll
  for (int c = 0; c < C; c++) column[c] = column_of(g, at.column + c);
  Walk walk(g.term, at.begin + threadIdx.x);
  const Walk step(g.term, threads);
  float sum[R * C] = {};
  for (int k = at.begin + threadIdx.x; k < at.end; k += threads) {
    const Pixel term = pixel_of(g.term, walk);
    const int offset = a_of(g.term, walk);
    float dy[R];
#pragma unroll
    for (int r = 0; r < R; r++) dy[r] = at.row + r < g.M ? read(&a[offset + r * g.row_a]) : 0;
#pragma unroll
    for (int c = 0; c < C; c++) {
      if (!inside(g, column[c], term)) continue;
      const float x = read(&b[column[c].offset + term.offset]);
#pragma unroll
      for (int r = 0; r < R; r++) sum[r * C + c] = fmaf(dy[r], x, sum[r * C + c]);
    }
    walk.advance(g.term, step);
  }
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < R * C; i++) {
    for (int delta = 16; delta > 0; delta /= 2) sum[i] += __shfl_down_sync(~0u, sum[i], delta);
    if (lane == 0) shared.warp[threadIdx.x / 32][i] = sum[i];
  }
  __syncthreads();
  const int r = threadIdx.x / C, c = threadIdx.x % C;
  if (r >= R || at.row + r >= g.M || at.column + c >= g.N) return;
  float all = 0;
  for (int w = 0; w < warps; w++) all += shared.warp[w][threadIdx.x];
  o.parts[int64_t(at.split) * g.split_d + int64_t(at.group) * g.group_d + int64_t(at.row + r) * g.row_d +
          d_of(g.column, Walk(g.column, at.column + c))] = all;
}

// ------------------------------------------------------------------------------------------------------------ launchers

template <int n>
using Int = std::integral_constant<int, n>;

// One row of one group, or eight: their sums stay in registers, and an eighth row costs one of two loads of four weights.
template <class T>
int launch_sums(const Place& at, const Gemm& g, const Operands<T>& o) {
  if (g.N == 0) return 0;
  const auto run = [&](auto rows, auto columns) {
    constexpr int R = decltype(rows)::value, P = decltype(columns)::value;
    const dim3 grid = {unsigned(divide_up(g.N, threads * P)), unsigned(divide_up(g.M, R)), unsigned(g.groups)};
    return launch(sums<T, R, P>, grid, dim3{threads, 1, 1}, sizeof(SumShared<R>), at.stream, g, o);
  };
  return g.M == 1 ? run(Int<1>(), Int<4>()) : run(Int<direct_rows>(), Int<2>());
}

template <class T>
int launch_pixel_sums(const Place& at, const Gemm& g, const Operands<T>& o) {
  const auto run = [&](auto rows, auto columns) {
    constexpr int R = decltype(rows)::value, C = decltype(columns)::value;
    const dim3 grid = {unsigned(divide_up(g.N, C)), unsigned(divide_up(g.M, R)), unsigned(g.groups * g.splits)};
    return launch(pixel_sums<T, R, C>, grid, dim3{threads, 1, 1}, sizeof(WarpShared<R * C>), at.stream, g, o);
  };
  return g.M == 1 ? run(Int<1>(), Int<direct_depthwise_taps>()) : run(Int<direct_rows>(), Int<direct_taps>());
}

}  // namespace

int pyconv_cuda_conv2d_direct_fwd(const Place& at, const Conv2dShape& s, const void* x, const void* w,
                                  const Epilogue& e, void* y) {
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    const Operands<T> o = {as<T>(w), as<T>(x), as<T>(e.bias), as<T>(e.residual), static_cast<T*>(y), nullptr, e.relu};
    return launch_sums(at, gemm_fwd(s), o);
  });
}

int pyconv_cuda_conv2d_direct_bwd_input(const Place& at, const Conv2dShape& s, const void* dy, const void* w,
                                        void* dx) {
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    const Operands<T> o = {as<T>(w), as<T>(dy), nullptr, nullptr, static_cast<T*>(dx), nullptr, false};
    return launch_phases(s, [&](int64_t rh, int64_t rw) { return launch_sums(at, gemm_bwd_input(s, rh, rw), o); });
  });
}

int pyconv_cuda_conv2d_direct_bwd_weight(const Place& at, const Conv2dShape& s, const void* dy, const void* x,
                                         void* dw) {
  Gemm g = gemm_bwd_weight(s);
  g.splits = int(direct_splits_of(s));
  g.split_d = int(weight_count(s));
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    float* parts = static_cast<float*>(at.workspace);
    const Operands<T> o = {as<T>(dy), as<T>(x), nullptr, nullptr, nullptr, parts, false};
    const int error = launch_pixel_sums(at, g, o);
    return error ? error : launch_add_parts(g, parts, static_cast<T*>(dw), at.stream);
  });
}

}  // namespace pyconv::cuda

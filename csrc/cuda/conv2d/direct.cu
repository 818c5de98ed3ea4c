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
#include "cuda/conv2d/few_channels.h"

namespace pyconv::cuda {
namespace {

using namespace conv2d;

constexpr int threads = 128, warps = threads / 32, chunk = 128;

// Also whether the rows of A, and of D, lie in memory so that 16 bytes of them are moved at once.
template <class T>
struct Operands : FewOperands<T> {
  bool a_rows_at_once, d_rows_at_once;
};

// f(first row, Pack of rows) for R rows, 16 bytes of each.
template <int R, class T, class F>
PYCONV_DEVICE void for_packs_of_rows(const F& f) {
  constexpr int V = R < 16 / int(sizeof(T)) ? R : 16 / sizeof(T);
#pragma unroll
  for (int r = 0; r < R; r += V) f(r, std::integral_constant<int, V>());
}

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

// R rows of `column`'s sums, where at least one of them exists.
template <class T, int R>
PYCONV_DEVICE void store(const Gemm& g, const Operands<T>& o, const Share& at, int column, const float (&sum)[R]) {
  const int64_t to =
      g.d + int64_t(at.group) * g.group_d + int64_t(at.row) * g.row_d + d_of(g.column, Walk(g.column, column));
  const int channel = at.group * g.M + at.row;
  const auto finished = [&](float y, int r, float residual) {
    if (o.bias) y += read(&o.bias[channel + r]);
    y += residual;
    return o.clip(y);
  };
  if (o.d_rows_at_once) {
    for_packs_of_rows<R, T>([&](int first, auto count) {
      constexpr int V = decltype(count)::value;
      Pack<T, V> out, residual;
      if (o.residual) residual = read_pack<V>(&o.residual[to + first]);
#pragma unroll
      for (int v = 0; v < V; v++) {
        write(&out.v[v], finished(sum[first + v], first + v, o.residual ? read(&residual.v[v]) : 0));
      }
      write_pack(&o.d[to + first], out);
    });
    return;
  }
#pragma unroll
  for (int r = 0; r < R; r++) {
    if (at.row + r >= g.M) continue;
    const int64_t here = to + int64_t(r) * g.row_d;
    write(&o.d[here], finished(sum[r], r, o.residual ? read(&o.residual[here]) : 0));
  }
}

// R rows, P columns a thread: one row is a depthwise convolution's, whose columns then share its weights. V terms are
// neighbours in B's memory.
template <class T, int R, int P, int V>
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
    for (int k = 0; k < count; k += V) {
      const Pixel term = shared.term[k].at;
      bool exists[P];
      Pack<T, V> x[P];
#pragma unroll
      for (int p = 0; p < P; p++) {
        exists[p] = inside(g, column[p], term);
        if (exists[p]) x[p] = read_pack<V>(&b[column[p].offset + term.offset]);
      }
#pragma unroll
      for (int v = 0; v < V; v++) {
        const Row<R> w = shared.a[k + v];
#pragma unroll
        for (int p = 0; p < P; p++) {
          if (!exists[p]) continue;
          const float value = read(&x[p].v[v]);
#pragma unroll
          for (int r = 0; r < R; r++) sum[p][r] = fmaf(w.value[r], value, sum[p][r]);
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < P; p++) {
    const int i = at.column + threadIdx.x + p * threads;
    if (i < g.N) store<T, R>(g, o, at, i, sum[p]);
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
    if (o.a_rows_at_once) {
      for_packs_of_rows<R, T>([&](int first, auto count) {
        constexpr int V = decltype(count)::value;
        const auto rows = read_pack<V>(&a[offset + first]);
#pragma unroll
        for (int v = 0; v < V; v++) dy[first + v] = read(&rows.v[v]);
      });
    } else {
#pragma unroll
      for (int r = 0; r < R; r++) dy[r] = at.row + r < g.M ? read(&a[offset + r * g.row_a]) : 0;
    }
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

// Whether rows are neighbours in memory, and whole tiles of them all there is.
bool rows_at_once(const Gemm& g, int row_step, const void* operand, const void* residual = nullptr) {
  return row_step == 1 && g.M % direct_rows == 0 && aligned({operand, residual});
}

// One row of one group, or eight: their sums stay in registers, and an eighth row costs one of two loads of four weights.
template <class T>
int launch_sums(const Place& at, const Gemm& g, const FewOperands<T>& few) {
  if (g.N == 0) return 0;
  const Operands<T> o = {few, false, rows_at_once(g, g.row_d, few.d, few.residual)};
  const auto run = [&](auto rows, auto columns, auto terms) {
    constexpr int R = decltype(rows)::value, P = decltype(columns)::value, V = decltype(terms)::value;
    const dim3 grid = {unsigned(divide_up(g.N, threads * P)), unsigned(divide_up(g.M, R)), unsigned(g.groups)};
    return launch(sums<T, R, P, V>, grid, dim3{threads, 1, 1}, sizeof(SumShared<R>), at.stream, g, o);
  };
  constexpr int V = 16 / sizeof(T);
  const bool terms_at_once = g.b_by_term && g.term[0].radix % V == 0 && aligned({o.b});
  if (g.M == 1) return run(Int<1>(), Int<4>(), Int<1>());
  return terms_at_once ? run(Int<direct_rows>(), Int<2>(), Int<V>()) : run(Int<direct_rows>(), Int<2>(), Int<1>());
}

template <class T>
int launch_pixel_sums(const Place& at, const Gemm& g, const FewOperands<T>& few) {
  const Operands<T> o = {few, rows_at_once(g, g.row_a, few.a), false};
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
  return few_fwd(s, x, w, e, y, [&](const Gemm& g, const auto& o) { return launch_sums(at, g, o); });
}

int pyconv_cuda_conv2d_direct_bwd_input(const Place& at, const Conv2dShape& s, const void* dy, const void* w,
                                        void* dx) {
  return few_bwd_input(s, dy, w, dx, [&](const Gemm& g, const auto& o) { return launch_sums(at, g, o); });
}

int pyconv_cuda_conv2d_direct_bwd_weight(const Place& at, const Conv2dShape& s, const void* dy, const void* x,
                                         void* dw) {
  return few_bwd_weight(at, s, direct_splits_of(s), dy, x, dw,
                        [&](const Gemm& g, const auto& o) { return launch_pixel_sums(at, g, o); });
}

}  // namespace pyconv::cuda

// conv2d on CUDA / tensor cores: bfloat16, float16, and float32 rounded to TF32 where that is allowed.
// Computes  D[row,column] = sum over terms of A[row,term] * B[term,column]; which tensors those are: cuda/conv2d/gemm.h
// Shapes    as implicit_gemm.cu, A and B in channels_last: NCHW is copied first (turn.h), and D written as it lies
// Tiling    block: 64 rows x 128 columns, 32 terms of halves or 16 of floats at a time, three of those in shared memory,
//           filled by cp.async; warp: 32 x 64 sums as 2 x 8 products of 16 x 8; chunks of 16 bytes are swizzled, so that
//           neither the copies nor what the products read meet a bank twice
// Cost      2*M*N*K flops; 1/21 values read per multiply-add of a block; sums in float, rounded once. TF32: 10 bits of
//           mantissa, each operand rounded to nearest: 24 conversions beside 16 products of a warp, which take 4 times as long
// Limits    channels per group multiples of 8, of 4 in float32, in and out; fewer than 2^31 values per tensor; a pointer
//           that is not aligned to 16 bytes goes to the reference
// Source    PTX ISA, mma.m16n8k16, mma.m16n8k8 and ldmatrix; Chetlur et al., cuDNN, arXiv:1410.0759, section 3
#include "cuda/conv2d/chunks.h"
#include "cuda/conv2d/turn.h"
#include "cuda/conv2d/walk.h"

#include "cuda/clip.h"
#include "cuda/library.h"
#include "cuda/operands.h"

namespace pyconv::cuda {
namespace {

using namespace conv2d;

constexpr int BM = 64, BN = 128, stages = 3, threads = chunk_threads;
constexpr int warp_rows = 32, warp_columns = 64;

// Which way the operands lie: by_term where neighbouring terms are neighbours in memory.
template <class T_, bool a_by_term_, bool b_by_term_, bool parts_>
struct Kind {
  using T = T_;
  static constexpr int BK = chunk_terms<T>;
  static constexpr bool a_by_term = a_by_term_, b_by_term = b_by_term_;
  static constexpr bool parts = parts_;  // whether D is floats, to be added up, else T
  union Shared {
    struct {
      TileOf<T, a_by_term, BM> a[stages];
      TileOf<T, b_by_term, BN> b[stages];
    } in;
    float by_column[BN][BM + 4], by_row[BM][BN + 8];  // sums; written by fragments and read without bank conflicts
  };
};

template <class T>
struct Operands {
  const T *a, *b;
  const T *bias, *residual;  // of fwd, or null
  T* d;
  float* parts;
  Clip<float> clip;
};

// The thread's copies of one step.
template <class K>
struct Loader {
  using T = typename K::T;
  using CopiesA = Copies<T, K::a_by_term, BM>;
  using CopiesB = Copies<T, K::b_by_term, BN>;
  const Gemm& g;
  typename K::Shared& shared;
  const T *a, *b;
  CopiesA of_a;
  CopiesB of_b;
  int k, end, rows;
  Walk a_walk, b_walk, step;
  Pixel column[CopiesB::count];

  PYCONV_DEVICE Loader(const Gemm& g, typename K::Shared& shared, const Operands<T>& o, const Share& at)
      : g(g),
        shared(shared),
        a(o.a + g.a + at.group * g.group_a + at.row * g.row_a),
        b(o.b + g.b + at.group * g.group_b),
        k(at.begin),
        end(at.end),
        rows(g.M - at.row),
        a_walk(g.term, at.begin + of_a.term()),
        b_walk(g.term, at.begin + of_b.term()),
        step(g.term, K::BK) {
#pragma unroll
    for (int i = 0; i < CopiesB::count; i++) column[i] = column_of(g, at.column + of_b.row(i));
  }

  PYCONV_DEVICE void load(int stage) {
    const int a_offset = a_of(g.term, a_walk);
    const bool a_exists = k + of_a.term() < end, b_exists = k + of_b.term() < end;
#pragma unroll
    for (int i = 0; i < CopiesA::count; i++) {
      const int row = of_a.row(i);
      copy_async<16>(of_a.target(shared.in.a[stage], i), a + a_offset + row * g.row_a, a_exists && row < rows);
    }
    const Pixel term = pixel_of(g.term, b_walk);
#pragma unroll
    for (int i = 0; i < CopiesB::count; i++) {
      copy_async<16>(of_b.target(shared.in.b[stage], i), b + column[i].offset + term.offset,
                     b_exists && inside(g, column[i], term));
    }
    a_walk.advance(g.term, step);
    b_walk.advance(g.term, step);
    k += K::BK;
  }
};

// sum += the terms of a stage, for the warp's 32 rows from `row` on and its 64 columns from `column` on.
template <class K>
PYCONV_DEVICE void multiply(typename K::Shared& shared, int stage, int row, int column, float (&sum)[2][8][4]) {
  using T = typename K::T;
#pragma unroll
  for (int k = 0; k < K::BK; k += 2 * wide<T>) {
    uint32_t a[2][4], b[8][2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      load_fragments<T, K::a_by_term>(a[i], shared.in.a[stage], row + 16 * i, k, true);
    }
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t pair[4];
      load_fragments<T, K::b_by_term>(pair, shared.in.b[stage], column + 8 * j, k, false);
      b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int j = 0; j < 8; j++) multiply_add(T(), sum[i][j], a[i], b[j]);
    }
  }
}

// body(row, column, sums) for each two neighbouring columns of the thread's sums, as mma hands them out.
template <class Body>
PYCONV_DEVICE void for_pairs(int row, int column, const float (&sum)[2][8][4], const Body& body) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const Pack<float, 2> pair = {{sum[i][j][2 * half], sum[i][j][2 * half + 1]}};
        body(row + 16 * i + lane / 4 + 8 * half, column + 8 * j + lane % 4 * 2, pair);
      }
    }
  }
}

// Sums cross the block through shared memory. Where channels are neighbours, a thread stores a chunk of a pixel's.
template <class K>
PYCONV_DEVICE void store_channels(const Gemm& g, const Operands<typename K::T>& o, typename K::Shared& shared,
                                  const Share& at) {
  using T = typename K::T;
  constexpr int V = wide<T>;
  for (int i = threadIdx.x; i < BN * BM / V; i += threads) {
    const int column = i / (BM / V), row = i % (BM / V) * V;
    if (at.column + column >= g.N || at.row + row >= g.M) continue;
    const int64_t to =
        g.d + int64_t(at.group) * g.group_d + at.row + row + d_of(g.column, Walk(g.column, at.column + column));
    const int channel = at.group * g.M + at.row + row;
    Pack<T, V> out, bias, residual;
    if (o.bias) bias = read_pack<V>(&o.bias[channel]);
    if (o.residual) residual = read_pack<V>(&o.residual[to]);
#pragma unroll
    for (int v = 0; v < V; v += 4) {
      const float4 four = read4(&shared.by_column[column][row + v]);
      const float sums[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int u = v; u < v + 4; u++) {
        float sum = sums[u - v];
        if (o.bias) sum += read(&bias.v[u]);
        if (o.residual) sum += read(&residual.v[u]);
        write(&out.v[u], o.clip(sum));
      }
    }
    write_pack(&o.d[to], out);
  }
}

// Where pixels are neighbours, a thread has one pixel, its neighbours the next, and goes through the channels.
template <class K>
PYCONV_DEVICE void store_pixels(const Gemm& g, const Operands<typename K::T>& o, typename K::Shared& shared,
                                const Share& at) {
  static_assert(BN == threads, "a column for each thread");
  const int column = at.column + threadIdx.x, rows = g.M - at.row < BM ? g.M - at.row : BM;
  if (column >= g.N) return;
  const int64_t base = g.d + int64_t(at.group) * g.group_d + d_of(g.column, Walk(g.column, column));
  for (int row = 0; row < rows; row++) {
    const int64_t to = base + int64_t(at.row + row) * g.row_d;
    float sum = shared.by_row[row][threadIdx.x];
    if (o.bias) sum += read(&o.bias[at.group * g.M + at.row + row]);
    if (o.residual) sum += read(&o.residual[to]);
    write(&o.d[to], o.clip(sum));
  }
}

template <class K>
__global__ void __launch_bounds__(threads, 3) gemm(Gemm g, Operands<typename K::T> o) {
  auto& shared = cuda::shared<typename K::Shared>();
  const Share at(g, BM, BN);
  const int steps = at.steps(K::BK), warp = threadIdx.x / 32;
  const int row = warp % (BM / warp_rows) * warp_rows, column = warp / (BM / warp_rows) * warp_columns;
  Loader<K> loader(g, shared, o, at);
#pragma unroll
  for (int t = 0; t < stages - 1; t++) {
    if (t < steps) loader.load(t);
    copy_async_commit();
  }
  float sum[2][8][4] = {};
  for (int t = 0; t < steps; t++) {
    copy_async_wait<stages - 2>();
    __syncthreads();  // the step's values are there for all, and the oldest stage has been read by all
    if (t + stages - 1 < steps) loader.load((t + stages - 1) % stages);
    copy_async_commit();
    multiply<K>(shared, t % stages, row, column, sum);
  }
  if constexpr (K::parts) {
    float* d = o.parts + int64_t(at.group) * g.group_d + int64_t(at.split) * g.split_d;
    for_pairs(at.row + row, at.column + column, sum, [&](int m, int n, const Pack<float, 2>& pair) {
      if (m < g.M && n < g.N) write_pack(&d[int64_t(m) * g.row_d + d_of(g.column, Walk(g.column, n))], pair);
    });
  } else {
    __syncthreads();  // all have read the last stage
    if (g.row_d == 1) {
      for_pairs(row, column, sum, [&](int m, int n, const Pack<float, 2>& pair) {
        shared.by_column[n][m] = pair.v[0];
        shared.by_column[n + 1][m] = pair.v[1];
      });
      __syncthreads();
      store_channels<K>(g, o, shared, at);
    } else {
      for_pairs(row, column, sum,
                [&](int m, int n, const Pack<float, 2>& pair) { write_pack(&shared.by_row[m][n], pair); });
      __syncthreads();
      store_pixels<K>(g, o, shared, at);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ launchers

template <class K>
int launch_gemm(const Place& at, const Gemm& g, const Operands<typename K::T>& o) {
  if (g.N == 0) return 0;
  const dim3 grid = {unsigned(divide_up(g.N, BN)), unsigned(divide_up(g.M, BM)), unsigned(g.groups * g.splits)};
  return launch(gemm<K>, grid, dim3{threads, 1, 1}, sizeof(typename K::Shared), at.stream, g, o);
}

Conv2dShape channels_last(Conv2dShape s) {
  s.layout = Layout::nhwc;
  return s;
}

}  // namespace

int pyconv_cuda_conv2d_tensor_cores_fwd(const Place& at, const Conv2dShape& s, const void* x, const void* w,
                                        const Epilogue& e, void* y) {
  if (!aligned({x, w, y, e.bias, e.residual})) return pyconv_cuda_conv2d_reference_fwd(at, s, x, w, e, y);
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    Turner turned(at, s, 0);
    const T* b = turned.template take<T>(x, s.N, s.IC, s.IH * s.IW);
    const T* a = turned.template take<T>(w, s.OC, s.ic_per_group(), s.KH * s.KW);
    if (turned.error) return turned.error;
    const Gemm g = with_d_of(gemm_fwd(channels_last(s)), gemm_fwd(s));
    return launch_gemm<Kind<T, true, true, false>>(
        at, g, {a, b, as<T>(e.bias), as<T>(e.residual), static_cast<T*>(y), nullptr, Clip<float>(e)});
  });
}

int pyconv_cuda_conv2d_tensor_cores_bwd_input(const Place& at, const Conv2dShape& s, const void* dy, const void* w,
                                              void* dx) {
  if (!aligned({dy, w, dx})) return pyconv_cuda_conv2d_reference_bwd_input(at, s, dy, w, dx);
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    Turner turned(at, s, 0);
    const T* b = turned.template take<T>(dy, s.N, s.OC, s.OH * s.OW);
    const T* a = turned.template take<T>(w, s.OC, s.ic_per_group(), s.KH * s.KW);
    if (turned.error) return turned.error;
    const Operands<T> o = {a, b, nullptr, nullptr, static_cast<T*>(dx), nullptr, {}};
    return launch_phases(s, [&](int64_t rh, int64_t rw) {
      const Gemm g = with_d_of(gemm_bwd_input(channels_last(s), rh, rw), gemm_bwd_input(s, rh, rw));
      return launch_gemm<Kind<T, false, true, false>>(at, g, o);
    });
  });
}

int pyconv_cuda_conv2d_tensor_cores_bwd_weight(const Place& at, const Conv2dShape& s, const void* dy, const void* x,
                                               void* dw) {
  if (!aligned({dy, x, dw})) return pyconv_cuda_conv2d_reference_bwd_weight(at, s, dy, x, dw);
  Gemm g = gemm_bwd_weight(channels_last(s));
  g.splits = int(splits_of(s));
  g.split_d = int(weight_count(s));
  return with_float_sums(s.dtype, [&](auto type) {
    using T = decltype(type);
    float* parts = static_cast<float*>(at.workspace);
    Turner turned(at, s, parts_bytes(s, g.splits));
    const T* a = turned.template take<T>(dy, s.N, s.OC, s.OH * s.OW);
    const T* b = turned.template take<T>(x, s.N, s.IC, s.IH * s.IW);
    int error = turned.error;
    if (!error) error = launch_gemm<Kind<T, false, false, true>>(at, g, {a, b, nullptr, nullptr, nullptr, parts, {}});
    if (error) return error;
    const bool turn_back = s.layout == Layout::nchw;  // the sums are in channels_last
    return launch_add_parts(g, parts, static_cast<T*>(dw), at.stream, turn_back ? s.KH * s.KW : 1,
                            turn_back ? s.ic_per_group() : 1);
  });
}

}  // namespace pyconv::cuda

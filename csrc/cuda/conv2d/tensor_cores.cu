// conv2d on CUDA / tensor cores, bfloat16 and float16 in channels_last.
// Computes  D[row,column] = sum over terms of A[row,term] * B[term,column]; which tensors those are: cuda/conv2d/gemm.h
// Shapes    as implicit_gemm.cu; 8 neighbouring channels are one chunk of 16 bytes, moved and stored as one
// Tiling    block: 64 rows x 128 columns, 32 terms at a time, three of those in shared memory, filled by cp.async;
//           warp: 32 x 64 sums as 2 x 8 products of 16 x 8; chunks are swizzled, so that neither the copies nor ldmatrix
//           meet a bank twice
// Cost      2*M*N*K flops; 1/21 values read per multiply-add of a block; sums in float, rounded once
// Limits    channels per group multiples of 8, in and out; fewer than 2^31 values per tensor; a pointer that is not
//           aligned to 16 bytes goes to the reference
// Source    PTX ISA, mma.m16n8k16 and ldmatrix; Chetlur et al., cuDNN, arXiv:1410.0759, section 3
#include "cuda/conv2d/walk.h"

#include "cuda/library.h"

namespace pyconv::cuda {
namespace {

using namespace conv2d;

constexpr int BM = 64, BN = 128, BK = 32, stages = 3, threads = 128;
constexpr int warp_rows = 32, warp_columns = 64;
static_assert(threads == 4 * BK, "four threads load a row of terms, or a term's rows");

struct alignas(16) Chunk {
  uint16_t value[8];
};

// A tile in shared memory: `lines` lines of `chunks` chunks. A line is a row, holding its terms, or a term, holding rows.
template <int lines, int chunks>
struct Lines {
  Chunk chunk[lines][chunks];

  // Two short lines fill the 128 bytes of all banks, else one. What ldmatrix reads, one chunk of each of eight lines, and
  // what eight threads copy, four chunks of each of two, lie in different banks.
  PYCONV_DEVICE Chunk* at(int line, int c) {
    if (chunks == 4) return &chunk[line][c ^ (line >> 1 & 3)];
    return &chunk[line][c ^ ((line & 1) << 2 | (line >> 1 & 3))];
  }
};

template <bool by_term, int size>
using TileOf = std::conditional_t<by_term, Lines<size, BK / 8>, Lines<BK, size / 8>>;

// Which way the operands lie: by_term where neighbouring terms are neighbours in memory.
template <class T_, bool a_by_term_, bool b_by_term_, bool parts_>
struct Kind {
  using T = T_;
  static constexpr bool a_by_term = a_by_term_, b_by_term = b_by_term_;
  static constexpr bool parts = parts_;  // whether D is floats, to be added up, else T
  union Shared {
    struct {
      TileOf<a_by_term, BM> a[stages];
      TileOf<b_by_term, BN> b[stages];
    } in;
    float out[BN][BM + 4];
  };
};

template <class T>
struct Operands {
  const T *a, *b;
  const T *bias, *residual;  // of fwd, or null
  T* d;
  float* parts;
  bool relu;
};

// The thread's copies of one step. By term: chunk `quarter` of every 32nd line; else every 4th chunk of line `line`.
template <class K>
struct Loader {
  using T = typename K::T;
  static constexpr int a_loads = BM / 32, b_loads = BN / 32;
  const Gemm& g;
  typename K::Shared& shared;
  const T *a, *b;
  int quarter, line, k, end, rows;
  Walk a_walk, b_walk, step;
  Pixel column[b_loads];

  // The first term this thread loads of an operand, in the step.
  PYCONV_DEVICE int term(bool by_term) const { return by_term ? quarter * 8 : line; }
  // Row or column of the tile at which copy i starts.
  PYCONV_DEVICE int start(bool by_term, int i) const { return by_term ? line + 32 * i : (quarter + 4 * i) * 8; }

  PYCONV_DEVICE Loader(const Gemm& g, typename K::Shared& shared, const Operands<T>& o, const Share& at)
      : g(g),
        shared(shared),
        a(o.a + g.a + at.group * g.group_a + at.row * g.row_a),
        b(o.b + g.b + at.group * g.group_b),
        quarter(threadIdx.x % 4),
        line(threadIdx.x / 4),
        k(at.begin),
        end(at.end),
        rows(g.M - at.row),
        a_walk(g.term, at.begin + term(K::a_by_term)),
        b_walk(g.term, at.begin + term(K::b_by_term)),
        step(g.term, BK) {
#pragma unroll
    for (int i = 0; i < b_loads; i++) column[i] = column_of(g, at.column + start(K::b_by_term, i));
  }

  PYCONV_DEVICE void load(int stage) {
    const int a_offset = a_of(g.term, a_walk);
    const bool a_exists = k + term(K::a_by_term) < end, b_exists = k + term(K::b_by_term) < end;
#pragma unroll
    for (int i = 0; i < a_loads; i++) {
      const int row = start(K::a_by_term, i);
      Chunk* to = K::a_by_term ? shared.in.a[stage].at(row, quarter) : shared.in.a[stage].at(line, quarter + 4 * i);
      copy_async<16>(to, a + a_offset + row * g.row_a, a_exists && row < rows);
    }
    const Pixel term = pixel_of(g.term, b_walk);
#pragma unroll
    for (int i = 0; i < b_loads; i++) {
      Chunk* to =
          K::b_by_term ? shared.in.b[stage].at(line + 32 * i, quarter) : shared.in.b[stage].at(line, quarter + 4 * i);
      copy_async<16>(to, b + column[i].offset + term.offset, b_exists && inside(g, column[i], term));
    }
    a_walk.advance(g.term, step);
    b_walk.advance(g.term, step);
    k += BK;
  }
};

// sum += the 32 terms of a stage, for the warp's 32 rows from `row` on and its 64 columns from `column` on.
template <class K>
PYCONV_DEVICE void multiply(typename K::Shared& shared, int stage, int row, int column, float (&sum)[2][8][4]) {
  // ldmatrix reads four matrices of 8 lines; lane l names line l % 8 of matrix l / 8.
  const int lane = threadIdx.x % 32, matrix = lane / 8, low = matrix & 1, high = matrix >> 1, line = lane % 8;
  auto& tile_a = shared.in.a[stage];
  auto& tile_b = shared.in.b[stage];
#pragma unroll
  for (int k = 0; k < BK; k += 16) {
    uint32_t a[2][4], b[8][2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int m = row + 16 * i;
      load_matrices<!K::a_by_term>(a[i], K::a_by_term ? tile_a.at(m + 8 * low + line, k / 8 + high)
                                                      : tile_a.at(k + 8 * high + line, m / 8 + low));
    }
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const int n = column + 8 * j;
      uint32_t pair[4];
      load_matrices<!K::b_by_term>(pair, K::b_by_term ? tile_b.at(n + 8 * high + line, k / 8 + low)
                                                      : tile_b.at(k + 8 * low + line, n / 8 + high));
      b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int j = 0; j < 8; j++) multiply_add(typename K::T(), sum[i][j], a[i], b[j]);
    }
  }
}

// body(row, column, sums) for each two neighbouring columns of the thread's sums, as mma.m16n8k16 hands them out.
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

// Sums cross the block through shared memory, so that a thread stores 8 channels of a pixel at once.
template <class K>
PYCONV_DEVICE void store(const Gemm& g, const Operands<typename K::T>& o, typename K::Shared& shared, const Share& at) {
  using T = typename K::T;
  for (int i = threadIdx.x; i < BN * BM / 8; i += threads) {
    const int column = i / (BM / 8), row = i % (BM / 8) * 8;
    if (at.column + column >= g.N || at.row + row >= g.M) continue;
    const int64_t to =
        g.d + int64_t(at.group) * g.group_d + at.row + row + d_of(g.column, Walk(g.column, at.column + column));
    const int channel = at.group * g.M + at.row + row;
    Pack<T, 8> out, bias, residual;
    if (o.bias) bias = read_pack<8>(&o.bias[channel]);
    if (o.residual) residual = read_pack<8>(&o.residual[to]);
    const float4 low = read4(&shared.out[column][row]), high = read4(&shared.out[column][row + 4]);
    const float sums[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int v = 0; v < 8; v++) {
      float sum = sums[v];
      if (o.bias) sum += read(&bias.v[v]);
      if (o.residual) sum += read(&residual.v[v]);
      write(&out.v[v], o.relu && sum < 0 ? 0 : sum);  // a NaN stays
    }
    write_pack(&o.d[to], out);
  }
}

template <class K>
__global__ void __launch_bounds__(threads) gemm(Gemm g, Operands<typename K::T> o) {
  auto& shared = cuda::shared<typename K::Shared>();
  const Share at(g, BM, BN);
  const int steps = at.steps(BK), warp = threadIdx.x / 32;
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
    for_pairs(row, column, sum, [&](int m, int n, const Pack<float, 2>& pair) {
      shared.out[n][m] = pair.v[0];
      shared.out[n + 1][m] = pair.v[1];
    });
    __syncthreads();
    store<K>(g, o, shared, at);
  }
}

// ------------------------------------------------------------------------------------------------------------ launchers

bool aligned(std::initializer_list<const void*> operands) {
  for (const void* p : operands) {
    if (reinterpret_cast<uintptr_t>(p) % 16) return false;
  }
  return true;
}

template <class K>
int launch_gemm(const Place& at, const Gemm& g, const Operands<typename K::T>& o) {
  if (g.N == 0) return 0;
  const dim3 grid = {unsigned(divide_up(g.N, BN)), unsigned(divide_up(g.M, BM)), unsigned(g.groups * g.splits)};
  return launch(gemm<K>, grid, dim3{threads, 1, 1}, sizeof(typename K::Shared), at.stream, g, o);
}

template <class F>
int with_half(DType dtype, const F& f) {
  return dtype == DType::bf16 ? f(bf16()) : f(f16());
}

}  // namespace

int pyconv_cuda_conv2d_tensor_cores_fwd(const Place& at, const Conv2dShape& s, const void* x, const void* w,
                                        const Epilogue& e, void* y) {
  if (!aligned({x, w, y, e.bias, e.residual})) return pyconv_cuda_conv2d_reference_fwd(at, s, x, w, e, y);
  return with_half(s.dtype, [&](auto type) {
    using T = decltype(type);
    const auto of = [](const void* p) { return static_cast<const T*>(p); };
    return launch_gemm<Kind<T, true, true, false>>(
        at, gemm_fwd(s), {of(w), of(x), of(e.bias), of(e.residual), static_cast<T*>(y), nullptr, e.relu});
  });
}

int pyconv_cuda_conv2d_tensor_cores_bwd_input(const Place& at, const Conv2dShape& s, const void* dy, const void* w,
                                              void* dx) {
  if (!aligned({dy, w, dx})) return pyconv_cuda_conv2d_reference_bwd_input(at, s, dy, w, dx);
  return with_half(s.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t phase = 0; phase < s.SH * s.SW; phase++) {
      const int error = launch_gemm<Kind<T, false, true, false>>(
          at, gemm_bwd_input(s, phase / s.SW, phase % s.SW),
          {static_cast<const T*>(w), static_cast<const T*>(dy), nullptr, nullptr, static_cast<T*>(dx), nullptr, false});
      if (error) return error;
    }
    return 0;
  });
}

int pyconv_cuda_conv2d_tensor_cores_bwd_weight(const Place& at, const Conv2dShape& s, const void* dy, const void* x,
                                               void* dw) {
  if (!aligned({dy, x, dw})) return pyconv_cuda_conv2d_reference_bwd_weight(at, s, dy, x, dw);
  Gemm g = gemm_bwd_weight(s);
  g.splits = int(splits_of(s));
  g.split_d = int(weight_count(s));
  return with_half(s.dtype, [&](auto type) {
    using T = decltype(type);
    float* parts = static_cast<float*>(at.workspace);
    const int error = launch_gemm<Kind<T, false, false, true>>(
        at, g, {static_cast<const T*>(dy), static_cast<const T*>(x), nullptr, nullptr, nullptr, parts, false});
    return error ? error : launch_add_parts(g, parts, static_cast<T*>(dw), at.stream);
  });
}

}  // namespace pyconv::cuda

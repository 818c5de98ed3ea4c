// conv2d on CUDA / implicit GEMM, float32 on the ordinary cores.
// Computes  D[row,column] = sum over terms of A[row,term] * B[term,column]; which tensors those are: cuda/conv2d/gemm.h
// Shapes    A, B and D are never built: every element is found by adding a row's, a column's and a term's offset
// Tiling    block: BM rows x BN columns, BK terms at a time, `stages` of them in shared memory, filled by cp.async;
//           thread: 8 x 8 sums, as two runs of 4 rows by two runs of 4 columns, so that a warp reads shared memory in
//           float4s without bank conflicts
// Cost      2*M*N*K flops; a tile of 128 x 128 reads 1/64 values per FMA; a thread moves 8 values and finds their addresses
//           for every 512 FMAs of its own; no division in the main loop
// Limits    float32, fewer than 2^31 values per tensor
// Source    Chetlur et al., cuDNN, arXiv:1410.0759, section 3
#include "cuda/conv2d/gemm.h"

#include "cuda/library.h"
#include "cuda/vocabulary.h"

namespace pyconv::cuda {
namespace {

using conv2d::Digit;
using conv2d::Gemm;

template <int BM_, int BN_>
struct Tile {
  static constexpr int BM = BM_, BN = BN_, BK = 8, stages = 3;
  static constexpr int threads = BM / 8 * (BN / 8);
  static constexpr int lanes = threads / BK;  // of a step's terms, each is loaded by so many threads
  static constexpr int a_loads = BM / lanes, b_loads = BN / lanes;
  static_assert(threads % BK == 0 && BM % lanes == 0 && BN % lanes == 0, "every thread loads as much as any other");
  // Rows 4 floats apart from a multiple of the 32 banks: eight terms of four rows stored by a warp meet no bank twice.
  struct Shared {
    alignas(16) float a[stages][BK][BM + 4], b[stages][BK][BN + 4];
  };
};

// A term as its digits, which advance by BK without division.
struct Walk {
  int digit[3];

  PYCONV_DEVICE Walk(const Digit (&term)[3], int k)
      : digit{k % term[0].radix, k / term[0].radix % term[1].radix, k / term[0].radix / term[1].radix} {}

  PYCONV_DEVICE void advance(const Digit (&term)[3], const Walk& step) {
    digit[0] += step.digit[0];
    digit[1] += step.digit[1];
    digit[2] += step.digit[2];
    if (digit[0] >= term[0].radix) {
      digit[0] -= term[0].radix;
      digit[1]++;
    }
    if (digit[1] >= term[1].radix) {
      digit[1] -= term[1].radix;
      digit[2]++;
    }
  }
};

PYCONV_DEVICE int a_of(const Digit (&d)[3], const Walk& k) {
  return k.digit[0] * d[0].a + k.digit[1] * d[1].a + k.digit[2] * d[2].a;
}

// B's element of one column, before a term moves it.
struct Pixel {
  int offset, h, w;
};

PYCONV_DEVICE Pixel pixel_of(const Digit (&d)[3], const Walk& k) {
  return {k.digit[0] * d[0].b + k.digit[1] * d[1].b + k.digit[2] * d[2].b,
          k.digit[0] * d[0].h + k.digit[1] * d[1].h + k.digit[2] * d[2].h,
          k.digit[0] * d[0].w + k.digit[1] * d[1].w + k.digit[2] * d[2].w};
}

PYCONV_DEVICE int d_of(const Digit (&d)[3], const Walk& k) {
  return k.digit[0] * d[0].d + k.digit[1] * d[1].d + k.digit[2] * d[2].d;
}

// How a block's D is stored: four neighbours at once where they are neighbours in memory.
enum class Store { one, columns, rows };

struct Operands {
  const float *a, *b;
  const float *bias, *residual;  // of fwd, or null
  float* d;
  bool relu;
  Store store;
};

// The thread's copies of one step: one term, every lanes-th row of A and column of B.
template <class T>
struct Loader {
  const Gemm& g;
  typename T::Shared& shared;
  const float *a, *b;
  int a_term, a_row, b_term, b_column;  // in the tile
  int k, end;                           // the first term of the next step, and the end of this block's terms
  Walk a_walk, b_walk, step;
  int rows;  // of the tile that exist, from a_row on
  Pixel column[T::b_loads];

  PYCONV_DEVICE Loader(const Gemm& g, typename T::Shared& shared, const Operands& o, int row, int first, int group,
                       int begin, int end)
      : g(g),
        shared(shared),
        a_term(g.a_by_term ? threadIdx.x % T::BK : threadIdx.x / T::lanes),
        a_row(g.a_by_term ? threadIdx.x / T::BK : threadIdx.x % T::lanes),
        b_term(g.b_by_term ? threadIdx.x % T::BK : threadIdx.x / T::lanes),
        b_column(g.b_by_term ? threadIdx.x / T::BK : threadIdx.x % T::lanes),
        k(begin),
        end(end),
        a_walk(g.term, begin + a_term),
        b_walk(g.term, begin + b_term),
        step(g.term, T::BK),
        rows(g.M - row - a_row) {
    a = o.a + g.a + group * g.group_a + (row + a_row) * g.row_a;
    b = o.b + g.b + group * g.group_b;
#pragma unroll
    for (int i = 0; i < T::b_loads; i++) {
      const int c = first + b_column + i * T::lanes;
      column[i] = pixel_of(g.column, Walk(g.column, c < g.N ? c : 0));
      column[i].h += c < g.N ? g.h : -(1 << 30);  // a column past the end is outside every image
      column[i].w += g.w;
    }
  }

  PYCONV_DEVICE void load(int stage) {
    const int a_offset = a_of(g.term, a_walk);
    const bool a_exists = k + a_term < end, b_exists = k + b_term < end;
#pragma unroll
    for (int i = 0; i < T::a_loads; i++) {
      copy_async<4>(&shared.a[stage][a_term][a_row + i * T::lanes], a + a_offset + i * T::lanes * g.row_a,
                    a_exists && i * T::lanes < rows);
    }
    const Pixel term = pixel_of(g.term, b_walk);
#pragma unroll
    for (int i = 0; i < T::b_loads; i++) {
      const bool inside =
          unsigned(column[i].h + term.h) < unsigned(g.H) && unsigned(column[i].w + term.w) < unsigned(g.W);
      copy_async<4>(&shared.b[stage][b_term][b_column + i * T::lanes], b + column[i].offset + term.offset,
                    b_exists && inside);
    }
    a_walk.advance(g.term, step);
    b_walk.advance(g.term, step);
    k += T::BK;
  }
};

// sum[i][j] += A[row i][term] * B[term][column j] over the BK terms of a stage.
template <class T>
PYCONV_DEVICE void multiply(const typename T::Shared& shared, int stage, int row, int column, float (&sum)[8][8]) {
#pragma unroll
  for (int k = 0; k < T::BK; k++) {
    const float4 a0 = read4(&shared.a[stage][k][row]), a1 = read4(&shared.a[stage][k][row + T::BM / 2]);
    const float4 b0 = read4(&shared.b[stage][k][column]), b1 = read4(&shared.b[stage][k][column + T::BN / 2]);
    const float a[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
    const float b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int j = 0; j < 8; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
  }
}

PYCONV_DEVICE float finish(const Operands& o, float sum, int channel, int64_t offset) {
  if (o.bias) sum += o.bias[channel];
  if (o.residual) sum += o.residual[offset];
  return o.relu && sum < 0 ? 0 : sum;  // a NaN stays
}

// Writes the thread's sums; run i of 4 rows starts at rows[i], run j of 4 columns at columns[j].
PYCONV_DEVICE void store(const Gemm& g, const Operands& o, int group, const int (&rows)[2], const int (&columns)[2],
                         int64_t base, const float (&sum)[8][8]) {
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const int column = columns[j / 4] + j % 4;
    if (column >= g.N || (o.store == Store::columns && j % 4)) continue;
    const int64_t below = base + d_of(g.column, Walk(g.column, column));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = rows[i / 4] + i % 4;
      if (row >= g.M || (o.store == Store::rows && i % 4)) continue;
      const int64_t at = below + int64_t(row) * g.row_d;
      const int channel = group * g.M + row;
      if (o.store == Store::columns) {
        write4(&o.d[at], {finish(o, sum[i][j], channel, at), finish(o, sum[i][j | 1], channel, at + 1),
                          finish(o, sum[i][j | 2], channel, at + 2), finish(o, sum[i][j | 3], channel, at + 3)});
      } else if (o.store == Store::rows) {
        write4(&o.d[at],
               {finish(o, sum[i][j], channel, at), finish(o, sum[i | 1][j], channel + 1, at + 1),
                finish(o, sum[i | 2][j], channel + 2, at + 2), finish(o, sum[i | 3][j], channel + 3, at + 3)});
      } else {
        o.d[at] = finish(o, sum[i][j], channel, at);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(T::threads, 256 / T::threads * 2) gemm(Gemm g, Operands o) {
  auto& shared = cuda::shared<typename T::Shared>();
  const int first = blockIdx.x * T::BN, row = blockIdx.y * T::BM;
  const int group = blockIdx.z / g.splits, split = blockIdx.z % g.splits;
  const int terms = (g.K + g.splits - 1) / g.splits, begin = split * terms;
  const int end = begin + terms < g.K ? begin + terms : g.K;
  const int steps = end > begin ? (end - begin + T::BK - 1) / T::BK : 0;
  Loader<T> loader(g, shared, o, row, first, group, begin, end);
#pragma unroll
  for (int t = 0; t < T::stages - 1; t++) {
    if (t < steps) loader.load(t);
    copy_async_commit();
  }
  const int y = threadIdx.x / (T::BN / 8) * 4, x = threadIdx.x % (T::BN / 8) * 4;
  float sum[8][8] = {};
  for (int t = 0; t < steps; t++) {
    copy_async_wait<T::stages - 2>();
    __syncthreads();  // the step's values are there for all, and the oldest stage has been read by all
    if (t + T::stages - 1 < steps) loader.load((t + T::stages - 1) % T::stages);
    copy_async_commit();
    multiply<T>(shared, t % T::stages, y, x, sum);
  }
  const int rows[2] = {row + y, row + y + T::BM / 2}, columns[2] = {first + x, first + x + T::BN / 2};
  store(g, o, group, rows, columns, g.d + int64_t(group) * g.group_d + int64_t(split) * g.split_d, sum);
}

constexpr int reduce_threads = 256;

// d = the sum of its `splits` parts, in their order.
__global__ void __launch_bounds__(reduce_threads) add_parts(const float* parts, int splits, int count, float* d) {
  const int i = blockIdx.x * reduce_threads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int s = 0; s < splits; s++) sum += parts[int64_t(s) * count + i];
  d[i] = sum;
}

// ------------------------------------------------------------------------------------------------------------ launchers

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// How many columns in a row are neighbours in D's memory, always.
int64_t run_of_columns(const Gemm& g) {
  int64_t run = 1;
  for (const Digit& digit : g.column) {
    if (digit.d != run && digit.radix > 1) break;
    run *= digit.radix;
  }
  return run;
}

Store store_of(const Gemm& g, const float* d) {
  const auto fours = [](std::initializer_list<int> all) {
    for (int v : all) {
      if (v % 4) return false;
    }
    return true;
  };
  if (!aligned(d) || !fours({g.d, g.group_d, g.split_d})) return Store::one;
  if (g.row_d == 1) {
    return fours({g.M, g.column[0].d, g.column[1].d, g.column[2].d}) ? Store::rows : Store::one;
  }
  const int64_t run = run_of_columns(g);
  if (run % 4 || g.row_d % 4) return Store::one;
  int64_t covered = 1;
  for (const Digit& digit : g.column) {
    if (covered >= run && digit.radix > 1 && digit.d % 4) return Store::one;
    covered *= digit.radix;
  }
  return Store::columns;
}

template <class T>
int launch_tiles(const Place& at, const Gemm& g, const Operands& o) {
  const dim3 grid = {unsigned(divide_up(g.N, T::BN)), unsigned(divide_up(g.M, T::BM)), unsigned(g.groups * g.splits)};
  return launch(gemm<T>, grid, dim3{T::threads, 1, 1}, sizeof(typename T::Shared), at.stream, g, o);
}

int launch_gemm(const Place& at, const Gemm& g, Operands o) {
  if (g.N == 0) return 0;
  o.store = store_of(g, o.d);
  // A large tile reads half as much per product, where there are enough of them. Sums are the same, bit for bit.
  const int64_t large = divide_up(g.N, 128) * divide_up(g.M, 128) * g.groups * g.splits;
  if (g.M > 64 && large >= conv2d::enough_blocks) return launch_tiles<Tile<128, 128>>(at, g, o);
  return launch_tiles<Tile<64, 64>>(at, g, o);
}

const float* floats(const void* p) { return static_cast<const float*>(p); }

}  // namespace

int pyconv_cuda_conv2d_implicit_gemm_fwd(const Place& at, const Conv2dShape& s, const void* x, const void* w,
                                         const Epilogue& e, void* y) {
  return launch_gemm(at, conv2d::gemm_fwd(s),
                     {floats(w), floats(x), floats(e.bias), floats(e.residual), static_cast<float*>(y), e.relu, {}});
}

int pyconv_cuda_conv2d_implicit_gemm_bwd_input(const Place& at, const Conv2dShape& s, const void* dy, const void* w,
                                               void* dx) {
  for (int64_t rh = 0; rh < s.SH; rh++) {
    for (int64_t rw = 0; rw < s.SW; rw++) {
      const int error = launch_gemm(at, conv2d::gemm_bwd_input(s, rh, rw),
                                    {floats(w), floats(dy), nullptr, nullptr, static_cast<float*>(dx), false, {}});
      if (error) return error;
    }
  }
  return 0;
}

int pyconv_cuda_conv2d_implicit_gemm_bwd_weight(const Place& at, const Conv2dShape& s, const void* dy, const void* x,
                                                void* dw) {
  Gemm g = conv2d::gemm_bwd_weight(s);
  g.splits = int(conv2d::splits_of(s));
  g.split_d = int(conv2d::weight_count(s));
  float* out = static_cast<float*>(g.splits > 1 ? at.workspace : dw);
  const int error = launch_gemm(at, g, {floats(dy), floats(x), nullptr, nullptr, out, false, {}});
  if (error || g.splits == 1) return error;
  return launch(add_parts, dim3{unsigned(divide_up(g.split_d, reduce_threads)), 1, 1}, dim3{reduce_threads, 1, 1}, 0,
                at.stream, out, g.splits, g.split_d, static_cast<float*>(dw));
}

}  // namespace pyconv::cuda

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
#include "cuda/conv2d/walk.h"

#include "cuda/clip.h"
#include "cuda/library.h"
#include "cuda/operands.h"

namespace pyconv::cuda {
namespace {

using namespace conv2d;

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

// How a block's D is stored: four neighbours at once where they are neighbours in memory.
enum class Store { one, columns, rows };

struct Operands {
  const float *a, *b;
  const float *bias, *residual;  // of fwd, or null
  float* d;
  Clip<float> clip;
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

  PYCONV_DEVICE Loader(const Gemm& g, typename T::Shared& shared, const Operands& o, const Share& at)
      : g(g),
        shared(shared),
        a_term(g.a_by_term ? threadIdx.x % T::BK : threadIdx.x / T::lanes),
        a_row(g.a_by_term ? threadIdx.x / T::BK : threadIdx.x % T::lanes),
        b_term(g.b_by_term ? threadIdx.x % T::BK : threadIdx.x / T::lanes),
        b_column(g.b_by_term ? threadIdx.x / T::BK : threadIdx.x % T::lanes),
        k(at.begin),
        end(at.end),
        a_walk(g.term, at.begin + a_term),
        b_walk(g.term, at.begin + b_term),
        step(g.term, T::BK),
        rows(g.M - at.row - a_row) {
    a = o.a + g.a + at.group * g.group_a + (at.row + a_row) * g.row_a;
    b = o.b + g.b + at.group * g.group_b;
#pragma unroll
    for (int i = 0; i < T::b_loads; i++) {
      column[i] = column_of(g, at.column + b_column + i * T::lanes);
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
      copy_async<4>(&shared.b[stage][b_term][b_column + i * T::lanes], b + column[i].offset + term.offset,
                    b_exists && inside(g, column[i], term));
    }
    a_walk.advance(g.term, step);
    b_walk.advance(g.term, step);
    k += T::BK;
  }
};

// sum[i][j] += A[row i][term] * B[term][column j] over the BK terms of a stage.
template <class T>
PYCONV_DEVICE void multiply(const typename T::Shared& shared, int stage, int row, int column, float (&sum)[8][8]) {
  // Two terms at a time: in eights or fours, ptxas spills at the 128 registers that leave two blocks of 256 threads.
#pragma unroll 2
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
  return o.clip(sum);
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
  const Share at(g, T::BM, T::BN);
  const int steps = at.steps(T::BK);
  Loader<T> loader(g, shared, o, at);
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
  const int rows[2] = {at.row + y, at.row + y + T::BM / 2}, columns[2] = {at.column + x, at.column + x + T::BN / 2};
  store(g, o, at.group, rows, columns, g.d + int64_t(at.group) * g.group_d + int64_t(at.split) * g.split_d, sum);
}

// ------------------------------------------------------------------------------------------------------------ launchers

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
  if (!aligned({d}) || !fours({g.d, g.group_d, g.split_d})) return Store::one;
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
  if (g.M > 64 && large >= enough_blocks) return launch_tiles<Tile<128, 128>>(at, g, o);
  return launch_tiles<Tile<64, 64>>(at, g, o);
}

}  // namespace

int pyconv_cuda_conv2d_implicit_gemm_fwd(const Place& at, const Conv2dShape& s, const void* x, const void* w,
                                         const Epilogue& e, void* y) {
  return launch_gemm(at, gemm_fwd(s),
                     {as<float>(w),
                      as<float>(x),
                      as<float>(e.bias),
                      as<float>(e.residual),
                      static_cast<float*>(y),
                      Clip<float>(e),
                      {}});
}

int pyconv_cuda_conv2d_implicit_gemm_bwd_input(const Place& at, const Conv2dShape& s, const void* dy, const void* w,
                                               void* dx) {
  const Operands o = {as<float>(w), as<float>(dy), nullptr, nullptr, static_cast<float*>(dx), {}, {}};
  return launch_phases(s, [&](int64_t rh, int64_t rw) { return launch_gemm(at, gemm_bwd_input(s, rh, rw), o); });
}

int pyconv_cuda_conv2d_implicit_gemm_bwd_weight(const Place& at, const Conv2dShape& s, const void* dy, const void* x,
                                                void* dw) {
  Gemm g = gemm_bwd_weight(s);
  g.splits = int(splits_of(s));
  g.split_d = int(weight_count(s));
  float* out = static_cast<float*>(g.splits > 1 ? at.workspace : dw);
  const int error = launch_gemm(at, g, {as<float>(dy), as<float>(x), nullptr, nullptr, out, {}, {}});
  if (error || g.splits == 1) return error;
  return launch_add_parts(g, out, static_cast<float*>(dw), at.stream);
}

}  // namespace pyconv::cuda

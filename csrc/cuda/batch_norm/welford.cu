// batch_norm on CUDA / welford.
// Computes  train  mean and M2 = sum (x - mean)^2 of every channel in one pass, then y = act((x - mean) * r * weight + bias)
//           bwd    dbias = sum g,  dweight = sum g * xhat  in one pass, then dx; the formulas are in reference.cu
// Shapes    x, y, dy, dx, residual (N,C,H,W) dense in NCHW or channels_last;  all others (C,)
// Tiling    sums, NCHW: a block has a channel and a part of its values, V neighbours at a time;  channels_last: 32*V channels
//           and a part of the pixels, a lane V neighbouring channels. Lanes, then warps, then parts are merged in a fixed
//           order. The rest: a thread has V neighbours in memory
// Cost      train and its backward read their operands twice; V values per load, 16 bytes where C, or H*W in NCHW, is a
//           multiple of them; one division per value in train
// Limits    float32, bfloat16, float16, fewer than 2^31 values. Values are taken less the channel's first, so that a mean
//           that is large beside the deviation costs no digits
// Source    Welford, Technometrics 4(3), 1962; merging: Chan, Golub and LeVeque, The American Statistician 37(3), 1983
#include "cuda/batch_norm/parts.h"
#include "cuda/clip.h"
#include "cuda/library.h"
#include "cuda/operands.h"
#include "cuda/vocabulary.h"

namespace pyconv::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

// Count, mean and sum of squared deviations.
struct Moments {
  float n = 0, mean = 0, m2 = 0;

  PYCONV_DEVICE void add(float v) {
    n += 1;
    const float deviation = v - mean;
    mean += deviation / n;
    m2 += deviation * (v - mean);
  }
  PYCONV_DEVICE void merge(const Moments& o) {
    if (o.n == 0) return;
    const float all = n + o.n, deviation = o.mean - mean;
    mean += deviation * (o.n / all);
    m2 += o.m2 + deviation * deviation * (n * (o.n / all));
    n = all;
  }
  PYCONV_DEVICE Moments from_lane_beyond(int delta) const {
    return {__shfl_down_sync(~0u, n, delta), __shfl_down_sync(~0u, mean, delta), __shfl_down_sync(~0u, m2, delta)};
  }
};

struct Sums {
  float dy = 0, dy_xhat = 0;

  PYCONV_DEVICE void merge(const Sums& o) {
    dy += o.dy;
    dy_xhat += o.dy_xhat;
  }
  PYCONV_DEVICE Sums from_lane_beyond(int delta) const {
    return {__shfl_down_sync(~0u, dy, delta), __shfl_down_sync(~0u, dy_xhat, delta)};
  }
};

PYCONV_DEVICE float inverse_deviation(float var, double eps) { return 1 / sqrtf(var + float(eps)); }

// The offset of the first value of channel c: all of them are taken less this one.
PYCONV_DEVICE int first_of(const NormShape& s, int c) { return s.layout == Layout::nchw ? c * int(s.H * s.W) : c; }

// What the two sums over a channel read and add: V values at an offset, all of `state`'s channel, or one for each of V.
template <class T, int V>
struct Training {
  using State = Moments;
  const T* x;

  struct Channel {
    float first;
  };
  PYCONV_DEVICE Channel channel(const NormShape& s, int c) const { return {read(&x[first_of(s, c)])}; }
  template <int states>
  PYCONV_DEVICE void add(Moments (&state)[states], const Channel (&c)[states], int offset) const {
    const Pack<T, V> values = read_pack<V>(&x[offset]);
#pragma unroll
    for (int i = 0; i < V; i++) state[i % states].add(read(&values.v[i]) - c[i % states].first);
  }
};

// g: dy, or after a relu, whose output y is, dy where 0 < y < ceiling; a NaN lets pass.
template <class T, int V>
struct Masked {
  const T *dy, *y;
  float ceiling;

  PYCONV_DEVICE Pack<T, V> read_at(unsigned i) const {
    Pack<T, V> g = read_pack<V>(&dy[i]);
    if (!y) return g;
    const Pack<T, V> outputs = read_pack<V>(&y[i]);
#pragma unroll
    for (int j = 0; j < V; j++) {
      const float v = read(&outputs.v[j]);
      if (v <= 0 || v >= ceiling) g.v[j] = T{};
    }
    return g;
  }
};

template <class T, int V>
struct Backward {
  using State = Sums;
  Masked<T, V> g;
  const T* x;
  const float *mean, *var;

  struct Channel {
    float mean, r;
  };
  PYCONV_DEVICE Channel channel(const NormShape& s, int c) const { return {mean[c], inverse_deviation(var[c], s.eps)}; }
  template <int states>
  PYCONV_DEVICE void add(Sums (&state)[states], const Channel (&c)[states], int offset) const {
    const Pack<T, V> values = read_pack<V>(&x[offset]), gradients = g.read_at(offset);
#pragma unroll
    for (int i = 0; i < V; i++) {
      const float g = read(&gradients.v[i]);
      state[i % states].dy += g;
      state[i % states].dy_xhat += g * ((read(&values.v[i]) - c[i % states].mean) * c[i % states].r);
    }
  }
};

// NCHW: one channel's values, `part` of them, into partial[part][c].
template <class Pass, int V>
__global__ void __launch_bounds__(threads) sum_planes(NormShape s, Pass pass, typename Pass::State* partial) {
  using State = typename Pass::State;
  struct Shared {
    State warp[warps];
  };
  auto& shared = cuda::shared<Shared>();
  const int c = blockIdx.x, part = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned plane = unsigned(s.H * s.W) / V, packs = unsigned(s.N) * plane;
  const unsigned length = (packs + gridDim.y - 1) / gridDim.y, begin = part * length;
  const unsigned end = begin + length < packs ? begin + length : packs;
  const typename Pass::Channel channel[1] = {pass.channel(s, c)};
  State mine[1];
  for (unsigned i = begin + threadIdx.x; i < end; i += threads) {
    pass.add(mine, channel, int(((i / plane) * unsigned(s.C) + c) * plane + i % plane) * V);
  }
  for (int delta = 16; delta > 0; delta /= 2) mine[0].merge(mine[0].from_lane_beyond(delta));
  if (lane == 0) shared.warp[warp] = mine[0];
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < warps; w++) mine[0].merge(shared.warp[w]);
  partial[part * int(s.C) + c] = mine[0];
}

// channels_last: 32*V channels of `part` of the pixels, into partial[part][c].
template <class Pass, int V>
__global__ void __launch_bounds__(threads) sum_pixels(NormShape s, Pass pass, typename Pass::State* partial) {
  using State = typename Pass::State;
  struct Shared {
    State warp[warps][V][32];
  };
  auto& shared = cuda::shared<Shared>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = blockIdx.y;
  const int c = (blockIdx.x * 32 + lane) * V, C = int(s.C), pixels = int(s.per_channel());
  const int length = (pixels + gridDim.y - 1) / gridDim.y, begin = part * length;
  const int end = begin + length < pixels ? begin + length : pixels;
  typename Pass::Channel channel[V];
  State mine[V];
  if (c < C) {
#pragma unroll
    for (int i = 0; i < V; i++) channel[i] = pass.channel(s, c + i);
    for (int p = begin + warp; p < end; p += warps) pass.add(mine, channel, p * C + c);
  }
#pragma unroll
  for (int i = 0; i < V; i++) shared.warp[warp][i][lane] = mine[i];
  __syncthreads();
  if (warp != 0 || c >= C) return;
#pragma unroll
  for (int i = 0; i < V; i++) {
    for (int w = 1; w < warps; w++) mine[i].merge(shared.warp[w][i][lane]);
    partial[part * C + c + i] = mine[i];
  }
}

// The moments of a channel, from those of its parts in their order; `shift` is what its values were taken less.
__global__ void __launch_bounds__(threads)
    finish_moments(const Moments* partial, int parts, int C, float* shift, float* rest, float* mean, float* var) {
  const int c = blockIdx.x * threads + threadIdx.x;
  if (c >= C) return;
  Moments all;
  for (int p = 0; p < parts; p++) all.merge(partial[p * C + c]);
  rest[c] = all.mean;
  mean[c] = shift[c] + all.mean;
  var[c] = all.n > 0 ? all.m2 / all.n : 0;
}

__global__ void __launch_bounds__(threads)
    finish_sums(const Sums* partial, int parts, int C, float* dweight, float* dbias) {
  const int c = blockIdx.x * threads + threadIdx.x;
  if (c >= C) return;
  Sums all;
  for (int p = 0; p < parts; p++) all.merge(partial[p * C + c]);
  dbias[c] = all.dy;
  dweight[c] = all.dy_xhat;
}

template <class T>
__global__ void __launch_bounds__(threads) take_first(NormShape s, const T* x, float* shift) {
  const int c = blockIdx.x * threads + threadIdx.x;
  if (c < s.C) shift[c] = s.per_channel() > 0 ? read(&x[first_of(s, c)]) : 0;
}

// What V neighbouring values have of `p`, one value per channel: one channel's in NCHW, else those of V channels.
template <int V>
PYCONV_DEVICE Pack<float, V> of_channels(const NormShape& s, const float* p, unsigned i, float absent) {
  constexpr int at_once = V < 4 ? V : 4;
  const bool each = p && s.layout == Layout::nhwc;
  const unsigned c = i % unsigned(s.C);
  const float value = p && !each ? p[i / unsigned(s.H * s.W) % unsigned(s.C)] : absent;
  Pack<float, V> all;
  if (each) {
#pragma unroll
    for (int j = 0; j < V; j += at_once) {
      const auto some = read_pack<at_once>(&p[c + j]);
#pragma unroll
      for (int k = 0; k < at_once; k++) all.v[j + k] = some.v[k];
    }
    return all;
  }
#pragma unroll
  for (int j = 0; j < V; j++) all.v[j] = value;
  return all;
}

// y = act(((x - shift) - rest) * r * weight + bias); shift + rest is the mean, to more digits than it has. rest may be null.
template <class T, int V>
__global__ void __launch_bounds__(threads)
    normalise(NormShape s, const T* x, const float* shift, const float* rest, const float* var, const float* weight,
              const float* bias, const T* residual, Clip<float> clip, T* y) {
  const unsigned i = (blockIdx.x * threads + threadIdx.x) * V;
  if (i >= unsigned(s.N * s.C * s.H * s.W)) return;
  const auto first = of_channels<V>(s, shift, i, 0), more = of_channels<V>(s, rest, i, 0);
  const auto variance = of_channels<V>(s, var, i, 0);
  const auto factor = of_channels<V>(s, weight, i, 1), offset = of_channels<V>(s, bias, i, 0);
  const Pack<T, V> values = read_pack<V>(&x[i]);
  Pack<T, V> out, added;
  if (residual) added = read_pack<V>(&residual[i]);
#pragma unroll
  for (int j = 0; j < V; j++) {
    const float scale = inverse_deviation(variance.v[j], s.eps) * factor.v[j];
    float v = fmaf(read(&values.v[j]) - first.v[j] - more.v[j], scale, offset.v[j]);
    if (residual) v += read(&added.v[j]);
    write(&out.v[j], clip(v));
  }
  write_pack(&y[i], out);
}

template <class T, int V>
__global__ void __launch_bounds__(threads, 4)
    input_gradient(NormShape s, Masked<T, V> upstream, const T* x, const float* mean, const float* var,
                   const float* weight, const float* dweight, const float* dbias, T* dx, T* dresidual) {
  const unsigned i = (blockIdx.x * threads + threadIdx.x) * V;
  if (i >= unsigned(s.N * s.C * s.H * s.W)) return;
  const auto average = of_channels<V>(s, mean, i, 0), variance = of_channels<V>(s, var, i, 0);
  const auto factor = of_channels<V>(s, weight, i, 1);
  const auto through_var = of_channels<V>(s, dweight, i, 0), through_mean = of_channels<V>(s, dbias, i, 0);
  const Pack<T, V> values = read_pack<V>(&x[i]), gradients = upstream.read_at(i);
  if (dresidual) write_pack(&dresidual[i], gradients);
  const float share = s.training ? 1 / float(s.per_channel()) : 0;
  Pack<T, V> out;
#pragma unroll
  for (int j = 0; j < V; j++) {
    const float r = inverse_deviation(variance.v[j], s.eps), xhat = (read(&values.v[j]) - average.v[j]) * r;
    const float g = read(&gradients.v[j]) - through_mean.v[j] * share - xhat * (through_var.v[j] * share);
    write(&out.v[j], g * (r * factor.v[j]));
  }
  write_pack(&dx[i], out);
}

// ------------------------------------------------------------------------------------------------------------ launchers

int launch_blocks(const Place& at, int64_t count, const auto& kernel, const auto&... arguments) {
  if (count == 0) return 0;
  return launch(kernel, dim3{unsigned(divide_up(count, threads)), 1, 1}, dim3{threads, 1, 1}, 0, at.stream,
                arguments...);
}

template <class Pass, int V>
int launch_sums(const Place& at, const NormShape& s, const Pass& pass, void* partial) {
  using State = typename Pass::State;
  const unsigned parts = unsigned(batch_norm::parts_of(s));
  State* states = static_cast<State*>(partial);
  if (s.layout == Layout::nchw) {
    return launch(sum_planes<Pass, V>, dim3{unsigned(s.C), parts, 1}, dim3{threads, 1, 1}, warps * sizeof(State),
                  at.stream, s, pass, states);
  }
  return launch(sum_pixels<Pass, V>, dim3{unsigned(divide_up(s.C, 32 * V)), parts, 1}, dim3{threads, 1, 1},
                warps * V * 32 * sizeof(State), at.stream, s, pass, states);
}

// f(T(), V) with the storage type and as many values at a time as memory allows.
template <class F>
int with_packs(const NormShape& s, std::initializer_list<const void*> operands, const F& f) {
  const int at_once = aligned(operands) ? batch_norm::values_at_once(s) : 1;
  return with_float_sums(s.dtype, [&](auto type) {
    constexpr int wide = 16 / sizeof(type);
    if (at_once == wide) return f(type, std::integral_constant<int, wide>());
    return at_once == 4 ? f(type, std::integral_constant<int, 4>()) : f(type, std::integral_constant<int, 1>());
  });
}

}  // namespace

int pyconv_cuda_batch_norm_welford_train(const Place& at, const NormShape& s, const void* x, const Affine& p,
                                         const Epilogue& e, void* y, void* mean, void* var) {
  const int C = int(s.C), parts = int(batch_norm::parts_of(s));
  float* shift = static_cast<float*>(at.workspace);
  float* rest = shift + C;
  Moments* partial = reinterpret_cast<Moments*>(rest + C);
  return with_packs(s, {x, y, e.residual, p.weight, p.bias, var, shift, rest}, [&](auto type, auto pack) {
    using T = decltype(type);
    constexpr int V = decltype(pack)::value;
    const T* in = static_cast<const T*>(x);
    int error = launch_blocks(at, C, take_first<T>, s, in, shift);
    if (!error) error = launch_sums<Training<T, V>, V>(at, s, {in}, partial);
    if (!error) {
      error = launch_blocks(at, C, finish_moments, partial, parts, C, shift, rest, static_cast<float*>(mean),
                            static_cast<float*>(var));
    }
    if (error) return error;
    return launch_blocks(at, divide_up(s.N * s.C * s.H * s.W, V), normalise<T, V>, s, in, shift, rest, as<float>(var),
                         as<float>(p.weight), as<float>(p.bias), as<T>(e.residual), Clip<float>(e), static_cast<T*>(y));
  });
}

int pyconv_cuda_batch_norm_welford_eval(const Place& at, const NormShape& s, const void* x, const Statistics& given,
                                        const Affine& p, const Epilogue& e, void* y) {
  return with_packs(s, {x, y, e.residual, p.weight, p.bias, given.mean, given.var}, [&](auto type, auto pack) {
    using T = decltype(type);
    constexpr int V = decltype(pack)::value;
    return launch_blocks(at, divide_up(s.N * s.C * s.H * s.W, V), normalise<T, V>, s, static_cast<const T*>(x),
                         as<float>(given.mean), nullptr, as<float>(given.var), as<float>(p.weight), as<float>(p.bias),
                         as<T>(e.residual), Clip<float>(e), static_cast<T*>(y));
  });
}

int pyconv_cuda_batch_norm_welford_bwd(const Place& at, const NormShape& s, const Upstream& up, const void* x,
                                       const Statistics& given, const void* weight, const Gradients& out) {
  const int C = int(s.C), parts = int(batch_norm::parts_of(s));
  Sums* partial = static_cast<Sums*>(at.workspace);
  float *dweight = static_cast<float*>(out.dweight), *dbias = static_cast<float*>(out.dbias);
  const std::initializer_list<const void*> operands = {up.dy,  up.y,          x,       weight, given.mean, given.var,
                                                       out.dx, out.dresidual, dweight, dbias};
  return with_packs(s, operands, [&](auto type, auto pack) {
    using T = decltype(type);
    constexpr int V = decltype(pack)::value;
    const Masked<T, V> g = {as<T>(up.dy), as<T>(up.y), float(up.ceiling)};
    const T* in = as<T>(x);
    int error = launch_sums<Backward<T, V>, V>(at, s, {g, in, as<float>(given.mean), as<float>(given.var)}, partial);
    if (!error) error = launch_blocks(at, C, finish_sums, partial, parts, C, dweight, dbias);
    if (error) return error;
    return launch_blocks(at, divide_up(s.N * s.C * s.H * s.W, V), input_gradient<T, V>, s, g, in, as<float>(given.mean),
                         as<float>(given.var), as<float>(weight), dweight, dbias, static_cast<T*>(out.dx),
                         static_cast<T*>(out.dresidual));
  });
}

}  // namespace pyconv::cuda

// batch_norm on CUDA / reference.
// Computes  y = act((x - mean[c]) * r[c] * weight[c] + bias[c]),  r = 1/sqrt(var + eps),  for every value of channel c
//           act(v) = min(max(v + residual, 0), ceiling) with what of it is asked for
//           train  mean = sum x / M,  var = sum (x - mean)^2 / M  over the M = N*H*W values;  eval: both are given
//           dresidual = g = dy,  or after a relu dy where 0 < y < ceiling,  with xhat = (x - mean) * r
//           dbias = sum g,  dweight = sum g * xhat
//           dx = weight * r * (g - dbias/M - xhat * dweight/M) in training,  weight * r * g in eval
// Shapes    x, y, dy, dx, residual (N,C,H,W), any layout, through index functions;  all others (C,)
// Tiling    one block per channel; a thread takes every `threads`-th value
// Cost      train reads x three times, its backward dy and x twice; one 64-bit division per digit and value
// Limits    none: the floor under every other kernel, and never tuned. Two passes and sums in double: a mean that is
//           large beside the deviation costs no digits
// Source    Ioffe and Szegedy, Batch Normalization, arXiv:1502.03167, algorithm 1 and section 3
#include "cuda/clip.h"
#include "cuda/each_value.h"

namespace pyconv::cuda {
namespace {

constexpr int threads = 128;

struct Shared {
  double sums[threads];
};

// The sum over all threads of the block, in one order, in every thread.
PYCONV_DEVICE double block_sum(Shared& shared, double mine) {
  shared.sums[threadIdx.x] = mine;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) shared.sums[threadIdx.x] += shared.sums[threadIdx.x + half];
  }
  __syncthreads();
  const double sum = shared.sums[0];
  __syncthreads();  // before the next sum begins
  return sum;
}

// Offset of value i of channel c, i < N*H*W.
PYCONV_DEVICE int64_t offset_of(const NormShape& s, int64_t c, int64_t i) {
  return s.x_index()(i / s.plane(), c, i / s.W % s.H, i % s.W);
}

// What a channel keeps: one pointer per row of the formula, null where it is absent.
template <class A>
struct Channels {
  const A *mean, *var, *weight, *bias;
};

template <class T>
PYCONV_DEVICE void normalise(const NormShape& s, int64_t c, const T* x, double mean, double var,
                             const Channels<acc_t<T>>& p, const Epilogue& e, T* y) {
  const T* residual = static_cast<const T*>(e.residual);
  const Clip<double> clip(e);
  const double scale = (p.weight ? double(p.weight[c]) : 1) / sqrt(var + s.eps), bias = p.bias ? double(p.bias[c]) : 0;
  for (int64_t i = threadIdx.x; i < s.per_channel(); i += threads) {
    const int64_t at = offset_of(s, c, i);
    double v = (read(&x[at]) - mean) * scale + bias;
    if (residual) v += read(&residual[at]);
    write(&y[at], acc_t<T>(clip(v)));
  }
}

// Of four blocks: left to itself, ptxas spilt around the calls of 64-bit divisions.
template <class T>
__global__ void __launch_bounds__(threads, 4)
    train(NormShape s, const T* x, Channels<acc_t<T>> p, Epilogue e, T* y, acc_t<T>* mean, acc_t<T>* var) {
  auto& shared = cuda::shared<Shared>();
  const int64_t c = blockIdx.x;
  const double M = double(at_least(s.per_channel(), 1));
  double sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < s.per_channel(); i += threads) sum += read(&x[offset_of(s, c, i)]);
  const double average = block_sum(shared, sum) / M;
  for (int64_t i = threadIdx.x; i < s.per_channel(); i += threads) {
    const double deviation = read(&x[offset_of(s, c, i)]) - average;
    squares += deviation * deviation;
  }
  const double variance = block_sum(shared, squares) / M;
  if (threadIdx.x == 0) {
    mean[c] = acc_t<T>(average);
    var[c] = acc_t<T>(variance);
  }
  normalise(s, c, x, average, variance, p, e, y);
}

template <class T>
__global__ void __launch_bounds__(threads) eval(NormShape s, const T* x, Channels<acc_t<T>> p, Epilogue e, T* y) {
  const int64_t c = blockIdx.x;
  normalise(s, c, x, double(p.mean[c]), double(p.var[c]), p, e, y);
}

template <class T>
__global__ void __launch_bounds__(threads) bwd(NormShape s, Upstream up, const T* x, Channels<acc_t<T>> p, T* dx,
                                               T* dresidual, acc_t<T>* dweight, acc_t<T>* dbias) {
  auto& shared = cuda::shared<Shared>();
  const int64_t c = blockIdx.x;
  const double M = double(at_least(s.per_channel(), 1)), mean = double(p.mean[c]),
               r = 1 / sqrt(double(p.var[c]) + s.eps);
  const T *dy = static_cast<const T*>(up.dy), *y = static_cast<const T*>(up.y);
  const auto upstream = [&](int64_t at) {
    return y && (read(&y[at]) <= 0 || read(&y[at]) >= up.ceiling) ? acc_t<T>(0) : read(&dy[at]);
  };
  double dy_sum = 0, dy_xhat_sum = 0;
  for (int64_t i = threadIdx.x; i < s.per_channel(); i += threads) {
    const int64_t at = offset_of(s, c, i);
    const double g = upstream(at);
    dy_sum += g;
    dy_xhat_sum += g * ((read(&x[at]) - mean) * r);
  }
  dy_sum = block_sum(shared, dy_sum);
  dy_xhat_sum = block_sum(shared, dy_xhat_sum);
  if (threadIdx.x == 0) {
    dbias[c] = acc_t<T>(dy_sum);
    dweight[c] = acc_t<T>(dy_xhat_sum);
  }
  const double scale = (p.weight ? double(p.weight[c]) : 1) * r;
  const double through_mean = s.training ? dy_sum / M : 0, through_var = s.training ? dy_xhat_sum / M : 0;
  for (int64_t i = threadIdx.x; i < s.per_channel(); i += threads) {
    const int64_t at = offset_of(s, c, i);
    const double xhat = (read(&x[at]) - mean) * r;
    const acc_t<T> g = upstream(at);
    if (dresidual) write(&dresidual[at], g);
    write(&dx[at], acc_t<T>((g - through_mean - xhat * through_var) * scale));
  }
}

template <class... Parameters, class... Arguments>
int launch_channels(const Place& at, const NormShape& s, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (s.C == 0) return 0;
  return launch(kernel, dim3{unsigned(s.C), 1, 1}, dim3{threads, 1, 1}, sizeof(Shared), at.stream, s, arguments...);
}

template <class A>
Channels<A> channels(const Statistics& given, const Affine& p) {
  return {static_cast<const A*>(given.mean), static_cast<const A*>(given.var), static_cast<const A*>(p.weight),
          static_cast<const A*>(p.bias)};
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------ launchers

int pyconv_cuda_batch_norm_reference_train(const Place& at, const NormShape& s, const void* x, const Affine& p,
                                           const Epilogue& e, void* y, void* mean, void* var) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    return launch_channels(at, s, train<T>, static_cast<const T*>(x), channels<A>({}, p), e, static_cast<T*>(y),
                           static_cast<A*>(mean), static_cast<A*>(var));
  });
}

int pyconv_cuda_batch_norm_reference_eval(const Place& at, const NormShape& s, const void* x, const Statistics& given,
                                          const Affine& p, const Epilogue& e, void* y) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    return launch_channels(at, s, eval<T>, static_cast<const T*>(x), channels<acc_t<T>>(given, p), e,
                           static_cast<T*>(y));
  });
}

int pyconv_cuda_batch_norm_reference_bwd(const Place& at, const NormShape& s, const Upstream& up, const void* x,
                                         const Statistics& given, const void* weight, const Gradients& out) {
  return with_storage(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    return launch_channels(at, s, bwd<T>, up, static_cast<const T*>(x), channels<A>(given, {weight, nullptr}),
                           static_cast<T*>(out.dx), static_cast<T*>(out.dresidual), static_cast<A*>(out.dweight),
                           static_cast<A*>(out.dbias));
  });
}

}  // namespace pyconv::cuda

// pool2d on CUDA / packs: maximum and average, V neighbouring channels at once.
// Computes  as reference.cu
// Shapes    planes (N,C,IH,IW), pooled (N,C,OH,OW), seen as (outer, H, W, inner): channels are the inner axis in
//           channels_last, and planes the outer in NCHW, where nothing is inner
// Tiling    a thread has V values of the output, 16 bytes in channels_last where memory allows it, else one; neighbours in
//           memory in neighbouring threads. Backward is a gather: no two threads write one value
// Cost      as reference.cu, with index arithmetic in 32 bits, once for V values; what windows share comes from L1
// Limits    float32, bfloat16, float16; fewer than 2^31 values per tensor
// Source    as reference.cu
#include "cuda/pool2d/windows.h"

#include "cuda/library.h"
#include "cuda/operands.h"

namespace pyconv::cuda {
namespace {

using namespace pool2d;

constexpr int threads = 256;  // of three blocks: left to itself, ptxas spilt around the calls of 64-bit divisions

// Where pack i of a tensor (outer, H, W, inner) begins; `packs` of them are an inner axis.
struct Where {
  int h, w, outer, inner;

  PYCONV_DEVICE Where(int i, int packs, int V, const PoolAxis& rows, const PoolAxis& columns, bool pooled) {
    const int H = int(pooled ? rows.out : rows.in), W = int(pooled ? columns.out : columns.in);
    inner = i % packs * V;
    w = i / packs % W;
    h = i / packs / W % H;
    outer = i / packs / W / H;
  }
};

// Offsets of the same channels at other pixels, before and behind pooling.
struct Offsets {
  int outer, inner, IH, IW, OH, OW, c;

  PYCONV_DEVICE Offsets(const Pool2dShape& s, const Where& at, int inner)
      : outer(at.outer),
        inner(inner),
        IH(int(s.h.in)),
        IW(int(s.w.in)),
        OH(int(s.h.out)),
        OW(int(s.w.out)),
        c(at.inner) {}
  PYCONV_DEVICE int plane(int64_t ih, int64_t iw) const { return ((outer * IH + int(ih)) * IW + int(iw)) * inner + c; }
  PYCONV_DEVICE int pooled(int64_t oh, int64_t ow) const { return ((outer * OH + int(oh)) * OW + int(ow)) * inner + c; }
};

PYCONV_DEVICE int thread_number() { return int(blockIdx.x) * threads + int(threadIdx.x); }

template <class T, int V>
__global__ void __launch_bounds__(threads, 3)
    max_fwd(Pool2dShape s, int inner, int count, const T* x, T* y, int64_t* indices) {
  const int i = thread_number();
  if (i >= count) return;
  const Where o(i, inner / V, V, s.h, s.w, true);
  const Offsets at(s, o, inner);
  float best[V];
  int index[V];
#pragma unroll
  for (int v = 0; v < V; v++) best[v] = -HUGE_VALF, index[v] = -1;
  for_window(s, o.h, o.w, [&](int64_t ih, int64_t iw) {
    const Pack<T, V> values = read_pack<V>(&x[at.plane(ih, iw)]);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float value = read(&values.v[v]);
      if (index[v] >= 0 && !(value > best[v] || value != value)) continue;
      best[v] = value;
      index[v] = int(ih) * at.IW + int(iw);
    }
  });
  Pack<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) write(&out.v[v], best[v]);
  write_pack(&y[i * V], out);
  constexpr int two = V == 1 ? 1 : 2;
#pragma unroll
  for (int v = 0; v < V; v += two) {
    Pack<int64_t, two> pair;
#pragma unroll
    for (int u = 0; u < two; u++) pair.v[u] = index[v + u];
    write_pack(&indices[i * V + v], pair);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(threads, 3)
    max_bwd(Pool2dShape s, int inner, int count, const T* dy, const int64_t* indices, T* dx) {
  const int i = thread_number();
  if (i >= count) return;
  const Where p(i, inner / V, V, s.h, s.w, false);
  const Offsets at(s, p, inner);
  const int64_t mine = int64_t(p.h) * at.IW + p.w;
  float sum[V] = {};
  for_holders(s, p.h, p.w, s.h.adaptive() || s.w.adaptive(), [&](int64_t oh, int64_t ow) {
    const int from = at.pooled(oh, ow);
    constexpr int two = V == 1 ? 1 : 2;
    const Pack<T, V> gradients = read_pack<V>(&dy[from]);
#pragma unroll
    for (int v = 0; v < V; v += two) {
      const Pack<int64_t, two> index = read_pack<two>(&indices[from + v]);
#pragma unroll
      for (int u = 0; u < two; u++) {
        if (index.v[u] == mine) sum[v + u] += read(&gradients.v[v + u]);
      }
    }
  });
  Pack<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) write(&out.v[v], sum[v]);
  write_pack(&dx[i * V], out);
}

// Both directions: sums over a window, or over the windows that hold a pixel, of values each over its divisor.
template <class T, int V, bool back>
__global__ void __launch_bounds__(threads, 3) average(Pool2dShape s, int inner, int count, const T* from, T* to) {
  const int i = thread_number();
  if (i >= count) return;
  const Where o(i, inner / V, V, s.h, s.w, !back);
  const Offsets at(s, o, inner);
  float sum[V] = {};
  const auto add = [&](int offset, float divisor) {
    const Pack<T, V> values = read_pack<V>(&from[offset]);
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] += back ? read(&values.v[v]) / divisor : read(&values.v[v]);
  };
  if constexpr (back) {
    for_holders(s, o.h, o.w, false, [&](int64_t oh, int64_t ow) { add(at.pooled(oh, ow), float(s.divisor(oh, ow))); });
  } else {
    for_window(s, o.h, o.w, [&](int64_t ih, int64_t iw) { add(at.plane(ih, iw), 1); });
  }
  const float divisor = back ? 1 : float(s.divisor(o.h, o.w));
  Pack<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) write(&out.v[v], sum[v] / divisor);
  write_pack(&to[i * V], out);
}

// ------------------------------------------------------------------------------------------------------------ launchers

// f(T(), V, inner): the storage type, how many values a thread takes, and how many are neighbours.
template <class F>
int with_packs(const Pool2dShape& s, std::initializer_list<const void*> operands, const F& f) {
  return with_float_sums(s.dtype, [&](auto type) {
    constexpr int V = 16 / sizeof(type);
    const int inner = s.layout == Layout::nhwc ? int(s.C) : 1;
    if (inner % V == 0 && aligned(operands)) return f(type, std::integral_constant<int, V>(), inner);
    return f(type, std::integral_constant<int, 1>(), inner);
  });
}

template <class... Parameters, class... Arguments>
int launch_packs(const Place& at, const Pool2dShape& s, int inner, int64_t values, int V,
                 void (*kernel)(Pool2dShape, int, int, Parameters...), const Arguments&... arguments) {
  const int64_t count = values / V;
  if (count == 0) return 0;
  return launch(kernel, dim3{unsigned(divide_up(count, threads)), 1, 1}, dim3{threads, 1, 1}, 0, at.stream, s, inner,
                int(count), arguments...);
}

int64_t pooled_count(const Pool2dShape& s) { return s.N * s.C * s.h.out * s.w.out; }
int64_t plane_count(const Pool2dShape& s) { return s.N * s.C * s.h.in * s.w.in; }

}  // namespace

int pyconv_cuda_max_pool2d_packs_fwd(const Place& at, const Pool2dShape& s, const void* x, void* y, int64_t* indices) {
  return with_packs(s, {x, y, indices}, [&](auto type, auto pack, int inner) {
    using T = decltype(type);
    constexpr int V = decltype(pack)::value;
    return launch_packs(at, s, inner, pooled_count(s), V, max_fwd<T, V>, as<T>(x), static_cast<T*>(y), indices);
  });
}

int pyconv_cuda_max_pool2d_packs_bwd(const Place& at, const Pool2dShape& s, const void* dy, const int64_t* indices,
                                     void* dx) {
  return with_packs(s, {dy, indices, dx}, [&](auto type, auto pack, int inner) {
    using T = decltype(type);
    constexpr int V = decltype(pack)::value;
    return launch_packs(at, s, inner, plane_count(s), V, max_bwd<T, V>, as<T>(dy), indices, static_cast<T*>(dx));
  });
}

int pyconv_cuda_avg_pool2d_packs_fwd(const Place& at, const Pool2dShape& s, const void* x, void* y) {
  return with_packs(s, {x, y}, [&](auto type, auto pack, int inner) {
    using T = decltype(type);
    constexpr int V = decltype(pack)::value;
    return launch_packs(at, s, inner, pooled_count(s), V, average<T, V, false>, as<T>(x), static_cast<T*>(y));
  });
}

int pyconv_cuda_avg_pool2d_packs_bwd(const Place& at, const Pool2dShape& s, const void* dy, void* dx) {
  return with_packs(s, {dy, dx}, [&](auto type, auto pack, int inner) {
    using T = decltype(type);
    constexpr int V = decltype(pack)::value;
    return launch_packs(at, s, inner, plane_count(s), V, average<T, V, true>, as<T>(dy), static_cast<T*>(dx));
  });
}

}  // namespace pyconv::cuda

// The words kernels are written in, and the only file that knows what they are made of: CUDA and PTX under nvcc, the
// emulator under any other compiler (csrc/emulator/words.h has the same words). A kernel includes nothing else of CUDA,
// never asks which of the two it is in, and takes all its shared memory from shared().
//
//   shared<S>()                 the block's shared memory as one struct; the kernel is launched with sizeof(S)
//   read(p), write(p, v)        one value of any storage type, widened to acc_t<T> and rounded once
//   read4(p), write4(p, v)      four floats at once; p is aligned to 16 bytes
//   read_pack<V>(p), write_pack(p, pack)   V neighbours at once, as Pack<T, V>{v[V]}; p is aligned to them
//   copy_async<bytes>(to, from, wanted)   global to shared memory, later; zeros where not wanted, and nothing is read then
//   copy_async_commit()         closes a group of copies
//   copy_async_wait<n>()        all but the newest n groups of this thread are there
//   load_matrices<transposed>(d, row)     four 8 x 8 matrices of 16-bit values from shared memory, a row from each lane
//   multiply_add(T(), d, a, b)  D += A * B on the tensor cores: 16 x 8 += 16 x 16 * 16 x 8 of bf16 or f16, sums in float;
//                               of floats, 16 x 8 += 16 x 8 * 8 x 8, whose bits came from round_to_tf32
//   round_to_tf32(bits)         those of the nearest float with 10 bits of mantissa, of two the one away from zero
//   launch(kernel, grid, block, shared_bytes, stream, arguments...)       0, or the error's number
//   error_text(number)          that error in words
// and of CUDA: threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, shuffles and ballots.
#pragma once
#include <type_traits>

#include "common/launch.h"
#include "common/shape.h"

#if !defined(__CUDACC__)
#include "emulator/words.h"
#else
#include <cuda_runtime.h>

#define PYCONV_DEVICE __device__ __forceinline__

namespace pyconv::cuda {

template <class Shared>
PYCONV_DEVICE Shared& shared() {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  return *reinterpret_cast<Shared*>(shared_memory);
}

PYCONV_DEVICE double read(const double* p) { return *p; }
PYCONV_DEVICE float read(const float* p) { return *p; }
PYCONV_DEVICE float read(const bf16* p) { return __uint_as_float(uint32_t(p->bits) << 16); }
PYCONV_DEVICE float read(const f16* p) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(p->bits));
  return v;
}
PYCONV_DEVICE void write(double* p, double v) { *p = v; }
PYCONV_DEVICE void write(float* p, float v) { *p = v; }
PYCONV_DEVICE void write(bf16* p, float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }
PYCONV_DEVICE void write(f16* p, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }

PYCONV_DEVICE float4 read4(const float* p) { return *reinterpret_cast<const float4*>(p); }
PYCONV_DEVICE void write4(float* p, const float4& v) { *reinterpret_cast<float4*>(p) = v; }

template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T v[V];
};
// One access of so many bytes, which the compiler does not take apart.
template <int bytes>
using Bits =
    std::conditional_t<bytes == 16, uint4,
                       std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, unsigned, unsigned short>>>;
template <int V, class T>
PYCONV_DEVICE Pack<T, V> read_pack(const T* p) {
  const auto bits = *reinterpret_cast<const Bits<V * sizeof(T)>*>(p);
  Pack<T, V> pack;
  memcpy(&pack, &bits, sizeof pack);
  return pack;
}
template <class T, int V>
PYCONV_DEVICE void write_pack(T* p, const Pack<T, V>& pack) {
  Bits<V * sizeof(T)> bits;
  memcpy(&bits, &pack, sizeof bits);
  *reinterpret_cast<Bits<V * sizeof(T)>*>(p) = bits;
}

template <int bytes>
PYCONV_DEVICE void copy_async(void* to, const void* from, bool wanted) {
  const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (bytes == 16) {  // past L1, which it would only wash out
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from), "r"(wanted ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(from), "n"(bytes),
                 "r"(wanted ? bytes : 0)
                 : "memory");
  }
}
PYCONV_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int newest>
PYCONV_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
}

template <bool transposed>
PYCONV_DEVICE void load_matrices(uint32_t (&d)[4], const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from)
                 : "memory");
  }
}

#define PYCONV_MMA(shape, type)                                                       \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
PYCONV_DEVICE void multiply_add(bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  PYCONV_MMA("m16n8k16", "bf16");
}
PYCONV_DEVICE void multiply_add(f16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  PYCONV_MMA("m16n8k16", "f16");
}
PYCONV_DEVICE void multiply_add(float, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  PYCONV_MMA("m16n8k8", "tf32");
}
#undef PYCONV_MMA
PYCONV_DEVICE uint32_t round_to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
           Arguments&&... arguments) {
  if (noted(kernel, grid, block, shared_bytes)) return 0;
  if (shared_bytes > 48 * 1024) {  // more must be asked for
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

inline const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace pyconv::cuda
#endif

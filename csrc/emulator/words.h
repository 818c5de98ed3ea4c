// The emulator's half of csrc/cuda/vocabulary.h: CUDA's words and the vocabulary's own, in plain C++20 for g++ or clang.
// Needs no CUDA toolkit. Kernels include it through the vocabulary only.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>

#include "common/dtype.h"
#include "common/launch.h"

#define __global__
#define __device__
// One block runs at a time: what its threads share is what the process has once, in a section of its own, so that it can
// be told apart. pyconv's kernels use shared(), which takes the size that a kernel was launched with.
#define __shared__ static __attribute__((section("pyconv_shared")))
#define __launch_bounds__(...)
#define PYCONV_DEVICE inline __attribute__((always_inline))
// Where a word was called from, for its error messages.
#define PYCONV_PLACE std::source_location place = std::source_location::current()

namespace pyconv::emulator {

struct Index3 {
  unsigned x, y, z;
};

// An error number of a launch, 0 for none; failure() has the sentence.
int launch(const Index3& grid, const Index3& block, size_t shared_bytes, void (*body)(void*), void* arguments);

const char* failure_text();

void* shared_memory(size_t bytes);
enum class Vote { none, any, all, count };
int barrier(Vote vote, int predicate, std::source_location place);
void sync_warp(uint32_t mask, std::source_location place);
enum class Shuffle { from, up, down, exclusive_or };
uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int lane, std::source_location place);
uint32_t ballot(uint32_t mask, int predicate, std::source_location place);
enum class Fragment { bf16, f16, tf32 };
void mma(Fragment type, float* d, const uint32_t* a, const uint32_t* b, std::source_location place);
void load_matrices(uint32_t* d, bool transposed, const void* row, std::source_location place);
void copy_async(void* to, const void* from, int bytes, bool wanted, std::source_location place);
void copy_async_commit();
void copy_async_wait(int newest);
void require_aligned(const void* address, size_t bytes, std::source_location place);

}  // namespace pyconv::emulator

// --- CUDA's own words

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

extern pyconv::emulator::Index3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

inline void __syncthreads(PYCONV_PLACE) { pyconv::emulator::barrier(pyconv::emulator::Vote::none, 0, place); }
inline int __syncthreads_or(int p, PYCONV_PLACE) {
  return pyconv::emulator::barrier(pyconv::emulator::Vote::any, p, place);
}
inline void __syncwarp(uint32_t mask = ~0u, PYCONV_PLACE) { pyconv::emulator::sync_warp(mask, place); }

template <class T>
T __shfl_sync_as(pyconv::emulator::Shuffle kind, uint32_t mask, T value, int lane, std::source_location place) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves a register or two");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = pyconv::emulator::shuffle(kind, mask, bits, lane, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int lane, PYCONV_PLACE) {
  return __shfl_sync_as(pyconv::emulator::Shuffle::from, mask, value, lane, place);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int delta, PYCONV_PLACE) {
  return __shfl_sync_as(pyconv::emulator::Shuffle::down, mask, value, delta, place);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int delta, PYCONV_PLACE) {
  return __shfl_sync_as(pyconv::emulator::Shuffle::up, mask, value, delta, place);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, PYCONV_PLACE) {
  return __shfl_sync_as(pyconv::emulator::Shuffle::exclusive_or, mask, value, lane_mask, place);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, PYCONV_PLACE) {
  return pyconv::emulator::ballot(mask, predicate, place);
}

// --- the vocabulary's words, as csrc/cuda/vocabulary.h explains them

namespace pyconv::cuda {

template <class Shared>
Shared& shared() {
  return *static_cast<Shared*>(emulator::shared_memory(sizeof(Shared)));
}

template <class T>
PYCONV_DEVICE acc_t<T> read(const T* p) {
  return widen(*p);
}
template <class T>
PYCONV_DEVICE void write(T* p, acc_t<T> value) {
  store(p, value);
}

using Vector4 = float __attribute__((vector_size(16), may_alias));
PYCONV_DEVICE float4 read4(const float* p, PYCONV_PLACE) {
  emulator::require_aligned(p, 16, place);
  const Vector4 v = *reinterpret_cast<const Vector4*>(p);
  return {v[0], v[1], v[2], v[3]};
}
PYCONV_DEVICE void write4(float* p, const float4& v, PYCONV_PLACE) {
  emulator::require_aligned(p, 16, place);
  *reinterpret_cast<Vector4*>(p) = Vector4{v.x, v.y, v.z, v.w};
}

template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T v[V];
};
// One access of so many bytes, which the compiler does not take apart.
template <size_t bytes>
struct Bits;
template <>
struct Bits<2> {
  typedef uint16_t type __attribute__((may_alias));
};
template <>
struct Bits<4> {
  typedef uint32_t type __attribute__((may_alias));
};
template <>
struct Bits<8> {
  typedef uint64_t type __attribute__((may_alias));
};
template <>
struct Bits<16> {
  typedef float type __attribute__((vector_size(16), may_alias));
};
template <int V, class T>
PYCONV_DEVICE Pack<T, V> read_pack(const T* p, PYCONV_PLACE) {
  emulator::require_aligned(p, sizeof(Pack<T, V>), place);
  using Type = typename Bits<V * sizeof(T)>::type;
  const Type bits = *reinterpret_cast<const Type*>(p);
  static_assert(sizeof bits == sizeof(Pack<T, V>), "all of it");
  Pack<T, V> pack;
  std::memcpy(&pack, &bits, sizeof pack);
  return pack;
}
template <class T, int V>
PYCONV_DEVICE void write_pack(T* p, const Pack<T, V>& pack, PYCONV_PLACE) {
  emulator::require_aligned(p, sizeof pack, place);
  typename Bits<V * sizeof(T)>::type bits;
  std::memcpy(&bits, &pack, sizeof bits);
  *reinterpret_cast<typename Bits<V * sizeof(T)>::type*>(p) = bits;
}

template <int bytes>
PYCONV_DEVICE void copy_async(void* to, const void* from, bool wanted, PYCONV_PLACE) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::copy_async(to, from, bytes, wanted, place);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int newest>
void copy_async_wait() {
  emulator::copy_async_wait(newest);
}

template <bool transposed>
PYCONV_DEVICE void load_matrices(uint32_t (&d)[4], const void* row, PYCONV_PLACE) {
  emulator::load_matrices(d, transposed, row, place);
}
inline void multiply_add(bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], PYCONV_PLACE) {
  emulator::mma(emulator::Fragment::bf16, d, a, b, place);
}
inline void multiply_add(f16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], PYCONV_PLACE) {
  emulator::mma(emulator::Fragment::f16, d, a, b, place);
}
inline void multiply_add(float, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], PYCONV_PLACE) {
  emulator::mma(emulator::Fragment::tf32, d, a, b, place);
}
// To nearest, ties away from zero; an infinity stays, and a NaN stays one.
PYCONV_DEVICE uint32_t round_to_tf32(uint32_t bits) {
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  return (bits + 0x1000u) & ~0x1fffu;
}

inline const char* error_text(int) { return emulator::failure_text(); }

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* /*stream*/,
           Arguments&&... arguments) {
  if (noted(kernel, grid, block, shared_bytes)) return 0;
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  } call{kernel, {static_cast<Parameters>(arguments)...}};
  return emulator::launch(
      {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes,
      [](void* c) {
        const Call& call = *static_cast<Call*>(c);
        std::apply(call.kernel, call.parameters);  // by value: every thread has its own
      },
      &call);
}

}  // namespace pyconv::cuda

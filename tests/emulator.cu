// Small kernels, most of them wrong, to see whether the emulator sees it: tests/test_emulator.py calls each by its name.
#include "cuda/vocabulary.h"

namespace {

using namespace pyconv::cuda;

struct Shared {
  float v[64 * 32];
  alignas(16) float vector[8];
};

// --- right

__global__ void reverse(float* y, int n) {  // y[i] = n - 1 - i, through shared memory
  auto& s = shared<Shared>();
  const int i = threadIdx.x;
  s.v[i] = float(i);
  __syncthreads();
  y[i] = s.v[n - 1 - i];
}

__global__ void warp_sum(float* y, int) {  // y[i] = 0 + 1 + ... + 31
  float sum = float(threadIdx.x % 32);
  for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  y[threadIdx.x] = sum;
}

__global__ void shuffles(float* y, int) {  // down by one, up by one, from lane 3, and who is odd
  const float lane = float(threadIdx.x);
  const float down = __shfl_down_sync(~0u, lane, 1), up = __shfl_up_sync(~0u, lane, 1);
  const float from = __shfl_sync(~0u, lane, 3);
  const uint32_t odd = __ballot_sync(~0u, threadIdx.x % 2);
  y[threadIdx.x] = down + 100 * up + 10000 * from + (odd == 0xaaaaaaaau ? 100000 : 0);
}

__global__ void half_warps(float* y, int) {  // two groups of lanes of one warp meet by themselves
  const uint32_t mine = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  float sum = 1;
  for (int half = 8; half > 0; half /= 2) sum += __shfl_xor_sync(mine, sum, half);
  y[threadIdx.x] = sum;
}

__global__ void copies(float* y, int n) {
  auto& s = shared<Shared>();
  const int i = threadIdx.x;
  copy_async<4>(&s.v[i], &y[i], i % 2 == 0);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  y[i] = s.v[n - 1 - i];
}

// --- wrong

__global__ void no_barrier(float* y, int n) {
  auto& s = shared<Shared>();
  const int i = threadIdx.x;
  s.v[i] = float(i);
  y[i] = s.v[n - 1 - i];
}

__global__ void barrier_for_some(float* y, int) {
  if (threadIdx.x < 7) __syncthreads();
  y[threadIdx.x] = 0;
}

__global__ void two_barriers(float* y, int) {
  if (threadIdx.x < 7) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 0;
}

__global__ void barrier_after_return(float* y, int) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
  y[threadIdx.x] = 0;
}

__global__ void shuffle_without_some(float* y, int) {
  float v = 1;
  if (threadIdx.x < 16) v = __shfl_xor_sync(~0u, v, 1);
  y[threadIdx.x] = v;
}

__global__ void lane_outside_its_mask(float* y, int) { y[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 1); }

__global__ void lane_outside_the_mask(float* y, int) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 16);
}

__global__ void misaligned(float* y, int) {
  auto& s = shared<Shared>();
  y[threadIdx.x] = read4(&s.vector[1]).x;
}

__global__ void no_wait(float* y, int) {
  auto& s = shared<Shared>();
  const int i = threadIdx.x;
  copy_async<4>(&s.v[i], &y[i], true);
  copy_async_commit();
  y[i] = s.v[i];
}

__global__ void waits_for_too_little(float* y, int) {
  auto& s = shared<Shared>();
  const int i = threadIdx.x;
  copy_async<4>(&s.v[i], &y[i], true);
  copy_async_commit();
  copy_async_wait<1>();
  y[i] = s.v[i];
}

__global__ void past_the_end(float* y, int n) { y[threadIdx.x + 64 - n + 1] = 0; }

__global__ void far_away(float* y, int) { y[threadIdx.x] = y[threadIdx.x + (1 << 20)]; }

__global__ void past_shared(float* y, int) {
  auto& s = shared<Shared>();
  s.vector[threadIdx.x] = 1;
  y[threadIdx.x] = s.vector[threadIdx.x];
}

__global__ void all_write_one(float* y, int) { y[0] = float(threadIdx.x); }

__global__ void reads_what_another_writes(float* y, int n) {
  if (threadIdx.x == 0) y[1] = 1;
  if (int(threadIdx.x) == n - 1) y[2] = y[1];
}

__global__ void warp_writes_without_sync(float* y, int) {  // lanes of one warp are not ordered either
  auto& s = shared<Shared>();
  s.v[threadIdx.x] = 1;
  y[threadIdx.x] = s.v[threadIdx.x ^ 1];
}

__global__ void warp_writes_with_sync(float* y, int) {
  auto& s = shared<Shared>();
  s.v[threadIdx.x] = 1;
  __syncwarp();
  y[threadIdx.x] = s.v[threadIdx.x ^ 1];
}

// --- traffic

template <int step>
__global__ void strided(float* y, int) {
  auto& s = shared<Shared>();
  s.v[threadIdx.x * step] = y[threadIdx.x * (step % 3)];
}

__global__ void unwritten_shared(float* y, int) { y[threadIdx.x] = shared<Shared>().v[threadIdx.x]; }

}  // namespace

#define TEST_AS(name, kernel)                                                                                 \
  extern "C" __attribute__((visibility("default"))) int name(float* y, int threads, int shared_bytes) {       \
    return launch(::kernel, dim3{1, 1, 1}, dim3{unsigned(threads), 1, 1}, shared_bytes, nullptr, y, threads); \
  }
#define TEST(name) TEST_AS(name, name)
namespace exported {
TEST(reverse)
TEST(warp_sum)
TEST(shuffles)
TEST(half_warps)
TEST(copies)
TEST(no_barrier)
TEST(barrier_for_some)
TEST(two_barriers)
TEST(barrier_after_return)
TEST(shuffle_without_some)
TEST(lane_outside_its_mask)
TEST(lane_outside_the_mask)
TEST(misaligned)
TEST(no_wait)
TEST(waits_for_too_little)
TEST(past_the_end)
TEST(far_away)
TEST(past_shared)
TEST(all_write_one)
TEST(reads_what_another_writes)
TEST(warp_writes_without_sync)
TEST(warp_writes_with_sync)
TEST(unwritten_shared)
TEST_AS(stride_1, strided<1>)
TEST_AS(stride_2, strided<2>)
TEST_AS(stride_32, strided<32>)
}  // namespace exported

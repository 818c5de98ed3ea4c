// Operands that lie in NCHW, copied to channels_last in the workspace, for kernels that take several channels at once.
#pragma once
#include "cuda/conv2d/gemm.h"
#include "cuda/library.h"
#include "cuda/vocabulary.h"

namespace pyconv::cuda::conv2d {

constexpr int turn_side = 32, turn_rows = 8;

// to[n][p][c] = from[n][c][p]. A block has 32 x 32 values, and both sides of its copies run along memory.
template <class Bits>
__global__ void __launch_bounds__(turn_side* turn_rows) turn(const Bits* from, Bits* to, int N, int C, int P) {
  struct Shared {
    Bits value[turn_side][turn_side + 4 / sizeof(Bits)];  // a column meets no bank twice
  };
  auto& shared = cuda::shared<Shared>();
  const int x = threadIdx.x % turn_side, y = threadIdx.x / turn_side;
  const int p = blockIdx.x * turn_side, c = blockIdx.y * turn_side;
  for (int n = blockIdx.z; n < N; n += gridDim.z) {
    const Bits* image = from + int64_t(n) * C * P;
    Bits* turned = to + int64_t(n) * C * P;
    for (int i = y; i < turn_side; i += turn_rows) {
      if (c + i < C && p + x < P) shared.value[i][x] = image[int64_t(c + i) * P + p + x];
    }
    __syncthreads();
    for (int i = y; i < turn_side; i += turn_rows) {
      if (p + i < P && c + x < C) turned[int64_t(p + i) * C + c + x] = shared.value[x][i];
    }
    __syncthreads();  // all have read before the next image is written
  }
}

// Turns what kernels are given, one after the other, into the workspace.
class Turner {
 public:
  Turner(const Place& at, const Conv2dShape& s, int64_t used) : shape_(s), stream_(at.stream) {
    next_ = static_cast<char*>(at.workspace) + used;
  }

  // N images of C channels of P pixels, in channels_last. Does nothing where they are, or after an error.
  template <class T>
  const T* take(const void* from, int64_t N, int64_t C, int64_t P) {
    using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    if (shape_.layout == Layout::nhwc || error || N * C * P == 0) return static_cast<const T*>(from);
    Bits* to = reinterpret_cast<Bits*>(next_);
    next_ += turned_bytes(shape_, N * C * P);
    const dim3 grid = {unsigned(divide_up(P, turn_side)), unsigned(divide_up(C, turn_side)),
                       unsigned(at_most(N, 65535))};
    error = launch(turn<Bits>, grid, dim3{turn_side * turn_rows, 1, 1},
                   sizeof(Bits) * turn_side * (turn_side + 4 / sizeof(Bits)), stream_, static_cast<const Bits*>(from),
                   to, int(N), int(C), int(P));
    return reinterpret_cast<const T*>(to);
  }

  int error = 0;

 private:
  const Conv2dShape& shape_;
  void* stream_;
  char* next_;
};

}  // namespace pyconv::cuda::conv2d

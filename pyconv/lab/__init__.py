"""A CUDA kernel of your own, without a GPU: compiled in a second, run, checked, measured.

One .cu file of plain CUDA holds it:

    __global__ void doubled(const float* x, float* y, int n) {
      const int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < n) y[i] = 2 * x[i];
    }

    from pyconv import lab
    doubled = lab.kernel("doubled.cu")
    x, y = torch.randn(100), torch.empty(100)
    print(doubled.check(x, y, 100, grid=4, block=32, expected=2 * x))

`check` runs it with its threads in several orders and says whether y is right in each, which lines race,
read what nobody wrote or go out of bounds, and what each line asks of memory: 32-byte sectors, and passes
over the banks of shared memory, beside the fewest that could do. How: docs/cuda.md. Three exercises with
their reports are in docs/lab.md; `python -m pyconv.lab` prints them.

What a kernel may use: threadIdx, blockIdx, blockDim, gridDim, __shared__ variables, __syncthreads,
__syncwarp, shuffles, ballots, and the words of csrc/cuda/vocabulary.h in namespace pyconv::cuda. Not
atomics, nor textures, nor `extern __shared__`, which is `shared<S>()` there.
"""

from pyconv.lab._kernel import Kernel as Kernel
from pyconv.lab._kernel import Result as Result
from pyconv.lab._kernel import kernel as kernel

// Kernels for tests/test_lab.py: what the lab can pass, and mistakes with __shared__ variables.
__global__ void sums(const float* a, const pyconv::bf16* b, const int* c, double* y, long long* z, int n, float f) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[i] = a[i] + pyconv::widen(b[i]) * double(f);
  z[i] = c[i] + n;
}

__global__ void __launch_bounds__(64) reverse(float* y, int n) {
  __shared__ float v[64];
  v[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = v[n - 1 - threadIdx.x];
}

__global__ void unwritten(float* y) {
  __shared__ float v[32];
  if (threadIdx.x > 0) v[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = v[threadIdx.x];
}

__global__ void beyond(float* y) {
  __shared__ float w[4096];
  w[threadIdx.x * 200] = 1;
  __syncthreads();
  y[threadIdx.x] = w[(31 - threadIdx.x) * 200];
}

__global__ void at_run_time(float* y) {
  float (&v)[32] = pyconv::cuda::shared<float[32]>();
  v[threadIdx.x] = 1;
  y[threadIdx.x] = v[threadIdx.x];
}

__global__ void diverges(float* y) {
  if (threadIdx.x < 7) __syncthreads();
  y[threadIdx.x] = 0;
}

struct Pair {
  int a, b;
};
__global__ void takes_a_struct(float* y, Pair p) { y[threadIdx.x] = float(p.a); }

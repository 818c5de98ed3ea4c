// An image of C channels of P pixels, from NCHW to channels_last: y[p,c] = x[c,p].

// Neighbouring threads write neighbours, and read what lies P values apart.
__global__ void direct(const float* x, float* y, int C, int P) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < C * P) y[i] = x[i % C * P + i / C];
}

// A block of 32 x 8 threads turns a tile of 32 x 32 around in shared memory, whose rows are `pitch` apart.
__global__ void turned(const float* x, float* y, int C, int P, int pitch) {
  __shared__ float tile[32 * 33];
  const int c = blockIdx.y * 32, p = blockIdx.x * 32;
  for (int row = threadIdx.y; row < 32; row += 8) {
    tile[row * pitch + threadIdx.x] = x[(c + row) * P + p + threadIdx.x];
  }
  __syncthreads();
  for (int row = threadIdx.y; row < 32; row += 8) {
    y[(p + row) * C + c + threadIdx.x] = tile[threadIdx.x * pitch + row];
  }
}

// The same convolution, 3x3: a block takes the pixels that its 16 x 16 outputs need into shared memory,
// one channel after the other, so that each is read from global memory once and not nine times.
__global__ void tiled(const float* x, const float* w, float* y, int IC, int IH, int IW, bool barrier) {
  __shared__ float tile[18][18];
  const int OH = IH - 2, OW = IW - 2, top = blockIdx.y * 16, left = blockIdx.x * 16, oc = blockIdx.z;
  const int h = threadIdx.y, v = threadIdx.x;
  float sum = 0;
  for (int ic = 0; ic < IC; ic++) {
    for (int i = h * 16 + v; i < 18 * 18; i += 256) {
      const int ih = top + i / 18, iw = left + i % 18;
      tile[i / 18][i % 18] = ih < IH && iw < IW ? x[(ic * IH + ih) * IW + iw] : 0;
    }
    __syncthreads();  // the tile is there
    for (int k = 0; k < 9; k++) sum += tile[h + k / 3][v + k % 3] * w[(oc * IC + ic) * 9 + k];
    if (barrier) __syncthreads();  // all have read it, and it may be overwritten
  }
  if (top + h < OH && left + v < OW) y[(oc * OH + top + h) * OW + left + v] = sum;
}

// Convolution, one thread for each value of y:
//   y[oc,oh,ow] = sum over ic, kh, kw of x[ic,oh+kh,ow+kw] * w[oc,ic,kh,kw]
__global__ void naive(const float* x, const float* w, float* y, int IC, int IH, int IW, int K) {
  const int OH = IH - K + 1, OW = IW - K + 1;
  const int ow = blockIdx.x * blockDim.x + threadIdx.x;
  const int oh = blockIdx.y * blockDim.y + threadIdx.y;
  const int oc = blockIdx.z;
  if (oh >= OH || ow >= OW) return;
  float sum = 0;
  for (int ic = 0; ic < IC; ic++) {
    for (int kh = 0; kh < K; kh++) {
      for (int kw = 0; kw < K; kw++) {
        sum += x[(ic * IH + oh + kh) * IW + ow + kw] * w[((oc * IC + ic) * K + kh) * K + kw];
      }
    }
  }
  y[(oc * OH + oh) * OW + ow] = sum;
}

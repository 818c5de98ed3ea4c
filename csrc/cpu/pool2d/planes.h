// pool2d / planes.
// Computes  y[n,c] = (sum over ih, iw of x[n,c,ih,iw]) / divisor;  dx[n,c,ih,iw] = dy[n,c] / divisor
// Shapes    x (N,C,IH,IW), y (N,C,1,1): float32 NCHW, one window over the whole plane: global average pooling
// Tiling    thread: planes; registers: CHAINS vectors of sums, to hide the latency of an addition
// Cost      one addition per pixel
// Limits    float32, NCHW, one output per plane, no padding that a window could reach.   Source: Lin et al.,
//           Network in network, arXiv:1312.4400, section 3.2

namespace pool2d_planes {
namespace {

constexpr int64_t L = Vec<float>::size;
constexpr int64_t CHAINS = 4;
constexpr int64_t serial_pixels = 32768;  // pixels below which one thread is enough

template <class Body>
void for_planes(const Pool2dShape& s, const Body& body) {
  const int64_t pixels = s.h.in * s.w.in;
  parallel_for(s.N * s.C, divide_up(serial_pixels, pixels), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane++) body(plane, pixels);
  });
}

float sum_of(const float* x, int64_t count) {
  vec<float> sum[CHAINS] = {};
  int64_t i = 0;
  for (; i + CHAINS * L <= count; i += CHAINS * L) {
    for (int64_t k = 0; k < CHAINS; k++) sum[k] += load(x + i + k * L);
  }
  for (; i + L <= count; i += L) sum[0] += load(x + i);
  sum[1] += load_first(x + i, count - i);
  const vec<float> lanes = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  float total = 0;
  for (int64_t k = 0; k < L; k++) total += lanes[k];
  return total;
}

void avg_fwd(const Pool2dShape& s, const float* x, float* y) {
  const float divisor = float(s.divisor(0, 0));
  for_planes(s, [&](int64_t plane, int64_t pixels) { y[plane] = sum_of(x + plane * pixels, pixels) / divisor; });
}

void avg_bwd(const Pool2dShape& s, const float* dy, float* dx) {
  const float divisor = float(s.divisor(0, 0));
  for_planes(s, [&](int64_t plane, int64_t pixels) {
    const float share = dy[plane] / divisor;
    for (int64_t i = 0; i < pixels; i++) dx[plane * pixels + i] = share;
  });
}

}  // namespace
}  // namespace pool2d_planes

// The roofs of this machine: multiply-adds from registers, and bytes between memory and registers. Compiled per ISA.
namespace peak {
namespace {

// Enough independent sums to cover the latency of an FMA on both ports, few enough to stay in registers.
constexpr int chains = PYCONV_BYTES == 64 ? 24 : 12;

template <class T>
double fma_flops(int64_t rounds) {
  vec<T> sum[chains], a = splat(T(0.999999)), b = splat(T(1e-6));
  for (int i = 0; i < chains; i++) sum[i] = splat(T(i));
  for (int64_t r = 0; r < rounds; r++) {
    _Pragma("GCC unroll 24") for (int i = 0; i < chains; i++) sum[i] = sum[i] * a + b;
  }
  vec<T> all = sum[0];
  for (int i = 1; i < chains; i++) all += sum[i];
  volatile T keep = sum_lanes<T>(all);
  static_cast<void>(keep);
  return 2.0 * chains * Vec<T>::size * rounds;
}

}  // namespace

double fma_f32(int64_t rounds) { return fma_flops<float>(rounds); }
double fma_f64(int64_t rounds) { return fma_flops<double>(rounds); }

}  // namespace peak

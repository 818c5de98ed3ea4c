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

#if PYCONV_BF16
double pair_flops(int64_t rounds) {
  vec<float> sum[chains];
  for (int i = 0; i < chains; i++) sum[i] = splat(float(i));  // equal ones would be computed once
  const __m512bh pairs = (__m512bh)splat(1e-6f);
  for (int64_t r = 0; r < rounds; r++) {
    _Pragma("GCC unroll 24") for (int i = 0; i < chains; i++) {
      sum[i] = (vec<float>)_mm512_dpbf16_ps((__m512)sum[i], pairs, pairs);
    }
  }
  vec<float> all = sum[0];
  for (int i = 1; i < chains; i++) all += sum[i];
  volatile float keep = sum_lanes<float>(all);
  static_cast<void>(keep);
  return 4.0 * chains * Vec<float>::size * rounds;
}
#endif

}  // namespace

double fma_f32(int64_t rounds) { return fma_flops<float>(rounds); }
double fma_f64(int64_t rounds) { return fma_flops<double>(rounds); }
double fma_bf16(int64_t rounds) {  // widened, where the CPU does not multiply pairs
#if PYCONV_BF16
  return pair_flops(rounds);
#else
  return fma_flops<float>(rounds);
#endif
}

}  // namespace peak

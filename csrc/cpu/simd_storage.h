// Storage types as vectors of what they are summed in, part of cpu/simd.h: load_wide(bf16*) gives as many floats as a
// vector holds.

// Calls f(T()) with the type of `dtype`, of those that this namespace is compiled for.
template <class F>
void with_storage(DType dtype, const F& f) {
#if PYCONV_BF16
  static_cast<void>(dtype);
  f(bf16());
#else
  with_type(dtype, f);
#endif
}

template <class T>
PYCONV_INLINE vec<acc_t<T>> load_wide(const T* p) {
  return load(p);
}
template <class T>
PYCONV_INLINE void store_narrow(T* p, vec<acc_t<T>> v) {
  store(p, v);
}

typedef uint16_t Halves __attribute__((vector_size(PYCONV_BYTES / 2)));
typedef uint16_t UnalignedHalves __attribute__((vector_size(PYCONV_BYTES / 2), aligned(2), may_alias));
typedef uint32_t Bits __attribute__((vector_size(PYCONV_BYTES)));

template <>
inline __attribute__((always_inline)) vec<float> load_wide(const bf16* p) {
  const Halves h = *reinterpret_cast<const UnalignedHalves*>(p);
  return (vec<float>)(__builtin_convertvector(h, Bits) << 16);
}
// To nearest even; a NaN stays one.
template <class T>
PYCONV_INLINE Halves rounded(vec<float> v);
template <>
inline __attribute__((always_inline)) Halves rounded<bf16>(vec<float> v) {
#if PYCONV_BF16
  return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
  const Bits bits = (Bits)v;
  const Bits near = bits + 0x7fffu + ((bits >> 16) & 1);
  return __builtin_convertvector((v == v ? near : Bits{} + 0x7fc00000u) >> 16, Halves);
#endif
}
#if PYCONV_BYTES == 64
template <>
inline __attribute__((always_inline)) Halves rounded<f16>(vec<float> v) {
  return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#endif
template <>
inline __attribute__((always_inline)) void store_narrow(bf16* p, vec<float> v) {
  *reinterpret_cast<UnalignedHalves*>(p) = rounded<bf16>(v);
}

template <>
inline __attribute__((always_inline)) vec<float> load_wide(const f16* p) {
#if PYCONV_BYTES == 64
  return (vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif PYCONV_BYTES == 32
  return (vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vec<float> v;
  for (int i = 0; i < Vec<float>::size; i++) v[i] = widen(p[i]);
  return v;
#endif
}
template <>
inline __attribute__((always_inline)) void store_narrow(f16* p, vec<float> v) {
#if PYCONV_BYTES == 64
  *reinterpret_cast<UnalignedHalves*>(p) = rounded<f16>(v);
#elif PYCONV_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Vec<float>::size; i++) p[i] = narrow<f16>(v[i]);
#endif
}

// Tails of storage types, through a buffer of their own.
template <class T>
PYCONV_INLINE vec<acc_t<T>> load_wide_first(const T* p, int64_t count) {
  vec<acc_t<T>> v = {};
  for (int64_t i = 0; i < count; i++) v[i] = widen(p[i]);
  return v;
}
template <>
inline __attribute__((always_inline)) vec<float> load_wide_first(const float* p, int64_t count) {
  return load_first(p, count);
}
template <class T>
PYCONV_INLINE void store_narrow_first(T* p, vec<acc_t<T>> v, int64_t count) {
  for (int64_t i = 0; i < count; i++) pyconv::store(p + i, v[i]);
}
template <>
inline __attribute__((always_inline)) void store_narrow_first(float* p, vec<float> v, int64_t count) {
  store_first(p, v, count);
}

#if PYCONV_BYTES == 64
template <>
inline __attribute__((always_inline)) vec<float> load_wide_first(const bf16* p, int64_t count) {
  const __m256i h = _mm256_maskz_loadu_epi16(first_lanes(count), p);
  return (vec<float>)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, h), 16);
}
template <>
inline __attribute__((always_inline)) vec<float> load_wide_first(const f16* p, int64_t count) {
  return (vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(first_lanes(count), p));
}
template <>
inline __attribute__((always_inline)) void store_narrow_first(bf16* p, vec<float> v, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), (__m256i)rounded<bf16>(v));
}
template <>
inline __attribute__((always_inline)) void store_narrow_first(f16* p, vec<float> v, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), (__m256i)rounded<f16>(v));
}
#endif

// The first `count` values, or a whole vector if there are as many.
template <class T>
PYCONV_INLINE vec<acc_t<T>> load_up_to(const T* p, int64_t count) {
  return count >= Vec<acc_t<T>>::size ? load_wide(p) : load_wide_first(p, count);
}
template <class T>
PYCONV_INLINE void store_up_to(T* p, vec<acc_t<T>> v, int64_t count) {
  if (count >= Vec<acc_t<T>>::size) {
    store_narrow(p, v);
  } else {
    store_narrow_first(p, v, count);
  }
}

// Lanes 0 .. count - 1 to p[0], p[step], p[2 * step], ...; what lies between stays.
template <class T>
PYCONV_INLINE void store_every(T* p, int64_t step, vec<acc_t<T>> v, int64_t count) {
#if PYCONV_BYTES == 64
  if constexpr (sizeof(T) == 2) {
    if (step == 2) {
      const __m512i lanes = _mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)rounded<T>(v));
      const uint32_t written = count >= 16 ? ~0u : (1u << 2 * count) - 1;
      return _mm512_mask_storeu_epi16(p, written & 0x55555555u, lanes);
    }
  }
#endif
  for (int64_t i = 0; i < count && i < Vec<acc_t<T>>::size; i++) pyconv::store(p + i * step, v[i]);
}

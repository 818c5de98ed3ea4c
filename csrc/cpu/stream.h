// Stores past the caches, included once per ISA by the kernels that have results too large for them.

// The caches keep what they hold. Aligned to the bytes that are written; other threads see them after streamed().
template <class V>
PYCONV_INLINE void stream(void* p, V v) {
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#endif
  __builtin_memcpy(p, &v, sizeof v);
}
template <class T>
PYCONV_INLINE void stream_narrow(T* p, vec<acc_t<T>> v) {
  if constexpr (std::is_same<T, acc_t<T>>::value) {
    stream(p, v);
  } else if constexpr (std::is_same<T, bf16>::value || PYCONV_BYTES == 64) {
    stream(p, rounded<T>(v));
  } else {
    store_narrow(p, v);
  }
}
PYCONV_INLINE void streamed() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// The vector type of one ISA: PYCONV_BYTES wide, by GCC/Clang vector extensions, so that a + b * c is an FMA where
// there is one. Included once per ISA by cpu/for_each_isa.inc, inside that ISA's namespace; hence no include guard.

template <class T>
struct Vec {
  typedef T type __attribute__((vector_size(PYCONV_BYTES)));
  typedef T unaligned __attribute__((vector_size(PYCONV_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int64_t size = PYCONV_BYTES / sizeof(T);  // lanes
};
template <class T>
using vec = typename Vec<T>::type;

#define PYCONV_INLINE static inline __attribute__((always_inline))

template <class T>
PYCONV_INLINE vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Vec<T>::unaligned*>(p);
}

template <class T>
PYCONV_INLINE void store(T* p, vec<T> v) {
  *reinterpret_cast<typename Vec<T>::unaligned*>(p) = v;
}

template <class T>
PYCONV_INLINE vec<T> splat(T v) {
  return v - vec<T>{};
}

// The first `count` lanes; the rest read as zero and are not written.
template <class T>
PYCONV_INLINE vec<T> load_first(const T* p, int64_t count) {
  vec<T> v = {};
  for (int64_t i = 0; i < count; i++) v[i] = p[i];
  return v;
}

template <class T>
PYCONV_INLINE void store_first(T* p, vec<T> v, int64_t count) {
  for (int64_t i = 0; i < count; i++) p[i] = v[i];
}

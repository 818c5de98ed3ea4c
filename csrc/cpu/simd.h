// The vector type of one ISA: PYCONV_BYTES wide, by GCC/Clang vector extensions, so that a + b * c is an FMA where
// there is one. Intrinsics only where the extensions have no word: masked memory and float16. Included once per ISA by
// cpu/for_each_isa.inc, inside that ISA's namespace; hence no include guard.

template <class T>
struct Vec {
  typedef T type __attribute__((vector_size(PYCONV_BYTES)));
  typedef T unaligned __attribute__((vector_size(PYCONV_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int64_t size = PYCONV_BYTES / sizeof(T);  // lanes
};
template <class T>
using vec = typename Vec<T>::type;

#define PYCONV_INLINE static inline __attribute__((always_inline))
#define PYCONV_NOINLINE __attribute__((noinline))  // one copy per instance: half the time of compiling

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

// A value that stays in a register: GCC 12 would rather load again for each of several FMAs, and loads are the limit.
template <class V>
PYCONV_INLINE V keep(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
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

#if PYCONV_BYTES == 64
PYCONV_INLINE __mmask16 first_lanes(int64_t count) { return count >= 16 ? 0xffff : (1u << count) - 1; }
template <>
inline __attribute__((always_inline)) vec<float> load_first(const float* p, int64_t count) {
  return (vec<float>)_mm512_maskz_loadu_ps(first_lanes(count), p);
}
template <>
inline __attribute__((always_inline)) void store_first(float* p, vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), (__m512)v);
}
#elif PYCONV_BYTES == 32
PYCONV_INLINE __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
inline __attribute__((always_inline)) vec<float> load_first(const float* p, int64_t count) {
  return (vec<float>)_mm256_maskload_ps(p, first_lanes(count));
}
template <>
inline __attribute__((always_inline)) void store_first(float* p, vec<float> v, int64_t count) {
  _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
}
#endif

// Lanes [from, to), for memory of which only those may be touched, and for sums that only those enter.
template <class T>
struct Lanes {
#if PYCONV_BYTES == 64
  __mmask16 bits;
  Lanes() = default;
  Lanes(int64_t from, int64_t to) : bits(from < to ? (1u << to) - (1u << from) : 0) {}
#else
  typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type lane[Vec<T>::size];
  Lanes() = default;
  Lanes(int64_t from, int64_t to) {
    for (int64_t i = 0; i < Vec<T>::size; i++) lane[i] = i >= from && i < to ? -1 : 0;
  }
#endif
};

// Lanes that stay in a mask register, where there are such: GCC 12 would rather load them again at every use.
template <class T>
PYCONV_INLINE Lanes<T> keep(Lanes<T> lanes) {
#if PYCONV_BYTES == 64
  asm("" : "+Yk"(lanes.bits));
#endif
  return lanes;
}

#if PYCONV_BYTES == 16
template <class T>
PYCONV_NOINLINE vec<T> gather_lanes(const T* p, const Lanes<T>& lanes) {
  vec<T> v = {};
  for (int64_t i = 0; i < Vec<T>::size; i++) {
    if (lanes.lane[i]) v[i] = p[i];
  }
  return v;
}
#endif

// The lanes of what stands at p; the rest read as zero.
template <class T>
PYCONV_INLINE vec<T> load_lanes(const T* p, const Lanes<T>& lanes) {
#if PYCONV_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return (vec<T>)_mm512_maskz_loadu_ps(lanes.bits, p);
  } else {
    return (vec<T>)_mm512_maskz_loadu_pd(lanes.bits, p);
  }
#elif PYCONV_BYTES == 32
  const __m256i mask = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes.lane));
  if constexpr (sizeof(T) == 4) {
    return (vec<T>)_mm256_maskload_ps(reinterpret_cast<const float*>(p), mask);
  } else {
    return (vec<T>)_mm256_maskload_pd(reinterpret_cast<const double*>(p), mask);
  }
#else
  return gather_lanes(p, lanes);
#endif
}

// sum + a * b in the lanes, sum in the rest, whatever a and b hold there.
template <class T>
PYCONV_INLINE vec<T> multiply_add(const Lanes<T>& lanes, vec<T> a, vec<T> b, vec<T> sum) {
#if PYCONV_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return (vec<T>)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)sum, lanes.bits);
  } else {
    return (vec<T>)_mm512_mask3_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum, lanes.bits);
  }
#else
  typedef decltype(a < b) Bits;
  Bits mask;
  __builtin_memcpy(&mask, lanes.lane, sizeof mask);
  return sum + (vec<T>)((Bits)a & mask) * (vec<T>)((Bits)b & mask);
#endif
}

#include "cpu/simd_storage.h"

// Which lanes of (a, b), a's numbered from 0 and b's from L, a shuffle takes. Constants in memory: GCC 12 builds a
// vector of them lane by lane at run time.
template <class T>
struct Order {
  typedef typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type Lane;
  typedef Lane Lanes __attribute__((vector_size(PYCONV_BYTES)));
  alignas(PYCONV_BYTES) Lane lane[Vec<T>::size];
};
template <class T>
PYCONV_INLINE vec<T> shuffle(vec<T> a, vec<T> b, const Order<T>& order) {
#if defined(__clang__)
  vec<T> r;
  for (int j = 0; j < Vec<T>::size; j++)
    r[j] = order.lane[j] < Vec<T>::size ? a[order.lane[j]] : b[order.lane[j] - Vec<T>::size];
  return r;
#else
  return __builtin_shuffle(a, b, *reinterpret_cast<const typename Order<T>::Lanes*>(order.lane));
#endif
}

template <class T>
struct Pair {
  vec<T> first, second;
};
template <class T>
struct PairOrder {
  Order<T> first{}, second{};
};

// Lanes 0 2 4 ... and 1 3 5 ... of (a, b): what a stride of two splits a row into, and back.
template <class T>
constexpr PairOrder<T> every_other() {
  PairOrder<T> r;
  for (int j = 0; j < Vec<T>::size; j++) r.first.lane[j] = 2 * j, r.second.lane[j] = 2 * j + 1;
  return r;
}
template <class T>
constexpr PairOrder<T> in_turn() {
  constexpr int L = Vec<T>::size;
  PairOrder<T> r;
  for (int j = 0; j < L; j++) r.first.lane[j] = j % 2 * L + j / 2, r.second.lane[j] = j % 2 * L + (L + j) / 2;
  return r;
}
template <class T>
PYCONV_INLINE Pair<T> deinterleave(vec<T> a, vec<T> b) {
  static constexpr PairOrder<T> order = every_other<T>();
  return {shuffle<T>(a, b, order.first), shuffle<T>(a, b, order.second)};
}
template <class T>
PYCONV_INLINE Pair<T> interleave(vec<T> a, vec<T> b) {
  static constexpr PairOrder<T> order = in_turn<T>();
  return {shuffle<T>(a, b, order.first), shuffle<T>(a, b, order.second)};
}

// The lanes of W vectors in turn: the first of each, the second of each, ...
template <class T, int W>
PYCONV_INLINE void interleave(vec<T> (&r)[W]) {
  _Pragma("GCC unroll 3") for (int round = 1; round < W; round *= 2) {
    vec<T> next[W];
    _Pragma("GCC unroll 4") for (int i = 0; i < W / 2; i++) {
      const Pair<T> pair = interleave<T>(r[i], r[i + W / 2]);
      next[2 * i] = pair.first, next[2 * i + 1] = pair.second;
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < W; i++) r[i] = next[i];
  }
}

// And back: the lanes of W vectors one after the other, every W-th of them from the first on, from the second on, ...
template <class T, int W>
PYCONV_INLINE void deinterleave(vec<T> (&r)[W]) {
  _Pragma("GCC unroll 3") for (int round = 1; round < W; round *= 2) {
    vec<T> next[W];
    _Pragma("GCC unroll 4") for (int i = 0; i < W / 2; i++) {
      const Pair<T> pair = deinterleave<T>(r[2 * i], r[2 * i + 1]);
      next[i] = pair.first, next[i + W / 2] = pair.second;
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < W; i++) r[i] = next[i];
  }
}

// Values 0, step, 2 * step, ... of the `left` at p, widened, for a step of 2 or 4; lanes beyond are zero.
template <class T>
PYCONV_INLINE vec<acc_t<T>> load_every(const T* p, int64_t step, int64_t left) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const auto second = [left](const T* at, int64_t from) {
    const int64_t here = left - from;
    if (here <= 0) return vec<A>{};
    return deinterleave<A>(load_up_to(at + from, here), here > L ? load_up_to(at + from + L, here - L) : vec<A>{})
        .first;
  };
  return step == 2 ? second(p, 0) : deinterleave<A>(second(p, 0), second(p, 2 * L)).first;
}

#if PYCONV_BYTES == 64
template <>
inline __attribute__((always_inline)) void store_every(float* p, int64_t step, vec<float> v, int64_t count) {
  if (step != 2) {
    for (int64_t i = 0; i < count && i < 16; i++) p[i * step] = v[i];
    return;
  }
  const Pair<float> twice = interleave<float>(v, v);
  _mm512_mask_storeu_ps(p, first_lanes(2 * count) & 0x5555, (__m512)twice.first);
  if (count > 8) _mm512_mask_storeu_ps(p + 16, first_lanes(2 * count - 16) & 0x5555, (__m512)twice.second);
}
#endif

// The sum of all lanes, halves first: the same order on every call.
template <class T>
PYCONV_INLINE T sum_lanes(typename Vec<T>::type v) {
  T lane[Vec<T>::size];
  store(lane, v);
  _Pragma("GCC unroll 4") for (int64_t half = Vec<T>::size / 2; half > 0; half /= 2) {
    _Pragma("GCC unroll 8") for (int64_t i = 0; i < half; i++) lane[i] += lane[i + half];
  }
  return lane[0];
}

// a's blocks of d lanes with bit d of their number clear, beside b's, and those with it set.
template <class T, int d>
constexpr PairOrder<T> blocks_of() {
  constexpr int L = Vec<T>::size;
  PairOrder<T> r;
  for (int j = 0; j < L; j++) r.first.lane[j] = j & d ? L + j - d : j, r.second.lane[j] = j & d ? L + j : j + d;
  return r;
}

// Rows become columns: r[i][j] and r[j][i] change places, in log2(L) rounds that exchange blocks of 1, 2, 4, ... lanes
// between rows that many apart.
template <class T, int d = 1>
PYCONV_INLINE void transpose(vec<T> (&r)[Vec<T>::size]) {
  constexpr int L = Vec<T>::size;
  static constexpr PairOrder<T> order = blocks_of<T, d>();
  _Pragma("GCC unroll 16") for (int i = 0; i < L; i++) {
    if (i & d) continue;
    const vec<T> a = r[i], b = r[i + d];
    r[i] = shuffle<T>(a, b, order.first);
    r[i + d] = shuffle<T>(a, b, order.second);
  }
  if constexpr (2 * d < L) transpose<T, 2 * d>(r);
}

// L vectors at `to`, to_pitch apart: the columns of a matrix whose rows start `pitch` apart. Lanes from `rows` on and
// vectors from `columns` on are zero.
template <class T, class A>
void load_columns(const T* from, int64_t pitch, int64_t rows, int64_t columns, A* to, int64_t to_pitch) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> r[L];
  if (rows >= L && columns >= L) {
    _Pragma("GCC unroll 16") for (int64_t i = 0; i < L; i++) r[i] = load_wide(from + i * pitch);
  } else {
    _Pragma("GCC unroll 16") for (int64_t i = 0; i < L; i++) {
      r[i] = i < rows ? load_up_to(from + i * pitch, columns) : vec<A>{};
    }
  }
  transpose<A>(r);
  _Pragma("GCC unroll 16") for (int64_t j = 0; j < L; j++) store(to + j * to_pitch, r[j]);
}

// The opposite: the first `rows` lanes of `columns` vectors, from_pitch apart, become rows of `columns` values, each
// stored by finish.store_up_to.
template <class T, class A, class Finish>
void store_columns(const A* from, int64_t from_pitch, T* to, int64_t pitch, int64_t rows, int64_t columns,
                   const Finish& finish) {
  constexpr int64_t L = Vec<A>::size;
  vec<A> r[L];
  _Pragma("GCC unroll 16") for (int64_t j = 0; j < L; j++) r[j] = load(from + j * from_pitch);
  transpose<A>(r);
  _Pragma("GCC unroll 16") for (int64_t i = 0; i < L; i++) {
    if (i < rows) finish.store_up_to(to + i * pitch, r[i], columns);
  }
}

// Where maxima stand, the vocabulary of channels.h and rows.h, included once per ISA by each.

#include "cpu/cut.h"

enum Keep { nothing, taps, indices };  // of Where

// Lanes as many and as wide as those of vec<A>: positions, and what a comparison gives.
template <class A>
using lanes = decltype(vec<A>{} < vec<A>{});
template <class A>
using lane = typename Order<A>::Lane;

template <class A, class To>
struct Few {
  typedef To type __attribute__((vector_size(Vec<A>::size * sizeof(To))));
};

// Positions as they are stored, the first `count` of them.
template <class A, class To>
PYCONV_INLINE void put(To* p, lanes<A> v, int64_t count) {
  const auto stored = __builtin_convertvector(v, typename Few<A, To>::type);
  if (count >= Vec<A>::size) {
    __builtin_memcpy(p, &stored, sizeof stored);
  } else {
    for (int64_t k = 0; k < count; k++) p[k] = stored[k];
  }
}

template <class A, class From>
PYCONV_INLINE lanes<A> get(const From* p, int64_t count) {
  typename Few<A, From>::type stored = {};
  if (count >= Vec<A>::size) {
    __builtin_memcpy(&stored, p, sizeof stored);
  } else {
    for (int64_t k = 0; k < count; k++) stored[k] = p[k];
  }
  return __builtin_convertvector(stored, lanes<A>);
}

// GCC 12 converts bytes lane by lane.
#if PYCONV_BYTES == 64
template <>
inline __attribute__((always_inline)) lanes<float> get<float>(const uint8_t* p, int64_t count) {
  const __m128i bytes =
      count >= 16 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)) : _mm_maskz_loadu_epi8(first_lanes(count), p);
  return (lanes<float>)_mm512_maskz_cvtepu8_epi32(0xffff, bytes);
}
#elif PYCONV_BYTES == 32
template <>
inline __attribute__((always_inline)) lanes<float> get<float>(const uint8_t* p, int64_t count) {
  uint64_t bytes = 0;
  __builtin_memcpy(&bytes, p, count >= 8 ? 8 : size_t(count));
  return (lanes<float>)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(bytes)));
}
#endif

template <Keep keep, class A>
PYCONV_INLINE void put(const pool2d::Where& where, int64_t at, lanes<A> v, int64_t count) {
  if constexpr (keep == taps) put<A>(where.taps + at, v, count);
  if constexpr (keep == indices) put<A>(where.indices + at, v, count);
}

// Whether the maxima at `at` are the pixel of this index, which their windows know as this tap.
template <Keep keep, class A>
PYCONV_INLINE lanes<A> stand_at(const pool2d::WhereWas& where, int64_t at, int64_t tap, int64_t index, int64_t count) {
  if constexpr (keep == taps) return get<A>(where.taps + at, count) == (lanes<A>{} + lane<A>(tap));
  return get<A>(where.indices + at, count) == (lanes<A>{} + lane<A>(index));
}

// The larger, the first of equals, and the last NaN if there is one.
template <Keep keep, class A>
PYCONV_INLINE void take_larger(vec<A> v, lanes<A> at, vec<A>& best, lanes<A>& best_at) {
  const lanes<A> larger = (v > best) | (v != v);
  best = larger ? v : best;
  if constexpr (keep != nothing) best_at = larger ? at : best_at;
}

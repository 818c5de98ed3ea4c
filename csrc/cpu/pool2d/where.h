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
template <>
inline __attribute__((always_inline)) void put<float>(uint8_t* p, lanes<float> v, int64_t count) {
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v);
  if (count >= 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  _mm_mask_storeu_epi8(p, first_lanes(count), bytes);
}
template <>
inline __attribute__((always_inline)) void put<float>(int64_t* p, lanes<float> v, int64_t count) {
  const __m512i low = _mm512_maskz_cvtepi32_epi64(0xff, _mm512_maskz_extracti32x8_epi32(0xff, (__m512i)v, 0));
  const __m512i high = _mm512_maskz_cvtepi32_epi64(0xff, _mm512_maskz_extracti32x8_epi32(0xff, (__m512i)v, 1));
  if (count >= 16) {
    _mm512_storeu_si512(p, low);
    _mm512_storeu_si512(p + 8, high);
  } else {
    _mm512_mask_storeu_epi64(p, __mmask8(first_lanes(count)), low);
    _mm512_mask_storeu_epi64(p + 8, __mmask8(first_lanes(count) >> 8), high);
  }
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
template <class A>
PYCONV_INLINE vec<A> larger_of(vec<A> best, vec<A> v) {
  return (v > best) | (v != v) ? v : best;
}
template <class A>
PYCONV_INLINE void take_larger(vec<A> v, lanes<A> at, vec<A>& best, lanes<A>& best_at) {
  const lanes<A> larger = (v > best) | (v != v);
  best = larger ? v : best;
  best_at = larger ? at : best_at;
}
// Of two equals, zeros among them, and of a NaN and a number, x86's maximum is its second operand: a NaN before it stays,
// and lanes of v that are one are left alone. GCC 12 makes six instructions of what is two and four here.
#if PYCONV_BYTES == 64
template <>
inline __attribute__((always_inline)) vec<float> larger_of<float>(vec<float> best, vec<float> v) {
  return (vec<float>)_mm512_mask_max_ps((__m512)v, _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_ORD_Q), (__m512)v,
                                        (__m512)best);
}
template <>
inline __attribute__((always_inline)) void take_larger<float>(vec<float> v, lanes<float> at, vec<float>& best,
                                                              lanes<float>& best_at) {
  const __mmask16 number = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_ORD_Q);
  const __mmask16 stays = _mm512_mask_cmp_ps_mask(number, (__m512)v, (__m512)best, _CMP_NGT_UQ);
  best = (vec<float>)_mm512_mask_max_ps((__m512)v, number, (__m512)v, (__m512)best);  // waits for no comparison
  best_at = (lanes<float>)_mm512_mask_mov_epi32((__m512i)at, stays, (__m512i)best_at);
}
#elif PYCONV_BYTES == 32
template <>
inline __attribute__((always_inline)) vec<float> larger_of<float>(vec<float> best, vec<float> v) {
  const __m256 a = (__m256)v;
  return (vec<float>)_mm256_blendv_ps(_mm256_max_ps(a, (__m256)best), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
#endif

template <Keep keep, class A>
PYCONV_INLINE void take(vec<A> v, lanes<A> at, vec<A>& best, lanes<A>& best_at) {
  if constexpr (keep == nothing) {
    best = larger_of<A>(best, v);
  } else {
    take_larger<A>(v, at, best, best_at);
  }
}

// sum + v in the lanes whose maxima stand at this pixel, their windows' `tap`.
template <Keep keep, class A>
PYCONV_INLINE vec<A> add_at(vec<A> sum, vec<A> v, const pool2d::WhereWas& where, int64_t at, int64_t tap, int64_t index,
                            int64_t count) {
#if PYCONV_BYTES == 64
  if constexpr (keep == taps && sizeof(A) == 4) {
    const uint8_t* p = where.taps + at;
    const __m128i here = count >= 16 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))
                                     : _mm_maskz_loadu_epi8(first_lanes(count), p);
    const __mmask16 found = _mm_cmpeq_epi8_mask(here, _mm_set1_epi8(char(tap)));
    return (vec<A>)_mm512_mask_add_ps((__m512)sum, found, (__m512)sum, (__m512)v);
  }
  if constexpr (keep == indices && sizeof(A) == 4) {
    const int64_t* p = where.indices + at;
    const __m512i here = _mm512_set1_epi64(index);
    const __mmask16 meant = first_lanes(count);
    const __mmask8 low = _mm512_cmpeq_epi64_mask(_mm512_maskz_loadu_epi64(__mmask8(meant), p), here);
    const __mmask8 high = _mm512_cmpeq_epi64_mask(_mm512_maskz_loadu_epi64(__mmask8(meant >> 8), p + 8), here);
    return (vec<A>)_mm512_mask_add_ps((__m512)sum, _mm512_kunpackb(high, low), (__m512)sum, (__m512)v);
  }
#endif
  return sum + (stand_at<keep, A>(where, at, tap, index, count) ? v : vec<A>{});
}

// Whether rows are asked for ahead. Two streams, one some rows behind the other, do not look sequential to a CPU: from L3's
// size on, 3x3 windows of stride 2 over 26 MB take 2.7 times as long in NCHW, and twice as long in channels_last, without;
// at 15 MB, in channels_last, 1.3 times as long with, and 1.8 times where overlapping windows' gradients are gathered (Zen 5,
// 32 MB of L3).
PYCONV_INLINE bool is_far(const Pool2dShape& s) { return s.bytes() > 16 << 20; }

template <int write, class T>
PYCONV_INLINE void prefetch(const T* next, int64_t count) {
  constexpr int64_t line = 64 / int64_t(sizeof(T)), ahead = 8192 / int64_t(sizeof(T));
  for (int64_t i = 0; i < count; i += line) __builtin_prefetch(next + ahead + i, write);
}

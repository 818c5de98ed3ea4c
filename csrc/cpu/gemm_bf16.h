// The panels of cpu/gemm.h for bfloat16 on a CPU that multiplies pairs: two terms of a row and two of a lane, side by
// side, are one 32-bit lane of vdpbf16ps, which adds both products to a float: twice the multiply-adds of float32.
//   A panel (MR rows, KP): terms of a row side by side, as in gemm.h; or a B panel
//   B panel (KC / 2 pairs, BN, 2)
// An odd number of terms is one pair more, with zeros in both panels. Included once per ISA, by gemm.h.
// Rounding: products are exact and are added one after the other to a float, to nearest even; values below 2^-126, read or
// summed, count as zero.
// Source: Intel, Architecture Instruction Set Extensions Programming Reference, VDPBF16PS

typedef uint16_t Halves32 __attribute__((vector_size(64)));  // 32 of bf16
typedef uint16_t UnalignedHalves32 __attribute__((vector_size(64), aligned(2), may_alias));

PYCONV_INLINE Halves32 load_halves(const bf16* p) { return *reinterpret_cast<const UnalignedHalves32*>(p); }
PYCONV_INLINE Halves32 load_halves(const bf16* p, int64_t count) {  // the rest read as zero
  return (Halves32)_mm512_maskz_loadu_epi16(count >= 32 ? ~0u : (1u << count) - 1, p);
}
PYCONV_INLINE void store_halves(bf16* p, Halves32 v) { *reinterpret_cast<UnalignedHalves32*>(p) = v; }

// sum[i] += sum_k a[i,k] * b[k,:], two terms at a time: those of a row side by side, those of a lane too.
template <class A, int R, int NV>
PYCONV_INLINE void add_terms(const Left<bf16>& left, const Right<bf16>& right, vec<A> (&sum)[R][NV]) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t row = left.row, term = left.term;
  // As in gemm.h, a line a pair: two threads of Zen 5, 1x1 in channels_last, 1024 -> 2048 channels to 7x7 1.09 times as
  // fast, 256 -> 64 at 56x56 1.01.
  const bool next_rows = term == 1 && row != KP<bf16>;
  const bf16 *b = right.b, *ahead = next_rows ? left.a + R * row : b + 32 * right.term;
  const int64_t step = next_rows ? 2 * R : 2 * right.term;
  for (int64_t r = 0; r < left.n; r++) {
    const bf16* a = left.a + left.runs[r].from;
    for (int64_t k = left.runs[r].count; k > 0; k -= 2, a += 2 * term, b += 2 * right.term, ahead += step) {
      Halves32 bk[NV];
      __builtin_prefetch(ahead);
      _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) bk[v] = load_halves(b + v * 2 * L);
      _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
        int pair;
        __builtin_memcpy(&pair, a + i * row, sizeof pair);
        const __m512bh aik = (__m512bh)_mm512_set1_epi32(pair);
        _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) {
          sum[i][v] = (vec<float>)_mm512_dpbf16_ps((__m512)sum[i][v], (__m512bh)bk[v], aik);
        }
      }
    }
  }
}

// a[r, column] = at[row[r] + column's offset]
PYCONV_NOINLINE inline void pack_a(const bf16* at, const int64_t* row, int64_t rows, const Run* runs, int64_t n,
                                   bf16* a) {
  for (int64_t i = 0; i < n; i++) {
    for (int64_t k = 0; k < runs[i].count; k += 32) {
      const bf16* from = at + runs[i].from + k;
      bf16* out = a + runs[i].to + k;
      const int64_t left = runs[i].count - k;
      if (left >= 32) {
        for (int64_t r = 0; r < rows; r++) store_halves(out + r * KP<bf16>, load_halves(from + row[r]));
      } else {  // what follows is the next run's, or the zero of the last pair
        for (int64_t r = 0; r < rows; r++) store_halves(out + r * KP<bf16>, load_halves(from + row[r], left));
      }
    }
  }
}

// Lanes 0 .. count - 1 of two terms, side by side.
PYCONV_INLINE void store_pairs(bf16* to, Halves32 first, Halves32 second, int64_t count) {
  struct Order {
    alignas(64) uint16_t lane[2][32];
  };
  static constexpr Order order = [] {
    Order r = {};
    for (int j = 0; j < 64; j++) r.lane[j / 32][j % 32] = static_cast<uint16_t>(j % 2 * 32 + j / 2);
    return r;
  }();
  const auto take = [&](int half) {
    return _mm512_permutex2var_epi16((__m512i)first, _mm512_load_si512(order.lane[half]), (__m512i)second);
  };
  if (count >= 32) {
    _mm512_storeu_si512(to, take(0));
    _mm512_storeu_si512(to + 32, take(1));
  } else {
    _mm512_mask_storeu_epi32(to, first_lanes(count), take(0));
    if (count > 16) _mm512_mask_storeu_epi32(to + 32, first_lanes(count - 16), take(1));
  }
}

// b[term, column] = at[row[term] + column's offset]
PYCONV_NOINLINE inline void pack_b(const bf16* at, const int64_t* row, int64_t terms, const Run* runs, int64_t n,
                                   bf16* b) {
  constexpr int64_t BN = 2 * Vec<float>::size;
  for (int64_t i = 0; i < n; i++) {
    for (int64_t k = 0; k < runs[i].count; k += 32) {
      const bf16* from = at + runs[i].from + k;
      bf16* out = b + 2 * (runs[i].to + k);
      const int64_t left = runs[i].count - k, even = terms & -2;
      if (left >= 32) {
        for (int64_t r = 0; r < even; r += 2) {
          store_pairs(out + r * BN, load_halves(from + row[r]), load_halves(from + row[r + 1]), 32);
        }
      } else {
        for (int64_t r = 0; r < even; r += 2) {
          store_pairs(out + r * BN, load_halves(from + row[r], left), load_halves(from + row[r + 1], left), left);
        }
      }
      if (terms > even) store_pairs(out + even * BN, load_halves(from + row[even], left), Halves32{}, left);
    }
  }
}

// Up to 16 lanes of a B panel, from rows `pitch` apart with the terms side by side.
PYCONV_NOINLINE inline void turn_pairs(const bf16* from, int64_t pitch, int64_t lanes, int64_t terms, bf16* b) {
  constexpr int64_t L = Vec<float>::size, BN = 2 * L;
  for (int64_t k = 0; k < terms; k += 2 * L) {
    vec<float> r[L];  // of pairs
    if (lanes >= L && terms - k >= 2 * L) {
      _Pragma("GCC unroll 16") for (int64_t i = 0; i < L; i++) r[i] = (vec<float>)load_halves(from + i * pitch + k);
    } else {
      _Pragma("GCC unroll 16") for (int64_t i = 0; i < L; i++) {
        r[i] = i < lanes ? (vec<float>)load_halves(from + i * pitch + k, terms - k) : vec<float>{};
      }
    }
    transpose<float>(r);
    _Pragma("GCC unroll 16") for (int64_t j = 0; j < L; j++) {
      if (k + 2 * j < terms) store_halves(b + (k + 2 * j) * BN, (Halves32)r[j]);
    }
  }
}

// b[column, r] = at[r * row + column's offset]
PYCONV_NOINLINE inline void pack_b_turned(const bf16* at, int64_t row, int64_t rows, const Run* runs, int64_t n,
                                          bf16* b) {
  constexpr int64_t L = Vec<float>::size;
  bf16 beside[L * KP<bf16>];  // several runs, one beside the other: a pair may lie in two
  for (int64_t r = 0; r < rows; r += L) {
    const bf16* from = at + r * row + runs[0].from;
    const int64_t lanes = at_most(L, rows - r), terms = runs[n - 1].to + runs[n - 1].count;
    if (n > 1) {
      int64_t line[L];
      for (int64_t i = 0; i < lanes; i++) line[i] = (r + i) * row;
      pack_a(at, line, lanes, runs, n, beside);
      from = beside;
    }
    turn_pairs(from, n > 1 ? KP<bf16> : row, lanes, terms, b + 2 * r);
  }
}

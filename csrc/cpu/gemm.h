// Matrix product of panels: C (rows, lanes) = start + A (rows, terms) B (terms, lanes).
//   A panel (MR rows): read one value at a time into a whole vector; B panel (terms, BN = 2 vectors)
//   Either is read where it lies, whatever the distance between its rows or terms, or packed: A (MR, KP), B (KC, BN)
//   C tile  (MR, BN) where more terms are to come, else straight from registers to the output
// and the ways in: copy_rows for a source whose rows lie as the panel's do, copy_transposed for one that is turned.
// Both take a source with holes: im2col's matrix, whose rows are runs of an image. Included once per ISA.
// Source: Goto and van de Geijn, Anatomy of high-performance matrix multiplication, TOMS 34(3), 2008

// Registers: MR x 2 accumulators, 2 vectors of B and one broadcast of A out of 32 (AVX-512) or 16.
constexpr int64_t MR = PYCONV_BYTES == 64 ? 14 : PYCONV_BYTES == 32 ? 6 : 4;
// At most so many terms at a time: A and B panels are 22 and 48 KB of float32. 64, 128, 256, 384 and 512 terms: 217,
// 236, 239, 234 and 237 GFLOP/s of a peak of 235 to 240 (one Zen 5 core, all panels in L2).
constexpr int64_t KC = 384;
template <class P>
constexpr int64_t KP = KC + 64 / sizeof(P);  // rows of an A panel are an odd number of lines: in different cache sets

// What a panel holds of storage type T.
template <class T>
struct Panel {
  using type = acc_t<T>;
};
template <class T>
using panel_t = typename Panel<T>::type;
// Two terms side by side are multiplied together.
template <class P>
constexpr bool in_pairs = sizeof(P) == 2;

// Columns [to, to + count) of a block, side by side in the source from offset `from` on.
struct Run {
  int64_t from, to, count;
};

// Term k of row i stands at a[i * row + runs[..].from + k * term]; those of a panel side by side, in one run.
template <class P>
struct Left {
  const P* a;
  int64_t row, term;
  const Run* runs;
  int64_t n;
};
// Lane l of term k stands at b[k * term + l].
template <class P>
struct Right {
  const P* b;
  int64_t term;
};
// What the sums start from, a tile or one row for all; but the sums of earlier terms are added last, so that no chain of
// additions is longer than KC. 3x3 of 256 channels at 14x14, 2304 terms: largest error 7, in one chain 33, in units of
// 2^-24 of the largest output (torch 4 in NCHW, 33 in channels_last).
template <class A>
struct Start {
  const A* c;
  bool tile, later;
};
// Where the sums go: back into a tile, or, when they are complete, `lanes` of them into the output.
template <class T>
struct Target {
  acc_t<T>* tile;  // rows of BN; null: the output
  T* y;
  int64_t row, lanes;
  Finish<T> finish;
};

#if PYCONV_BF16
template <>
struct Panel<bf16> {
  using type = bf16;
};
#include "cpu/gemm_bf16.h"
#endif

// sum[i] += sum_k a[i,k] * b[k,:]
template <class A, int R, int NV>
PYCONV_INLINE void add_terms(const Left<A>& left, const Right<A>& right, vec<A> (&sum)[R][NV]) {
  constexpr int64_t L = Vec<A>::size;
  // What no prefetcher fetches: of a left operand that lies in place, the rows that come after these, a line a term; else
  // the right one, 32 terms ahead, as also where its terms lie apart, each in a page of its own. 16, 32 and 64 terms: no
  // difference beyond noise, 0.03. Over no prefetch, two threads of Zen 5, forward and input gradient of 1x1, two runs:
  // channels_last 256 -> 64 channels at 56x56 1.04 to 1.07, 1024 -> 2048 to 7x7, whose rows are packed, 1.08 to 1.13, 256
  // -> 1024 at 14x14 1.00 to 1.03; NCHW, terms apart, 0.92 to 1.19. 3x3 with stride 2: no difference.
  const int64_t row = left.row, term = left.term, b_term = right.term;
  const bool next_rows = b_term <= 2 * L && term == 1 && row != KP<A>;
  const A *b = right.b, *ahead = next_rows ? left.a + R * row : b + 32 * b_term;
  const int64_t step = next_rows ? R : b_term;
  for (int64_t r = 0; r < left.n; r++) {
    const A* a = left.a + left.runs[r].from;
    const A* end = b + left.runs[r].count * b_term;
    for (; b != end; a += term, b += b_term, ahead += step) {
      vec<A> bk[NV];
      _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) bk[v] = load(b + v * L);
      _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) __builtin_prefetch(ahead + v * L);
      _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
        const A aik = a[i * row];
        _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] += aik * bk[v];
      }
    }
  }
}

// The lines that R rows of sums will be stored to, fetched while terms are added: 1x1 in channels_last, two threads of
// Zen 5, 16 -> 96 channels at 112x112 1.2 times as fast, 24 -> 144 at 56x56 1.1 times.
template <int R, int NV, class T>
PYCONV_INLINE void prefetch_rows(const T* y, int64_t row) {
  constexpr int64_t L = Vec<acc_t<T>>::size;
  _Pragma("GCC unroll 16") for (int i = 0; i < R; i++, y += row) {
    _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) __builtin_prefetch(y + v * L, 1);
  }
}

// Micro-kernel: c[i,:] = start[i,:] + sum_k a[i,k] * b[k,:] for R rows; registers only.
template <int R, int NV, class P, class A, class T>
PYCONV_NOINLINE void multiply_tile(const Left<P>& left, const Right<P>& right, const Start<A>& start,
                                   const Target<T>& to) {
  constexpr int64_t L = Vec<A>::size, BN = 2 * L;
  const A* c = start.c;
  const int64_t c_row = start.tile ? BN : 0;
  vec<A> sum[R][NV] = {};
  if (!start.later) {
    _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
      _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] = load(c + i * c_row + v * L);
    }
  }
  if (!to.tile) prefetch_rows<R, NV>(to.y, to.row);
  add_terms<A>(left, right, sum);
  if (start.later) {
    _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
      _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] += load(c + i * BN + v * L);
    }
  }
  if (!to.tile && !to.finish.residual) {
    const Finish<T> finish = to.finish;
    const int64_t row = to.row, last = to.lanes - (NV - 1) * L;
    T* y = to.y;
    if (last >= L) {
      _Pragma("GCC unroll 16") for (int i = 0; i < R; i++, y += row) {
        _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) store_narrow(y + v * L, finish.clipped(sum[i][v]));
      }
    } else {
      _Pragma("GCC unroll 16") for (int i = 0; i < R; i++, y += row) {
        if constexpr (NV == 2) store_narrow(y, finish.clipped(sum[i][0]));
        store_narrow_first(y + (NV - 1) * L, finish.clipped(sum[i][NV - 1]), last);
      }
    }
    return;
  }
  const auto store_all = [&](A* tile) {
    _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {
      _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) store(tile + i * BN + v * L, sum[i][v]);
    }
  };
  if (to.tile) return store_all(to.tile);
  A own[R * BN];
  store_all(own);
  for (int64_t i = 0; i < R; i++) {
    for (int64_t v = 0; v < NV * L; v += L) {
      to.finish.store_up_to(to.y + i * to.row + v, load(own + i * BN + v), to.lanes - v);
    }
  }
}

template <int NV, int R, class P, class A, class T>
PYCONV_INLINE void multiply_rows(int64_t rows, const Left<P>& left, const Right<P>& right, const Start<A>& start,
                                 const Target<T>& to) {
  if (rows > R - 2) return multiply_tile<R, NV>(left, right, start, to);
  if constexpr (R > 2) multiply_rows<NV, R - 2>(rows, left, right, start, to);
}

// Up to MR rows, rounded up to an even number of them, and up to BN lanes, rounded up to whole vectors.
template <class P, class A, class T>
void multiply(int64_t rows, int64_t lanes, const Left<P>& left, const Right<P>& right, const Start<A>& start,
              const Target<T>& to) {
  if (lanes > Vec<A>::size) {
    multiply_rows<2, MR>(rows, left, right, start, to);
  } else {
    multiply_rows<1, MR>(rows, left, right, start, to);
  }
}

// I rows in panels of equal size, even and at most MR: I = 64 is 2 panels of 14 rows and 3 of 12, not 4 of 14 and one
// of 8.
struct RowPanels {
  int64_t I;
  int64_t count() const { return divide_up(I, MR); }
  int64_t begin(int64_t panel) const { return at_most(2 * (divide_up(I, 2) * panel / count()), I); }
  int64_t rows(int64_t panel) const { return begin(panel + 1) - begin(panel); }
};

// J terms in blocks of equal size, at most KC; even, so that none cuts a pair.
inline int64_t block_of(int64_t J) { return at_least(round_up(divide_up(J, at_least(divide_up(J, KC), 1)), 2), 2); }

// The runs in which `count` offsets follow one another by `step`; at most `count` of them.
inline int64_t runs_of(const int64_t* offset, int64_t count, Run* runs, int64_t step = 1) {
  int64_t n = 0;
  for (int64_t k = 0; k < count; k++) {
    if (k > 0 && offset[k] == offset[k - 1] + step) {
      runs[n - 1].count++;
    } else {
      runs[n++] = {offset[k], k, 1};
    }
  }
  return n;
}

// to[r * pitch + column] = at[row[r] + column's offset]
template <class T, class A>
PYCONV_NOINLINE void copy_rows(const T* at, const int64_t* row, int64_t rows, const Run* runs, int64_t n, A* to,
                               int64_t pitch) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t i = 0; i < n; i++) {
    for (int64_t k = 0; k < runs[i].count; k += L) {  // a vector of each row before the next vector
      const T* from = at + runs[i].from + k;
      A* out = to + runs[i].to + k;
      const int64_t left = runs[i].count - k;
      if (left >= L) {
        for (int64_t r = 0; r < rows; r++) store(out + r * pitch, load_wide(from + row[r]));
      } else {
        for (int64_t r = 0; r < rows; r++) store_first(out + r * pitch, load_wide_first(from + row[r], left), left);
      }
    }
  }
}

// to[column * pitch + r] = at[r * row + column's offset]; up to a vector of columns and of rows beyond become zero.
template <class T, class A>
PYCONV_NOINLINE void copy_transposed(const T* at, int64_t row, int64_t rows, const Run* runs, int64_t n, A* to,
                                     int64_t pitch) {
  constexpr int64_t L = Vec<A>::size;
  for (int64_t i = 0; i < n; i++) {
    for (int64_t k = 0; k < runs[i].count; k += L) {
      for (int64_t r = 0; r < rows; r += L) {
        load_columns(at + r * row + runs[i].from + k, row, rows - r, runs[i].count - k,
                     to + (runs[i].to + k) * pitch + r, pitch);
      }
    }
  }
}

// a[r, column] = at[row[r] + column's offset]
template <class T, class A>
void pack_a(const T* at, const int64_t* row, int64_t rows, const Run* runs, int64_t n, A* a) {
  copy_rows(at, row, rows, runs, n, a, KP<A>);
}

// The same for a tile, which has an even number of rows: an odd last one twice.
template <class T, class P>
void pack_rows(const T* at, const int64_t* row, int64_t rows, const Run* runs, int64_t n, P* panel) {
  pack_a(at, row, rows, runs, n, panel);
  if (rows % 2) pack_a(at, row + rows - 1, 1, runs, n, panel + rows * KP<P>);
}

// b[term, column] = at[row[term] + column's offset]
template <class T, class A>
void pack_b(const T* at, const int64_t* row, int64_t terms, const Run* runs, int64_t n, A* b) {
  copy_rows(at, row, terms, runs, n, b, 2 * Vec<A>::size);
}

// b[column, r] = at[r * row + column's offset]
template <class T, class A>
void pack_b_turned(const T* at, int64_t row, int64_t rows, const Run* runs, int64_t n, A* b) {
  copy_transposed(at, row, rows, runs, n, b, 2 * Vec<A>::size);
}

inline bool evenly_apart(const int64_t* at, int64_t count) {
  int64_t uneven = 0;
  for (int64_t i = 2; i < count; i++) uneven |= (at[i] - at[i - 1]) ^ (at[1] - at[0]);
  return uneven == 0;
}

// Rows as the left operand: where they lie, or a packed panel. One core of Zen 5, 14 rows, panels in L2: 4 KB apart, so
// that all lines of a term meet in one set of L1, 161 GFLOP/s; 2 KB apart 259, packed 259.
template <class T, class P = panel_t<T>>
Left<P> left_of(const T* at, const int64_t* row, int64_t rows, const Run* runs, int64_t n, const Run* whole, P* panel) {
  if constexpr (std::is_same<T, P>::value) {
    const int64_t apart = rows > 1 ? row[1] - row[0] : 0;
    const bool pairs = !in_pairs<P> || (n == 1 && runs[0].count % 2 == 0);
    if (rows % 2 == 0 && pairs && apart * int64_t(sizeof(T)) % 4096 != 0 && evenly_apart(row, rows)) {
      return {at + row[0], apart, 1, runs, n};
    }
  }
  pack_rows(at, row, rows, runs, n, panel);
  return {panel, KP<P>, 1, whole, 1};
}

// Rows as the right operand, a term each: where they lie, if a panel is whole vectors of each, or packed. Two threads of
// Zen 5, NCHW, where a row is a plane: 256 -> 64 at 56x56 1.25 times as fast, 144 -> 24 1.4 times.
template <class T, class P = panel_t<T>>
Right<P> lanes_of(const T* at, const int64_t* row, int64_t terms, const Run* runs, int64_t n, P* panel) {
  constexpr int64_t L = Vec<acc_t<T>>::size, BN = 2 * L;
  if constexpr (std::is_same<T, P>::value && !in_pairs<P>) {
    const int64_t apart = terms > 1 ? row[1] - row[0] : BN;  // never 0
    if (n == 1 && runs[0].count % L == 0 && apart * int64_t(sizeof(T)) % 4096 != 0 && evenly_apart(row, terms)) {
      return {at + row[0] + runs[0].from, apart};
    }
  }
  pack_b(at, row, terms, runs, n, panel);
  return {panel, BN};
}

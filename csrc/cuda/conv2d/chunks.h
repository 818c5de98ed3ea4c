// Tiles for the tensor cores: chunks of 16 bytes, 8 halves or 4 floats, that are neighbours in memory, how threads copy them
// to shared memory and how a warp takes matrices out of it.
#pragma once
#include "cuda/vocabulary.h"

namespace pyconv::cuda::conv2d {

constexpr int chunk_threads = 128;  // of a block

template <class T>
constexpr int wide = 16 / sizeof(T);  // values of a chunk
template <class T>
constexpr int chunk_terms = 4 * wide<T>;  // of a step

struct alignas(16) Chunk {
  uint32_t word[4];
};

// A tile in shared memory: `lines` lines of `chunks` chunks. A line is a row, holding its terms, or a term, holding rows.
template <int lines, int chunks>
struct Lines {
  Chunk chunk[lines][chunks];

  // Two short lines fill the 128 bytes of all banks, else one. What is read at once, one chunk of each of eight lines by
  // ldmatrix or two chunks of each of four lines, and what eight threads copy, lie in different banks.
  PYCONV_DEVICE Chunk* at(int line, int c) {
    if (chunks == 4) return &chunk[line][c ^ (line >> 1 & 3)];
    return &chunk[line][c ^ ((line & 1) << 2 | (line & 2) | (line >> 2 & 1))];
  }
};

template <class T, bool by_term, int size>
using TileOf = std::conditional_t<by_term, Lines<size, 4>, Lines<chunk_terms<T>, size / wide<T>>>;

// The chunks that a thread copies of each tile. By term: one of every so many rows; else every so many of one term.
template <class T, bool by_term, int size>
struct Copies {
  static constexpr int per_line = by_term ? 4 : chunk_threads / chunk_terms<T>;
  static constexpr int count = 4 * size / chunk_threads;
  int line = threadIdx.x / per_line, chunk = threadIdx.x % per_line;

  // The first term this thread copies, in the step, and the row at which copy i starts.
  PYCONV_DEVICE int term() const { return by_term ? chunk * wide<T> : line; }
  PYCONV_DEVICE int row(int i) const {
    return by_term ? line + chunk_threads / 4 * i : (chunk + per_line * i) * wide<T>;
  }
  template <class Tile>
  PYCONV_DEVICE Chunk* target(Tile& tile, int i) const {
    return by_term ? tile.at(line + chunk_threads / 4 * i, chunk) : tile.at(line, chunk + per_line * i);
  }
};

// Four matrices for mma, of 8 rows from `row` on and one chunk of terms each: matrix i is `down[i]` times 8 rows below and
// `right[i]` chunks of terms beyond. Floats are rounded to TF32 here.
template <class T, bool by_term, class Tile>
PYCONV_DEVICE void load_fragments(uint32_t (&d)[4], Tile& tile, int row, int term, bool down_first) {
  const int lane = threadIdx.x % 32;
  if constexpr (by_term || sizeof(T) == 2) {
    // ldmatrix reads four matrices of 8 lines; lane l names line l % 8 of matrix l / 8.
    const int matrix = lane / 8, line = lane % 8;
    const int down = down_first ? matrix & 1 : matrix >> 1, right = down_first ? matrix >> 1 : matrix & 1;
    load_matrices<!by_term>(d, by_term ? tile.at(row + 8 * down + line, term / wide<T> + right)
                                       : tile.at(term + wide<T> * right + line, row / wide<T> + down));
  } else {  // which cannot turn matrices of floats: each lane finds its own
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int down = down_first ? i & 1 : i >> 1, right = down_first ? i >> 1 : i & 1;
      const int at = row + 8 * down + lane / 4;
      d[i] = tile.at(term + 4 * right + lane % 4, at / 4)->word[at % 4];
    }
  }
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; i++) d[i] = round_to_tf32(d[i]);
  }
}

}  // namespace pyconv::cuda::conv2d

// Compile-time sizes of tiles, and even cuts. Included once per ISA by the kernels that use them.

template <int n>
struct Int {
  static constexpr int value = n;
};
// Calls body with the compile-time value of n in [1, most].
template <int most, class Body>
PYCONV_INLINE void with_int(int64_t n, const Body& body) {
  if constexpr (most > 1) {
    if (n < most) return with_int<most - 1>(n, body);
  }
  body(Int<most>());
}

// [0, n) cut into the fewest pieces of at most `most`, as even as can be: piece i is [cut(i), cut(i + 1)).
struct Cuts {
  int64_t n, pieces;
  Cuts(int64_t n, int64_t most) : n(n), pieces(divide_up(n, most)) {}
  int64_t cut(int64_t i) const { return n * i / pieces; }
};

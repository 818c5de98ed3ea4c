// A row split by column modulo the stride, the vocabulary of rows.h, included once per ISA by it.

// Memory of this thread for one call, one array per slot.
template <class T>
T* array(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, size_t(count) * sizeof(T)));
}

// The (SW, length) phases of a padded row, and the way there and back for the columns inside the padding. `join` reads up
// to L values beyond a phase.
template <class A>
struct Phases {
  static constexpr int64_t L = Vec<A>::size;
  int64_t columns, stride, length;
  int64_t* origin;  // (SW,) where column 0 .. SW-1 of the row lies; the next of its phase follows

  Phases(const PoolAxis& w, int64_t length, int64_t* origin)
      : columns(w.in), stride(w.stride), length(length), origin(origin) {
    for (int64_t column = 0; column < stride; column++) origin[column] = at(w.padding + column);
  }

  int64_t at(int64_t padded_column) const { return padded_column % stride * length + padded_column / stride; }

  template <class T>
  void split(const T* row, A* phases) const {
    if (stride == 1) {
      for (int64_t j = 0; j < columns; j += L) {
        store_up_to(phases + origin[0] + j, load_up_to(row + j, columns - j), columns - j);
      }
    } else if (stride == 2) {
      A *even = phases + origin[0], *odd = phases + origin[1];
      for (int64_t j = 0; j < columns; j += 2 * L) {
        const int64_t left = columns - j;
        const vec<A> low = load_up_to(row + j, left), high = left > L ? load_up_to(row + j + L, left - L) : vec<A>{};
        const Pair<A> pair = deinterleave<A>(low, high);
        store_up_to(even + j / 2, pair.first, divide_up(left, 2));
        store_up_to(odd + j / 2, pair.second, left / 2);
      }
    } else {
      for (int64_t first = 0; first < at_most(stride, columns); first++) {
        A* phase = phases + origin[first];
        for (int64_t column = first; column < columns; column += stride) *phase++ = widen(row[column]);
      }
    }
  }

  template <class T>
  void join(const A* phases, T* row) const {
    if (stride == 1) {
      for (int64_t j = 0; j < columns; j += L) store_up_to(row + j, load(phases + origin[0] + j), columns - j);
    } else if (stride == 2) {
      const A *even = phases + origin[0], *odd = phases + origin[1];
      for (int64_t j = 0; j < columns; j += 2 * L) {
        const Pair<A> pair = interleave<A>(load(even + j / 2), load(odd + j / 2));
        store_up_to(row + j, pair.first, columns - j);
        if (columns - j > L) store_up_to(row + j + L, pair.second, columns - j - L);
      }
    } else {
      for (int64_t first = 0; first < at_most(stride, columns); first++) {
        const A* phase = phases + origin[first];
        for (int64_t column = first; column < columns; column += stride) pyconv::store(row + column, *phase++);
      }
    }
  }
};

// Compiled once per ISA by test_simd.cpp; returns how many lanes were wrong.
template <class T>
int transposed_wrongly() {
  constexpr int L = Vec<T>::size;
  vec<T> r[L];
  for (int i = 0; i < L; i++) {
    for (int j = 0; j < L; j++) r[i][j] = static_cast<T>(i * 100 + j);
  }
  transpose<T>(r);
  int bad = 0;
  for (int i = 0; i < L; i++) {
    for (int j = 0; j < L; j++) bad += r[i][j] != static_cast<T>(j * 100 + i);
  }
  return bad;
}

template <class T>
int first_lanes_wrong() {
  constexpr int L = Vec<T>::size;
  T from[L], to[L];
  int bad = 0;
  for (int count = 0; count <= L; count++) {
    for (int i = 0; i < L; i++) from[i] = static_cast<T>(i + 1), to[i] = -1;
    const vec<T> v = load_first(from, count);
    store_first(to, load(from), count);
    for (int i = 0; i < L; i++) bad += (v[i] != (i < count ? i + 1 : 0)) + (to[i] != (i < count ? i + 1 : -1));
  }
  return bad;
}

// Lanes outside are not touched, and what the operands hold there does not reach a sum.
template <class T>
int lanes_wrong() {
  constexpr int L = Vec<T>::size;
  int bad = 0;
  for (int from = 0; from <= L; from++) {
    for (int to = 0; to <= L; to++) {
      const Lanes<T> lanes = keep(Lanes<T>(from, to));
      T values[L], infinite[L];
      for (int i = 0; i < L; i++) values[i] = static_cast<T>(i + 1);
      for (int i = 0; i < L; i++) infinite[i] = i >= from && i < to ? T(2) : T(1) / T(0);
      const vec<T> loaded = load_lanes(values, lanes);
      const vec<T> sum = multiply_add(lanes, load(infinite), load_lanes(values, lanes), splat(T(3)));
      for (int i = 0; i < L; i++) {
        const bool in = i >= from && i < to;
        bad += (loaded[i] != (in ? i + 1 : 0)) + (sum[i] != (in ? 2 * (i + 1) + 3 : 3));
      }
    }
  }
  return bad;
}

// Conversions of a range of magnitudes, halfway cases and NaN agree with the scalar ones bit by bit.
template <class T>
int converted_wrongly() {
  constexpr int L = Vec<float>::size;
  int bad = 0;
  for (uint32_t base = 0; base < 0x7f900000u; base += 0x00123457u) {
    float x[L];
    T narrowed[L];
    for (int i = 0; i < L; i++) x[i] = float_from_bits((base + i * 0x1000u) ^ (i % 2 ? 0x80000000u : 0));
    store_narrow(narrowed, load(x));
    const vec<float> wide = load_wide(narrowed);
    for (int i = 0; i < L; i++) {
      const float expected = widen(narrow<T>(x[i]));
      bad += expected == expected ? bits_of(wide[i]) != bits_of(expected) : wide[i] == wide[i];
    }
  }
  return bad;
}

template <class T>
int interleaved_wrongly() {
  constexpr int L = Vec<T>::size;
  T line[2 * L];
  for (int i = 0; i < 2 * L; i++) line[i] = static_cast<T>(i);
  const Pair<T> split = deinterleave<T>(load(line), load(line + L)), whole = interleave<T>(split.first, split.second);
  int bad = 0;
  for (int i = 0; i < L; i++) {
    bad += (split.first[i] != 2 * i) + (split.second[i] != 2 * i + 1);
    bad += (whole.first[i] != i) + (whole.second[i] != L + i);
  }
  return bad;
}

// Tails of storage types touch exactly `count` values.
template <class T>
int narrow_tails_wrong() {
  constexpr int L = Vec<float>::size;
  T from[L], to[L];
  int bad = 0;
  for (int count = 0; count <= L; count++) {
    for (int i = 0; i < L; i++) from[i] = narrow<T>(static_cast<float>(i + 1)), to[i] = narrow<T>(-1);
    const vec<float> v = load_wide_first(from, count);
    store_narrow_first(to, load_wide(from), count);
    for (int i = 0; i < L; i++) {
      bad += (v[i] != (i < count ? i + 1 : 0)) + (widen(to[i]) != (i < count ? i + 1 : -1));
    }
  }
  return bad;
}

template <class T>
int summed_wrongly() {
  vec<T> v;
  T sum = 0;
  for (int i = 0; i < Vec<T>::size; i++) v[i] = static_cast<T>(i * i), sum += static_cast<T>(i * i);
  return sum_lanes<T>(v) != sum;
}

// Every `step`-th value, and none between or beyond.
template <class T>
int stepped_wrongly() {
  constexpr int L = Vec<T>::size;
  int bad = 0;
  for (int step = 1; step <= 3; step++) {
    for (int count = 0; count <= L; count++) {
      T to[3 * L];
      vec<T> v;
      for (int i = 0; i < 3 * L; i++) to[i] = -1;
      for (int i = 0; i < L; i++) v[i] = static_cast<T>(i);
      store_every(to, step, v, count);
      for (int i = 0; i < 3 * L; i++) bad += to[i] != (i % step == 0 && i / step < count ? i / step : -1);
    }
  }
  return bad;
}

struct StoreUpTo {
  template <class T, class V>
  void store_up_to(T* to, V v, int64_t count) const {
    store_first<T>(to, v, count);
  }
};

// A matrix of up to L x L into vectors of its columns and back, whatever its size.
template <class T>
int turned_wrongly() {
  constexpr int L = Vec<T>::size, pitch = L + 3;
  T from[L * pitch], to[L * L], back[L * pitch];
  int bad = 0;
  for (int rows = 1; rows <= L; rows++) {
    for (int columns = 1; columns <= L; columns++) {
      for (int i = 0; i < L * pitch; i++) from[i] = static_cast<T>(i + 1), back[i] = -1;
      load_columns(from, pitch, rows, columns, to, L);
      for (int j = 0; j < L; j++) {
        for (int i = 0; i < L; i++) bad += to[j * L + i] != (i < rows && j < columns ? from[i * pitch + j] : 0);
      }
      store_columns(to, L, back, pitch, rows, columns, StoreUpTo());
      for (int i = 0; i < L; i++) {
        for (int j = 0; j < pitch; j++) {
          bad += back[i * pitch + j] != (i < rows && j < columns ? from[i * pitch + j] : -1);
        }
      }
    }
  }
  return bad;
}

int simd_words() {
  return transposed_wrongly<float>() + transposed_wrongly<double>() + first_lanes_wrong<float>() +
         lanes_wrong<float>() + lanes_wrong<double>() + first_lanes_wrong<double>() + converted_wrongly<bf16>() +
         converted_wrongly<f16>() + summed_wrongly<float>() + summed_wrongly<double>() + interleaved_wrongly<float>() +
         interleaved_wrongly<double>() + narrow_tails_wrong<bf16>() + narrow_tails_wrong<f16>() +
         stepped_wrongly<float>() + stepped_wrongly<double>() + turned_wrongly<float>() + turned_wrongly<double>();
}

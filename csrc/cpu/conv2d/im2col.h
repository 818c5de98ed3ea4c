// The matrix im2col would make, without making it: its element (tap j, pixel p) is at[tap[j] + pixel[p]], two tables of
// offsets into the image itself or, where a border or a stride is in the way, into a copy of the piece in hand.
// Included once per ISA.

// Which remainders modulo the step of an axis are read by some tap, as bits; the positions of others need no copy.
inline uint64_t remainders_read(const Axis& a) {
  uint64_t bits = 0;
  for (int64_t t = 0; t < a.taps; t++) bits |= uint64_t(1) << (a.offset(t) - a.lowest()) % a.step % 64;
  return bits;
}

// to[r * pitch + k] = line[left + k * S + r] for k < count and each r < S whose bit is set; zero where that is outside the
// line's `columns`. All r share their loads, and borders are lanes that are not loaded. A loop for each r took 12 % of the
// weight gradient of 3x3 with stride 2, 16 % with 4x4 and stride 4 (NCHW, one thread of Zen 5); this takes 8 and 8.
template <int S, class T>
PYCONV_INLINE void split_line(const T* line, int64_t left, int64_t columns, int64_t count, uint64_t bits, T* to,
                              int64_t pitch) {
  constexpr int64_t L = Vec<T>::size;
  for (int64_t k = 0; k < count; k += L) {
    const int64_t first = left + k * S;
    const bool inside = first >= 0 && first + S * L <= columns;
    vec<T> v[S];
    _Pragma("GCC unroll 4") for (int i = 0; i < S; i++) {
      const int64_t at = first + i * L;
      v[i] = inside
                 ? load(line + at)
                 : load_lanes(line + at, Lanes<T>(at_most(at_least(-at, 0), L), at_most(at_least(columns - at, 0), L)));
    }
    deinterleave<T, S>(v);
    _Pragma("GCC unroll 4") for (int r = 0; r < S; r++) {
      if (bits >> r & 1) store_up_to(to + r * pitch + k, v[r], count - k);
    }
  }
}

// The same for 16-bit types: S values are one word, which is shifted and cut short for each r. Over a loop for each r, two
// threads of Zen 5, NCHW, bfloat16: 8x8 with stride 4 1.2 times as fast, 1x1 with stride 2 1.2, 3x3 1.05.
template <int S, class T>
PYCONV_INLINE void split_halves(const T* line, int64_t left, int64_t columns, int64_t count, uint64_t bits, T* to,
                                int64_t pitch) {
  typedef typename std::conditional<S == 2, uint32_t, uint64_t>::type Word;
  typedef Word Words __attribute__((vector_size(PYCONV_BYTES)));
  typedef uint16_t Part __attribute__((vector_size(PYCONV_BYTES / S)));
  constexpr int64_t L = PYCONV_BYTES / sizeof(Word);
  for (int64_t done = 0; done < count; done += L) {
    const int64_t k = at_most(done, at_least(count - L, 0));  // the last ends with the line, and does some again
    const int64_t first = left + k * S, begin = at_least(-first, 0), end = at_most(columns - first, L * S);
    Words words = {};
    if (begin == 0 && end == L * S) {
      __builtin_memcpy(&words, line + first, sizeof words);
    } else if (begin < end) {
      __builtin_memcpy(reinterpret_cast<T*>(&words) + begin, line + first + begin, (end - begin) * sizeof(T));
    }
    for (int r = 0; r < S; r++) {
      if (!(bits >> r & 1)) continue;
      const Part part = __builtin_convertvector(words >> (16 * r), Part);
      if (count - k >= L) {
        __builtin_memcpy(to + r * pitch + k, &part, sizeof part);
      } else {
        __builtin_memcpy(to + r * pitch + k, &part, (count - k) * sizeof(T));
      }
    }
  }
}

// How many of `all` lines of `line` pixels to take at a time so that panels of BN pixels, the last of which may be half
// of one, are as full as can be: at most `most` pixels, at least a line.
inline int64_t lines_at_a_time(int64_t all, int64_t line, int64_t most, int64_t half) {
  if (line == 1) {  // pieces of equal size
    const int64_t pieces = at_least(divide_up(all, most), 1);
    return at_least(at_most(round_up(divide_up(all, pieces), half), all), 1);
  }
  int64_t best = 1, least = INT64_MAX;
  for (int64_t n = 1; n <= all && (n == 1 || n * line <= most); n++) {
    const int64_t halves = all / n * divide_up(n * line, half) + divide_up(all % n * line, half);
    if (halves <= least) best = n, least = halves;
  }
  return best;
}

// first + i * down + k * right for each row i and column k; returns where they end. A line of single pixels has a loop of
// its own: 1x1 layers in channels_last spent 4 to 26 % of their time here.
inline int64_t* grid_offsets(int64_t first, int64_t rows, int64_t down, int64_t columns, int64_t right, int64_t* to) {
  if (columns == 1) {
    for (int64_t i = 0; i < rows; i++) to[i] = first + i * down;
    return to + rows;
  }
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t k = 0; k < columns; k++) *to++ = first + i * down + k * right;
  }
  return to;
}

// A slab is what one thread takes at a time: some rows of output pixels of one image, or several small images.
template <class T>
struct Im2col {
  Layout layout;
  int64_t N, C;  // C of a group
  Axis h, w;
  const T* source;
  Index4 S;
  int64_t images, rows, slabs_per_image;
  int64_t piece_rows, piece_columns, phase;  // of a copy; NCHW keeps columns that a stride skips between apart
  int64_t line_step;                         // from a row of a copy to the next: a single tap reads a row an output
  uint64_t rows_read, columns_read;
  bool in_place;
  Index4 P;

  Im2col(Layout layout, int64_t N, int64_t C, const Axis& h, const Axis& w, const T* source, const Index4& S,
         int64_t most_pixels)
      : layout(layout), N(N), C(C), h(h), w(w), source(source), S(S) {
    constexpr int64_t half = Vec<acc_t<T>>::size;
    rows = lines_at_a_time(h.out, w.out, most_pixels, half);
    images = rows < h.out ? 1 : lines_at_a_time(N, h.out * w.out, most_pixels, half);
    slabs_per_image = divide_up(h.out, rows);

    const bool nchw = layout == Layout::nchw;
    const auto inside = [](const Axis& a) {
      return a.lowest() >= 0 && a.lowest() + a.reach() + (a.out - 1) * a.step < a.source;
    };
    in_place = inside(h) && inside(w) && (w.step == 1 || !nchw);
    line_step = h.taps == 1 && !in_place ? h.step : 1;
    piece_rows = (rows - 1) * (h.step / line_step) + h.reach() + 1;
    const int64_t across = (w.out - 1) * w.step + w.reach() + 1;
    phase = nchw ? divide_up(across, w.step) : 0;
    piece_columns = !nchw ? across : w.taps == 1 ? phase : phase * w.step;
    rows_read = remainders_read(h);
    columns_read = remainders_read(w);
    P = in_place ? S : index_of(layout, C, piece_rows, piece_columns);
  }

  int64_t taps() const { return h.taps * w.taps * C; }
  int64_t slabs() const { return slabs_per_image * divide_up(N, images); }
  int64_t pixels() const { return images * rows * w.out; }  // of the largest slab
  int64_t piece_size() const { return in_place ? 0 : images * C * piece_rows * piece_columns; }

  struct Slab {
    int64_t n, images, oh, rows;
  };
  Slab slab(int64_t i) const {
    const int64_t n = i / slabs_per_image * images, oh = i % slabs_per_image * rows;
    return {n, at_most(images, N - n), oh, at_most(rows, h.out - oh)};
  }

  // j runs over (tap, c), or over (c, tap).
  void tap_offsets(bool channel_first, int64_t* tap) const {
    const int64_t T2 = h.taps * w.taps;
    for (int64_t t = 0; t < T2; t++) {
      const int64_t down = h.offset(t / w.taps) - h.lowest(), right = w.offset(t % w.taps) - w.lowest();
      const int64_t at = in_place || layout == Layout::nhwc ? P(0, 0, down, right)
                                                            : P(0, 0, down, right % w.step * phase + right / w.step);
      for (int64_t c = 0; c < C; c++) tap[channel_first ? c * T2 + t : t * C + c] = at + c * P.c;
    }
  }

  void pixel_offsets(const Slab& slab, int64_t* pixel) const {
    const int64_t right = layout == Layout::nhwc ? w.step * P.w : 1;
    for (int64_t n = 0; n < slab.images; n++) {
      pixel = grid_offsets(P(n, 0, 0, 0), slab.rows, h.step / line_step * P.h, w.out, right, pixel);
    }
  }

  // What the offsets are to be added to, for the group whose channels start at `channel`. Only its channels [c0, c1) are
  // wanted. `piece` has room for piece_size().
  const T* take(const Slab& slab, int64_t channel, int64_t c0, int64_t c1, T* piece) const {
    if (in_place) return source + S(slab.n, channel, slab.oh * h.step + h.lowest(), w.lowest());
    const int64_t first = slab.oh * h.step + h.lowest(), count = (slab.rows - 1) * (h.step / line_step) + h.reach() + 1;
    for (int64_t n = 0; n < slab.images; n++) {
      const T* image = source + S(slab.n + n, channel, 0, 0);
      if (layout == Layout::nhwc) {
        copy_pixels(image, first, count, piece + P(n, 0, 0, 0));
      } else {
        for (int64_t c = c0; c < c1; c++) copy_columns(image + c * S.c, first, count, piece + P(n, c, 0, 0));
      }
    }
    return piece;
  }

 private:
  // Not loops: GCC makes those over 16-bit storage types one value at a time, a fifth of what 3x3 with stride 2 took.
  static void fill_zero(T* to, int64_t count) { __builtin_memset(static_cast<void*>(to), 0, count * sizeof(T)); }
  static void copy(const T* from, int64_t count, T* to) { __builtin_memcpy(to, from, count * sizeof(T)); }
  const T* line(const T* image, int64_t ih) const { return ih < 0 || ih >= h.source ? nullptr : image + ih * S.h; }

  // `count` lines of one channel from `first` on: columns from w.lowest() on, those of one remainder modulo the stride
  // together.
  void copy_columns(const T* image, int64_t first, int64_t count, T* to) const {
    for (int64_t i = 0; i < count; i++, to += P.h) {
      if (!(rows_read >> i * line_step % h.step % 64 & 1)) continue;
      const T* from = line(image, first + i * line_step);
      if (from && w.step == 2) {
        split<2>(from, to);
        continue;
      }
      if (from && w.step == 4) {
        split<4>(from, to);
        continue;
      }
      for (int64_t r = 0; r < w.step; r++) {
        if (columns_read >> r % 64 & 1) copy_remainder(from, w.lowest() + r, to + r * phase);
      }
    }
  }
  template <int S>
  void split(const T* from, T* to) const {
    if constexpr (sizeof(T) >= 4) {
      split_line<S>(from, w.lowest(), w.source, phase, columns_read, to, phase);
    } else {
      split_halves<S>(from, w.lowest(), w.source, phase, columns_read, to, phase);
    }
  }
  void copy_remainder(const T* from, int64_t left, T* out) const {
    const int64_t begin = at_most(left < 0 ? divide_up(-left, w.step) : 0, phase);
    const int64_t end = at_least(at_most(left < w.source ? divide_up(w.source - left, w.step) : 0, phase), begin);
    if (!from || begin == end) return fill_zero(out, phase);
    from += left + begin * w.step;
    if (begin > 0) fill_zero(out, begin);
    if (w.step == 1) copy(from, end - begin, out + begin);
    for (int64_t k = begin; w.step > 1 && k < end; k++) out[k] = from[(k - begin) * w.step];
    if (end < phase) fill_zero(out + end, phase - end);
  }
  // The same of C channels side by side, columns in their order.
  void copy_pixels(const T* image, int64_t first, int64_t count, T* to) const {
    const int64_t begin = at_most(at_least(-w.lowest(), 0), piece_columns);
    const int64_t end = at_least(at_most(w.source - w.lowest(), piece_columns), begin);
    for (int64_t i = 0; i < count; i++, to += P.h) {
      if (!(rows_read >> i * line_step % h.step % 64 & 1)) continue;
      const T* from = line(image, first + i * line_step);
      if (!from) {
        fill_zero(to, piece_columns * C);
        continue;
      }
      fill_zero(to, begin * C);
      if (S.w == C) {
        copy(from + (w.lowest() + begin) * C, (end - begin) * C, to + begin * C);
      } else {
        for (int64_t iw = begin; iw < end; iw++) copy(from + (w.lowest() + iw) * S.w, C, to + iw * C);
      }
      fill_zero(to + end * C, (piece_columns - end) * C);
    }
  }
};

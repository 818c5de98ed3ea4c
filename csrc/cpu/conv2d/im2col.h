// The matrix im2col would make, without making it: its element (tap j, pixel p) is at[tap[j] + pixel[p]], two tables of
// offsets into the image itself or, where a border or a stride is in the way, into a copy of the piece in hand.
// Included once per ISA.

// Positions i, i + step, ... of a source are read by some tap; the others need no copy.
PYCONV_INLINE bool meets_a_tap(const Axis& a, int64_t i) {
  for (int64_t t = 0; t < a.taps; t++) {
    if ((i - a.offset(t) + a.lowest()) % a.step == 0) return true;
  }
  return false;
}

// to[k] = from[k * step]
template <class T>
PYCONV_INLINE void copy_every(const T* from, int64_t step, int64_t count, T* to) {
  int64_t k = 0;
  if (step == 1) {
    for (; k < count; k++) to[k] = from[k];
  } else if constexpr (sizeof(T) >= 4) {
    constexpr int64_t L = Vec<T>::size;
    for (; step == 2 && k + L < count; k += L) {  // the last vector read ends at from[2 * (k + L) - 1]
      store(to + k, deinterleave<T>(load(from + 2 * k), load(from + 2 * k + L)).first);
    }
  }
  for (; k < count; k++) to[k] = from[k * step];
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
  bool in_place;
  Index4 P;

  Im2col(Layout layout, int64_t N, int64_t C, const Axis& h, const Axis& w, const T* source, const Index4& S,
         int64_t most_pixels)
      : layout(layout), N(N), C(C), h(h), w(w), source(source), S(S) {
    const int64_t all = h.out * w.out;
    images = at_least(at_most(most_pixels / at_least(all, 1), N), 1);
    const int64_t most_rows = images > 1 ? h.out : most_pixels / at_least(w.out, 1);
    rows = divide_up(h.out, at_least(divide_up(h.out, at_least(most_rows, 1)), 1));  // of equal slabs
    slabs_per_image = divide_up(h.out, at_least(rows, 1));

    const bool nchw = layout == Layout::nchw;
    const auto inside = [](const Axis& a) {
      return a.lowest() >= 0 && a.lowest() + a.reach() + (a.out - 1) * a.step < a.source;
    };
    in_place = inside(h) && inside(w) && (w.step == 1 || !nchw);
    piece_rows = (rows - 1) * h.step + h.reach() + 1;
    const int64_t across = (w.out - 1) * w.step + w.reach() + 1;
    phase = nchw ? divide_up(across, w.step) : 0;
    piece_columns = nchw ? phase * w.step : across;
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
      for (int64_t oh = 0; oh < slab.rows; oh++) {
        for (int64_t ow = 0; ow < w.out; ow++) *pixel++ = P(n, 0, oh * h.step, 0) + ow * right;
      }
    }
  }

  // What the offsets are to be added to; `piece` has room for piece_size().
  const T* take(const Slab& slab, int64_t channel, T* piece) const {
    if (in_place) return source + S(slab.n, channel, slab.oh * h.step + h.lowest(), w.lowest());
    for (int64_t n = 0; n < slab.images; n++) {
      for (int64_t ih = 0; ih < (slab.rows - 1) * h.step + h.reach() + 1; ih++) {
        if (!meets_a_tap(h, ih)) continue;
        const int64_t y = slab.oh * h.step + h.lowest() + ih;
        const T* line = y < 0 || y >= h.source ? nullptr : source + S(slab.n + n, channel, y, 0);
        if (layout == Layout::nhwc) {
          copy_pixels(line, piece + P(n, 0, ih, 0));
        } else {
          for (int64_t c = 0; c < C; c++) copy_columns(line ? line + c * S.c : nullptr, piece + P(n, c, ih, 0));
        }
      }
    }
    return piece;
  }

 private:
  static void fill_zero(T* to, int64_t count) {
    for (int64_t k = 0; k < count; k++) to[k] = T();
  }
  // Columns [w.lowest(), ...) of a line of one channel, those of one remainder modulo the stride together.
  void copy_columns(const T* line, T* to) const {
    for (int64_t r = 0; r < w.step; r++, to += phase) {
      if (!meets_a_tap(w, r)) continue;
      const int64_t first = w.lowest() + r;  // column of to[0]
      const int64_t begin = line ? at_most(first < 0 ? divide_up(-first, w.step) : 0, phase) : phase;
      const int64_t end = at_least(at_most(first < w.source ? divide_up(w.source - first, w.step) : 0, phase), begin);
      fill_zero(to, begin);
      if (end > begin) copy_every(line + first + begin * w.step, w.step, end - begin, to + begin);
      fill_zero(to + end, phase - end);
    }
  }
  // The same of C channels side by side.
  void copy_pixels(const T* line, T* to) const {
    const int64_t begin = line ? at_most(at_least(-w.lowest(), 0), piece_columns) : piece_columns;
    const int64_t end = at_least(at_most(w.source - w.lowest(), piece_columns), begin);
    fill_zero(to, begin * C);
    if (S.w == C) {
      copy_every(line + (w.lowest() + begin) * C, 1, (end - begin) * C, to + begin * C);
    } else {
      for (int64_t iw = begin; iw < end; iw++) copy_every(line + (w.lowest() + iw) * S.w, 1, C, to + iw * C);
    }
    fill_zero(to + end * C, (piece_columns - end) * C);
  }
};

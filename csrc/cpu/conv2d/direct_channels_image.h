// Images of direct_channels.h, included once per ISA by it: bordered copies.

#include "cpu/cut.h"

constexpr int64_t band_bytes = 128 << 10;  // of a bordered image

// `pixels` of `count` channels each, `from_step` apart, to rows `to_step` apart, widened; zeros up to to_step.
template <class T, class A>
void copy_pixels(const T* from, int64_t from_step, int64_t count, int64_t pixels, A* to, int64_t to_step) {
  constexpr int64_t L = Vec<A>::size;
  if (from_step == count && to_step == count) count *= pixels, pixels = 1;
  for (int64_t p = 0; p < pixels; p++, from += from_step, to += to_step) {
    int64_t i = 0;
    for (; i + L <= count; i += L) store(to + i, load_wide(from + i));
    for (; i < count; i++) to[i] = widen(from[i]);
    for (; i < to_step && pixels > 1; i++) to[i] = 0;
  }
}

// What a band of the output of one group meets: rows and columns of C channels, zeros around the image.
struct Border {
  int64_t C, top, left, rows, columns, row;  // rows of a full band; elements of a row

  Border(const Grid& h, const Grid& w, int64_t C, int64_t band) : C(C), top(Reach(h).low), left(Reach(w).low) {
    rows = (band - 1) * Reach(h).step + Reach(h).high - top + 1;
    columns = (w.out() - 1) * Reach(w).step + Reach(w).high - left + 1;
    row = columns * C;
  }
  // Image rows from `from` on of channels [c0, c0 + C).
  template <class T, class A>
  void copy(const T* image, const Grid& h, const Grid& w, int64_t channels, int64_t c0, int64_t from, A* to) const {
    const int64_t begin = at_most(at_least(-left, 0), columns),
                  end = at_least(at_most(w.source - left, columns), begin);
    for (int64_t r = 0; r < rows; r++, to += row) {
      const int64_t ih = from + r;
      const bool inside = ih >= 0 && ih < h.source;
      for (int64_t i = 0; i < (inside ? begin * C : row); i++) to[i] = 0;
      if (!inside) continue;
      copy_pixels(image + (ih * w.source + left + begin) * channels + c0, channels, C, end - begin, to + begin * C, C);
      for (int64_t i = end * C; i < row; i++) to[i] = 0;
    }
  }
};

// Output rows per job, so that their borders stay in L2 and there are jobs for several threads.
int64_t band_rows(const Grid& h, const Grid& w, int64_t C, int64_t jobs, int64_t element) {
  const Border one(h, w, C, 1);
  const int64_t fit = (band_bytes / (element * one.row) - one.rows) / Reach(h).step + 1;
  const int64_t share = divide_up(h.out(), at_least(8 / at_least(jobs, 1), 1));
  return at_most(at_least(at_most(fit, share), 1), h.out());
}

// Images of a job: several where one has too few pixels to fill tiles with, or to load and store sums for.
int64_t images_per_job(const Grid& h, const Grid& w, int64_t C, int64_t N, int64_t G, int64_t element) {
  const Border border(h, w, C, h.out());
  const int64_t wanted = 128 / at_least(h.total * w.total, 1), fit = band_bytes / (element * border.rows * border.row);
  return at_least(at_most(at_most(wanted, fit), N * G / 8), 1);
}

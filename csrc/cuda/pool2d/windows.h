// The two loops of pooling: over the pixels of a window, and over the windows that may hold a pixel.
#pragma once
#include "cuda/vocabulary.h"

namespace pyconv::cuda::pool2d {

// f(ih, iw) for each pixel of the window of output (oh, ow), in row-major order.
template <class F>
PYCONV_DEVICE void for_window(const Pool2dShape& s, int64_t oh, int64_t ow, const F& f) {
  const int64_t bottom = s.h.stop(oh), left = s.w.start(ow), right = s.w.stop(ow);
  for (int64_t ih = s.h.start(oh); ih < bottom; ih += s.h.step()) {
    for (int64_t iw = left; iw < right; iw += s.w.step()) f(ih, iw);
  }
}

// f(oh, ow) for each output whose window may hold pixel (ih, iw), or for all there are.
template <class F>
PYCONV_DEVICE void for_holders(const Pool2dShape& s, int64_t ih, int64_t iw, bool all, const F& f) {
  const int64_t bottom = all ? s.h.out - 1 : s.h.last_output(ih), right = all ? s.w.out - 1 : s.w.last_output(iw);
  const int64_t left = all ? 0 : s.w.first_output(iw);
  for (int64_t oh = all ? 0 : s.h.first_output(ih); oh <= bottom; oh++) {
    for (int64_t ow = left; ow <= right; ow++) f(oh, ow);
  }
}

}  // namespace pyconv::cuda::pool2d

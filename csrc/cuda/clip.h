// The end of a forward pass: act(v) = min(max(v, 0), ceiling) with what of it is asked for; a NaN stays.
#pragma once
#include "cuda/vocabulary.h"

namespace pyconv::cuda {

template <class A>
struct Clip {
  A floor = -A(HUGE_VAL), ceiling = A(NAN);  // without a relu: nothing is below the one, and nothing exceeds the other

  Clip() = default;
  constexpr explicit Clip(const Epilogue& e) {
    if (e.relu) floor = 0, ceiling = A(e.ceiling);
  }
  PYCONV_DEVICE A operator()(A v) const {
    v = v < floor ? floor : v;
    return v > ceiling ? ceiling : v;
  }
};

}  // namespace pyconv::cuda

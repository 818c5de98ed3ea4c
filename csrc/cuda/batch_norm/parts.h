// Into how many parts the values of a channel are cut, and what they leave in memory. Host code.
#pragma once
#include "common/shape.h"

namespace pyconv::cuda::batch_norm {

// How many neighbours in memory share a channel, or are of neighbouring channels, and are moved at once where pointers are
// aligned: 16 bytes of them, or four, or one.
inline int values_at_once(const NormShape& s) {
  const int64_t neighbours = s.layout == Layout::nchw ? s.H * s.W : s.C, wide = 16 / size_of(s.dtype);
  return int(neighbours % wide == 0 ? wide : neighbours % 4 == 0 ? 4 : 1);
}

// Enough for two blocks on each of the 108 multiprocessors of an A100, by arithmetic, not measured; 1024 values or more in
// each. A function of the shape alone, so that every GPU adds in the same order.
inline int64_t parts_of(const NormShape& s) {
  const int64_t blocks = s.layout == Layout::nchw ? s.C : divide_up(s.C, 32 * values_at_once(s));
  const int64_t wanted = at_most(divide_up(216, at_least(blocks, 1)), divide_up(s.per_channel(), 1024));
  return at_least(at_most(wanted, 65535), 1);
}

// Bytes: three floats of each part of each channel, and two of each channel.
inline int64_t workspace_of(const NormShape& s) { return s.C * (3 * parts_of(s) + 2) * int64_t(sizeof(float)); }

}  // namespace pyconv::cuda::batch_norm

// What this machine can do at most, measured in the run that quotes it.
#pragma once
#include "common/dtype.h"

namespace pyconv {

// Floating-point operations a second of `threads` threads of the pool, multiply-adds from registers alone.
double measured_flops(DType dtype, int threads, double seconds);

// A cache line handed from one thread of the pool to another and back, in nanoseconds: 65 to 90 where two cores share a
// last-level cache, 320 to 355 where they do not (two Zen 4 cores). 0 with one thread.
double round_trip_nanoseconds(double seconds);

}  // namespace pyconv

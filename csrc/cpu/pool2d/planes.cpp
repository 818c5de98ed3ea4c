// Instances of planes.h for every ISA, and when they can run.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"

#define PYCONV_KERNEL "cpu/pool2d/planes.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::pool2d {
namespace {

bool is_whole(const PoolAxis& axis) { return axis.out == 1 && axis.start(0) == 0 && axis.stop(0) == axis.in; }

}  // namespace

std::string planes_avg_why_not(const Pool2dShape& s, Pass, Ask) {
  if (s.dtype != DType::f32) return std::string("it computes in float32, not ") + name_of(s.dtype);
  if (s.layout != Layout::nchw) return "a plane is contiguous in NCHW only";
  if (!is_whole(s.h) || !is_whole(s.w)) return "its one window is the whole plane";
  return "";
}

void planes_avg_fwd(const Pool2dShape& s, const void* x, void* y) {
  PYCONV_PER_ISA(pool2d_planes::avg_fwd)(s, static_cast<const float*>(x), static_cast<float*>(y));
}

void planes_avg_bwd(const Pool2dShape& s, const void* dy, void* dx) {
  PYCONV_PER_ISA(pool2d_planes::avg_bwd)(s, static_cast<const float*>(dy), static_cast<float*>(dx));
}

}  // namespace pyconv::pool2d

// Instances of pixels.h for every ISA and storage type, and when to use it.
#include "cpu/batch_norm/batch_norm.h"
#include "cpu/cache.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/batch_norm/pixels.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::batch_norm {

std::string pixels_why_not(const NormShape& s, Pass, Ask) {
  if (s.layout != Layout::nhwc) return "a vector holds neighbouring channels of a pixel, and in NCHW none are";
  return "";
}

void pixels_train(const NormShape& s, const void* x, const Affine& p, const Epilogue& e, void* y, void* mean,
                  void* var) {
  PYCONV_PER_ISA(pixels::train)(s, x, p, e, y, mean, var);
}

void pixels_eval(const NormShape& s, const void* x, const Statistics& given, const Affine& p, const Epilogue& e,
                 void* y) {
  PYCONV_PER_ISA(pixels::eval)(s, x, given, p, e, y);
}

void pixels_bwd(const NormShape& s, const Upstream& up, const void* x, const Statistics& given, const void* weight,
                const Gradients& out) {
  PYCONV_PER_ISA(pixels::bwd)(s, up, x, given, weight, out);
}

}  // namespace pyconv::batch_norm

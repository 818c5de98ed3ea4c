// Instances of planes.h for every ISA and storage type, and when to use it.
#include "cpu/batch_norm/batch_norm.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/batch_norm/planes.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::batch_norm {

std::string planes_why_not(const NormShape& s, Pass, Ask) {
  if (s.layout != Layout::nchw) return "a vector holds neighbouring pixels of a plane, and in channels_last none are";
  return "";
}

void planes_train(const NormShape& s, const void* x, const Affine& p, const Epilogue& e, void* y, void* mean,
                  void* var) {
  PYCONV_PER_ISA(planes::train)(s, x, p, e, y, mean, var);
}

void planes_eval(const NormShape& s, const void* x, const Statistics& given, const Affine& p, const Epilogue& e,
                 void* y) {
  PYCONV_PER_ISA(planes::eval)(s, x, given, p, e, y);
}

void planes_bwd(const NormShape& s, const Upstream& up, const void* x, const Statistics& given, const void* weight,
                const Gradients& out) {
  PYCONV_PER_ISA(planes::bwd)(s, up, x, given, weight, out);
}

}  // namespace pyconv::batch_norm

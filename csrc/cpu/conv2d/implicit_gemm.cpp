// Instances of implicit_gemm.h for every ISA and storage type, and one more for pairs of bfloat16.
#include "cpu/conv2d/axis.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/conv2d/implicit_gemm.h"
#define PYCONV_KERNEL_FOR_BF16
#include "cpu/for_each_isa.inc"

namespace pyconv::conv2d {

void implicit_gemm_fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y) {
  PYCONV_PER_ISA_OR_BF16(s.dtype, implicit_gemm::fwd)(s, x, w, e, y);
}

// Time without packed weights over time with, batch 1, one thread of Zen 5, weights in the cache and not: 320 -> 1280 at
// 7x7 1.18 and 1.37, 256 -> 512 3x3 to 7x7 1.28 and 1.40, 96 -> 576 at 14x14 1.05 and 1.04, 128 -> 256 3x3 to 14x14 1.07
// and 1.06; 64 -> 128 3x3 to 28x28 1.02 and 1.01, 32 -> 192 at 28x28 1.01 and 0.98.
int64_t implicit_gemm_packed_bytes(const Conv2dShape& s) {
  if (s.N * s.OH * s.OW > 256) return 0;
  return PYCONV_PER_ISA_OR_BF16(s.dtype, implicit_gemm::packed_bytes)(s);
}

void implicit_gemm_pack(const Conv2dShape& s, const void* w, void* packed) {
  PYCONV_PER_ISA_OR_BF16(s.dtype, implicit_gemm::pack)(s, w, packed);
}

void implicit_gemm_fwd_packed(const Conv2dShape& s, const void* x, const void* packed, const Epilogue& e, void* y) {
  PYCONV_PER_ISA_OR_BF16(s.dtype, implicit_gemm::fwd_packed)(s, x, packed, e, y);
}

void implicit_gemm_bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx) {
  PYCONV_PER_ISA_OR_BF16(s.dtype, implicit_gemm::bwd_input)(s, dy, w, dx);
}

void implicit_gemm_bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw) {
  PYCONV_PER_ISA_OR_BF16(s.dtype, implicit_gemm::bwd_weight)(s, dy, x, dw);
}

}  // namespace pyconv::conv2d

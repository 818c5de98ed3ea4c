// Instances of bias.h for every ISA and storage type.
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/conv2d/bias.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::conv2d {

void bwd_bias(const Conv2dShape& s, const void* dy, void* db) { PYCONV_PER_ISA(conv2d_bias::bwd_bias)(s, dy, db); }

}  // namespace pyconv::conv2d

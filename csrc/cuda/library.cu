// The part of the shared object that belongs to no op.
#include "cuda/library.h"

#include "cuda/vocabulary.h"

const char* pyconv::cuda::pyconv_cuda_error(int number) { return error_text(number); }

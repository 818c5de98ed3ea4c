// The part of the shared object that belongs to no op.
#include "cuda/library.h"

#include "cuda/vocabulary.h"

void pyconv::cuda::pyconv_cuda_note(LaunchNote* note) { launch_note = note; }

const char* pyconv::cuda::pyconv_cuda_error(int number) { return error_text(number); }

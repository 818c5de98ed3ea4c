// conv2d on CUDA: the kernels, and the list that chooses among them (list.cpp). No CUDA header: what is here is compiled
// into pyconv._C, which asks the list and calls the kernel's launcher in whichever library is loaded.
#pragma once
#include <string>
#include <vector>

#include "common/kernel_list.h"
#include "cuda/library.h"

namespace pyconv::cuda::conv2d {

struct Kernel {
  const char* name;
  const char* source;  // file, relative to the repository
  std::string (*why_not)(const Conv2dShape&, Pass, Ask);
  Conv2dFwd* Library::* fwd;
  Conv2dBwdInput* Library::* bwd_input;
  Conv2dBwdWeight* Library::* bwd_weight;
  int64_t (*workspace)(const Conv2dShape&, Pass);  // bytes; null for none
};

extern bool allow_tf32;  // for the whole process; true at start if PYCONV_ALLOW_TF32=1

void fwd(const Queue& q, const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y,
         const std::string& algorithm);
void bwd_input(const Queue& q, const Conv2dShape& s, const void* dy, const void* w, void* dx,
               const std::string& algorithm);
void bwd_weight(const Queue& q, const Conv2dShape& s, const void* dy, const void* x, void* dw,
                const std::string& algorithm);

std::vector<std::string> algorithms();
std::vector<Answer> ask(const Conv2dShape& s, Pass pass, Ask what);

}  // namespace pyconv::cuda::conv2d

// batch_norm on CUDA: the kernels, and the list that chooses among them (list.cpp). No CUDA header, as in cuda/conv2d.
#pragma once
#include <string>
#include <vector>

#include "common/kernel_list.h"
#include "cuda/library.h"

namespace pyconv::cuda::batch_norm {

void train(const Queue& q, const NormShape& s, const void* x, const Affine& p, const Epilogue& e, void* y, void* mean,
           void* var, const std::string& algorithm);
void eval(const Queue& q, const NormShape& s, const void* x, const Statistics& given, const Affine& p,
          const Epilogue& e, void* y, const std::string& algorithm);
void bwd(const Queue& q, const NormShape& s, const Upstream& up, const void* x, const Statistics& given,
         const void* weight, const Gradients& out, const std::string& algorithm);

std::vector<std::string> algorithms();
std::vector<Answer> ask(const NormShape& s, Pass pass, Ask what);

}  // namespace pyconv::cuda::batch_norm

// batch_norm on the CPU: the kernels and the list that chooses among them (list.cpp).
#pragma once
#include <string>
#include <vector>

#include "common/kernel_list.h"
#include "common/shape.h"

namespace pyconv::batch_norm {

using pyconv::Affine, pyconv::Gradients, pyconv::Statistics, pyconv::Upstream;

// x, y, dy and dx are dense in s.layout and of type s.dtype; outputs are written whole. The epilogue has no bias.
using Train = void(const NormShape& s, const void* x, const Affine& p, const Epilogue& e, void* y, void* mean,
                   void* var);
using Eval = void(const NormShape& s, const void* x, const Statistics& given, const Affine& p, const Epilogue& e,
                  void* y);
using Bwd = void(const NormShape& s, const Upstream& up, const void* x, const Statistics& given, const void* weight,
                 const Gradients& out);

struct Kernel {
  const char* name;
  const char* source;  // file, relative to the repository
  std::string (*why_not)(const NormShape&, Pass, Ask);
  Train* train;
  Eval* eval;
  Bwd* bwd;  // of train or of eval, as s.training says
};

const Kernel& choose(const NormShape& s, Pass pass, const std::string& algorithm);

// Of the signature that cuda::batch_norm has.
void train(const NormShape& s, const void* x, const Affine& p, const Epilogue& e, void* y, void* mean, void* var,
           const std::string& algorithm);
void eval(const NormShape& s, const void* x, const Statistics& given, const Affine& p, const Epilogue& e, void* y,
          const std::string& algorithm);
void bwd(const NormShape& s, const Upstream& up, const void* x, const Statistics& given, const void* weight,
         const Gradients& out, const std::string& algorithm);

std::vector<std::string> algorithms();
std::vector<Answer> ask(const NormShape& s, Pass pass, Ask what);

// planes.h: NCHW; a vector holds neighbouring pixels of one channel.
std::string planes_why_not(const NormShape&, Pass, Ask);
Train planes_train;
Eval planes_eval;
Bwd planes_bwd;

// pixels.h: channels_last; a vector holds neighbouring channels of one pixel.
std::string pixels_why_not(const NormShape&, Pass, Ask);
Train pixels_train;
Eval pixels_eval;
Bwd pixels_bwd;

// reference.cpp: the formula, any type, any layout.
std::string reference_why_not(const NormShape&, Pass, Ask);
Train reference_train;
Eval reference_eval;
Bwd reference_bwd;

}  // namespace pyconv::batch_norm

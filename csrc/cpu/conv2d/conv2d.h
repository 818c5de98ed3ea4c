// conv2d on the CPU: the kernels and the list that chooses among them (list.cpp).
#pragma once
#include <string>
#include <vector>

#include "common/kernel_list.h"
#include "common/shape.h"

namespace pyconv::conv2d {

// Operands are dense in s.layout and of type s.dtype; outputs are written whole.
using Fwd = void(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y);
using BwdInput = void(const Conv2dShape& s, const void* dy, const void* w, void* dx);
using BwdWeight = void(const Conv2dShape& s, const void* dy, const void* x, void* dw);

struct Kernel {
  const char* name;
  const char* source;  // file, relative to the repository
  std::string (*why_not)(const Conv2dShape&, Pass, Ask);
  Fwd* fwd;
  BwdInput* bwd_input;
  BwdWeight* bwd_weight;
};

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y, const std::string& algorithm);
void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx, const std::string& algorithm);
void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw, const std::string& algorithm);

std::vector<std::string> algorithms();
std::vector<Answer> ask(const Conv2dShape& s, Pass pass, Ask what);

// reference.cpp: the formula, any type, any shape.
std::string reference_why_not(const Conv2dShape&, Pass, Ask);
Fwd reference_fwd;
BwdInput reference_bwd_input;
BwdWeight reference_bwd_weight;

// winograd.cpp: fewer products than the formula has, for 3x3 kernels at stride 1.
extern bool allow_winograd;  // for the whole process; false at start if PYCONV_ALLOW_WINOGRAD=0
std::string winograd_why_not(const Conv2dShape&, Pass, Ask);
Fwd winograd_fwd;
BwdInput winograd_bwd_input;
BwdWeight winograd_bwd_weight;

// depthwise_channels_last.cpp: vectors of channels, each with weights of its own.
std::string depthwise_channels_last_why_not(const Conv2dShape&, Pass, Ask);
Fwd depthwise_channels_last_fwd;
BwdInput depthwise_channels_last_bwd_input;
BwdWeight depthwise_channels_last_bwd_weight;

// depthwise_planes.cpp: vectors of pixels, four rows at a time.
std::string depthwise_planes_why_not(const Conv2dShape&, Pass, Ask);
Fwd depthwise_planes_fwd;
BwdInput depthwise_planes_bwd_input;
BwdWeight depthwise_planes_bwd_weight;

// direct_planes.cpp: vectors of pixels, for few channels per group.
std::string direct_planes_why_not(const Conv2dShape&, Pass, Ask);
Fwd direct_planes_fwd;
BwdInput direct_planes_bwd_input;
BwdWeight direct_planes_bwd_weight;

// implicit_gemm.cpp: one matrix product per direction, any type, any shape.
std::string implicit_gemm_why_not(const Conv2dShape&, Pass, Ask);
Fwd implicit_gemm_fwd;
BwdInput implicit_gemm_bwd_input;
BwdWeight implicit_gemm_bwd_weight;

}  // namespace pyconv::conv2d

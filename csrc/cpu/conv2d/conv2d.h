// conv2d on the CPU: the kernels, the list that chooses among them (list.cpp), and when each refuses (rules.cpp).
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

// Weights in the order in which a kernel reads them, made once for many calls. It depends on the instruction set, the
// type, the layout and the weight's own shape; on the image only whether it pays.
struct Packing {
  int64_t (*bytes)(const Conv2dShape&) = nullptr;  // 0 where it would not pay
  void (*pack)(const Conv2dShape&, const void* w, void* packed) = nullptr;
  Fwd* fwd = nullptr;  // takes what pack wrote in the place of w
};

struct Kernel {
  const char* name;
  const char* source;  // file, relative to the repository
  std::string (*why_not)(const Conv2dShape&, Pass, Ask);
  Fwd* fwd;
  BwdInput* bwd_input;
  BwdWeight* bwd_weight;
  Packing packing = {};
};

void fwd(const Conv2dShape& s, const void* x, const void* w, const Epilogue& e, void* y, const std::string& algorithm);
void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx, const std::string& algorithm);
void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw, const std::string& algorithm);
// Of s only N, OC, OH, OW, type and layout count.
void bwd_bias(const Conv2dShape& s, const void* dy, void* db);

// What pack() writes for the kernel that runs, a header included; 0: it has no packed form, or none that pays.
int64_t packed_bytes(const Conv2dShape& s, const std::string& algorithm);
void pack(const Conv2dShape& s, const void* w, void* packed, const std::string& algorithm);
// As fwd. `packed` helps where it was made of this w for the kernel that runs, and is left aside anywhere else.
void fwd_packed(const Conv2dShape& s, const void* x, const void* w, const void* packed, int64_t bytes,
                const Epilogue& e, void* y, const std::string& algorithm);

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

// depthwise_channels.cpp: vectors of channels, each with weights of its own.
std::string depthwise_channels_why_not(const Conv2dShape&, Pass, Ask);
Fwd depthwise_channels_fwd;
BwdInput depthwise_channels_bwd_input;
BwdWeight depthwise_channels_bwd_weight;

// depthwise_planes.cpp: vectors of pixels, several rows at a time.
std::string depthwise_planes_why_not(const Conv2dShape&, Pass, Ask);
Fwd depthwise_planes_fwd;
BwdInput depthwise_planes_bwd_input;
BwdWeight depthwise_planes_bwd_weight;

// direct_planes.cpp: vectors of pixels, for few channels per group.
std::string direct_planes_why_not(const Conv2dShape&, Pass, Ask);
Fwd direct_planes_fwd;
BwdInput direct_planes_bwd_input;
BwdWeight direct_planes_bwd_weight;

// direct_channels.cpp: vectors of output channels, for images of few channels.
std::string direct_channels_why_not(const Conv2dShape&, Pass, Ask);
Fwd direct_channels_fwd;
BwdInput direct_channels_bwd_input;
BwdWeight direct_channels_bwd_weight;

// implicit_gemm.cpp: one matrix product per direction, any type, any shape.
std::string implicit_gemm_why_not(const Conv2dShape&, Pass, Ask);
Fwd implicit_gemm_fwd;
BwdInput implicit_gemm_bwd_input;
BwdWeight implicit_gemm_bwd_weight;
int64_t implicit_gemm_packed_bytes(const Conv2dShape&);
void implicit_gemm_pack(const Conv2dShape&, const void* w, void* packed);
Fwd implicit_gemm_fwd_packed;

}  // namespace pyconv::conv2d

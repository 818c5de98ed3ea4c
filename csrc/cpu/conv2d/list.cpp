// Which convolution runs, and why: fastest first, the first kernel that does not refuse.
#include "cpu/conv2d/conv2d.h"

namespace pyconv::conv2d {
namespace {

// clang-format off
constexpr Kernel list[] = {
    {"implicit_gemm", "csrc/cpu/conv2d/implicit_gemm.h", implicit_gemm_why_not, implicit_gemm_fwd, implicit_gemm_bwd_input, implicit_gemm_bwd_weight},
    {"reference",     "csrc/cpu/conv2d/reference.cpp",   reference_why_not,     reference_fwd,     reference_bwd_input,     reference_bwd_weight},
};
// clang-format on

}  // namespace

void fwd(const Conv2dShape& s, const void* x, const void* w, const void* b, void* y, const std::string& algorithm) {
  choose("conv2d", list, s, Pass::fwd, algorithm).fwd(s, x, w, b, y);
}

void bwd_input(const Conv2dShape& s, const void* dy, const void* w, void* dx, const std::string& algorithm) {
  choose("conv2d", list, s, Pass::bwd_input, algorithm).bwd_input(s, dy, w, dx);
}

void bwd_weight(const Conv2dShape& s, const void* dy, const void* x, void* dw, const std::string& algorithm) {
  choose("conv2d", list, s, Pass::bwd_weight, algorithm).bwd_weight(s, dy, x, dw);
}

std::vector<std::string> algorithms() { return names_of(list); }
std::vector<Answer> ask(const Conv2dShape& s, Pass pass, Ask what) { return ask_all(list, s, pass, what); }

}  // namespace pyconv::conv2d

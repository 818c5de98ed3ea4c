// Which batch norm runs, and why: fastest first, the first kernel that does not refuse.
#include "cpu/batch_norm/batch_norm.h"

namespace pyconv::batch_norm {
namespace {

// clang-format off
constexpr Kernel list[] = {
    {"planes",    "csrc/cpu/batch_norm/planes.h",      planes_why_not,    planes_train,    planes_eval,    planes_bwd},
    {"pixels",    "csrc/cpu/batch_norm/pixels.h",      pixels_why_not,    pixels_train,    pixels_eval,    pixels_bwd},
    {"reference", "csrc/cpu/batch_norm/reference.cpp", reference_why_not, reference_train, reference_eval, reference_bwd},
};
// clang-format on

}  // namespace

const Kernel& choose(const NormShape& s, Pass pass, const std::string& algorithm) {
  return pyconv::choose("batch_norm", list, s, pass, algorithm);
}

void train(const NormShape& s, const void* x, const Affine& p, const Epilogue& e, void* y, void* mean, void* var,
           const std::string& algorithm) {
  choose(s, Pass::fwd, algorithm).train(s, x, p, e, y, mean, var);
}

void eval(const NormShape& s, const void* x, const Statistics& given, const Affine& p, const Epilogue& e, void* y,
          const std::string& algorithm) {
  choose(s, Pass::fwd, algorithm).eval(s, x, given, p, e, y);
}

void bwd(const NormShape& s, const Upstream& up, const void* x, const Statistics& given, const void* weight,
         const Gradients& out, const std::string& algorithm) {
  choose(s, Pass::bwd_input, algorithm).bwd(s, up, x, given, weight, out);
}

std::vector<std::string> algorithms() { return names_of(list); }
std::vector<Answer> ask(const NormShape& s, Pass pass, Ask what) { return ask_all(list, s, pass, what); }

}  // namespace pyconv::batch_norm

// Which batch norm runs on CUDA, and why: fastest first, the first kernel that does not refuse.
#include "cuda/batch_norm/batch_norm.h"
#include "cuda/run.h"

namespace pyconv::cuda::batch_norm {
namespace {

struct Kernel {
  const char* name;
  const char* source;  // file, relative to the repository
  std::string (*why_not)(const NormShape&, Pass, Ask);
  BatchNormTrain* Library::* train;
  BatchNormEval* Library::* eval;
  BatchNormBwd* Library::* bwd;
  int64_t (*workspace)(const NormShape&, Pass) = nullptr;
};

std::string reference_why_not(const NormShape&, Pass, Ask) { return ""; }

// clang-format off
constexpr Kernel list[] = {
    {"reference", "csrc/cuda/batch_norm/reference.cu", reference_why_not, &Library::batch_norm_reference_train, &Library::batch_norm_reference_eval, &Library::batch_norm_reference_bwd},
};
// clang-format on

}  // namespace

void train(const Queue& q, const NormShape& s, const void* x, const Affine& p, void* y, void* mean, void* var,
           const std::string& algorithm) {
  run(q, "batch_norm", list, &Kernel::train, Pass::fwd, algorithm, s, x, p, y, mean, var);
}

void eval(const Queue& q, const NormShape& s, const void* x, const Statistics& given, const Affine& p, void* y,
          const std::string& algorithm) {
  run(q, "batch_norm", list, &Kernel::eval, Pass::fwd, algorithm, s, x, given, p, y);
}

void bwd(const Queue& q, const NormShape& s, const void* dy, const void* x, const Statistics& given, const void* weight,
         const Gradients& out, const std::string& algorithm) {
  run(q, "batch_norm", list, &Kernel::bwd, Pass::bwd_input, algorithm, s, dy, x, given, weight, out);
}

std::vector<std::string> algorithms() { return names_of(list); }

}  // namespace pyconv::cuda::batch_norm

// Which batch norm runs on CUDA, and why: fastest first, the first kernel that does not refuse.
#include "cuda/batch_norm/batch_norm.h"
#include "cuda/batch_norm/parts.h"
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

std::string welford_why_not(const NormShape& s, Pass, Ask) {
  if (s.dtype == DType::f64) return "needs float32, bfloat16 or float16, got float64";
  const int64_t values = s.C * s.per_channel();
  if (values >= int64_t(1) << 31) return "needs fewer than 2^31 values, got " + std::to_string(values);
  return "";
}

int64_t welford_workspace(const NormShape& s, Pass) { return workspace_of(s); }

std::string reference_why_not(const NormShape&, Pass, Ask) { return ""; }

// clang-format off
constexpr Kernel list[] = {
    {"welford",   "csrc/cuda/batch_norm/welford.cu",   welford_why_not,   &Library::batch_norm_welford_train,   &Library::batch_norm_welford_eval,   &Library::batch_norm_welford_bwd, welford_workspace},
    {"reference", "csrc/cuda/batch_norm/reference.cu", reference_why_not, &Library::batch_norm_reference_train, &Library::batch_norm_reference_eval, &Library::batch_norm_reference_bwd},
};
// clang-format on

}  // namespace

void train(const Queue& q, const NormShape& s, const void* x, const Affine& p, const Epilogue& e, void* y, void* mean,
           void* var, const std::string& algorithm) {
  run(q, "batch_norm", list, &Kernel::train, Pass::fwd, algorithm, s, x, p, e, y, mean, var);
}

void eval(const Queue& q, const NormShape& s, const void* x, const Statistics& given, const Affine& p,
          const Epilogue& e, void* y, const std::string& algorithm) {
  run(q, "batch_norm", list, &Kernel::eval, Pass::fwd, algorithm, s, x, given, p, e, y);
}

void bwd(const Queue& q, const NormShape& s, const Upstream& up, const void* x, const Statistics& given,
         const void* weight, const Gradients& out, const std::string& algorithm) {
  run(q, "batch_norm", list, &Kernel::bwd, Pass::bwd_input, algorithm, s, up, x, given, weight, out);
}

std::vector<Answer> ask(const NormShape& s, Pass pass, Ask what) { return ask_all(list, s, pass, what); }
std::vector<std::string> algorithms() { return names_of(list); }

}  // namespace pyconv::cuda::batch_norm

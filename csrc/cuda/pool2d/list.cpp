// Which pooling kernel runs on CUDA, and why: fastest first, the first kernel that does not refuse.
#include "cuda/pool2d/pool2d.h"
#include "cuda/run.h"

namespace pyconv::cuda::pool2d {
namespace {

template <class Fwd, class Bwd>
struct Kernel {
  const char* name;
  const char* source;  // file, relative to the repository
  std::string (*why_not)(const Pool2dShape&, Pass, Ask);
  Fwd* Library::* fwd;
  Bwd* Library::* bwd;
  int64_t (*workspace)(const Pool2dShape&, Pass) = nullptr;
};
using Max = Kernel<MaxPool2dFwd, IndexedPool2d>;
using Avg = Kernel<AvgPool2d, AvgPool2d>;
using Unpool = Kernel<IndexedPool2d, IndexedPool2d>;

std::string reference_why_not(const Pool2dShape&, Pass, Ask) { return ""; }

std::string packs_why_not(const Pool2dShape& s, Pass, Ask) {
  if (s.dtype == DType::f64) return "needs float32, bfloat16 or float16, got float64";
  const int64_t values = s.N * s.C * at_least(s.h.in * s.w.in, s.h.out * s.w.out);
  // Less what a block's last threads count beyond them.
  if (values >= (int64_t(1) << 31) - 4096)
    return "needs fewer than 2^31 values per tensor, got " + std::to_string(values);
  return "";
}

// clang-format off
constexpr Max max_list[] = {
    {"packs",     "csrc/cuda/pool2d/packs.cu",     packs_why_not, &Library::max_pool2d_packs_fwd,     &Library::max_pool2d_packs_bwd},
    {"reference", "csrc/cuda/pool2d/reference.cu", reference_why_not, &Library::max_pool2d_reference_fwd, &Library::max_pool2d_reference_bwd},
};
constexpr Avg avg_list[] = {
    {"packs",     "csrc/cuda/pool2d/packs.cu", packs_why_not,     &Library::avg_pool2d_packs_fwd,     &Library::avg_pool2d_packs_bwd},
    {"reference", "csrc/cuda/pool2d/reference.cu", reference_why_not, &Library::avg_pool2d_reference_fwd, &Library::avg_pool2d_reference_bwd},
};
constexpr Unpool unpool_list[] = {
    {"reference", "csrc/cuda/pool2d/reference.cu", reference_why_not, &Library::max_unpool2d_reference_fwd, &Library::max_unpool2d_reference_bwd},
};
// clang-format on

}  // namespace

void max_fwd(const Queue& q, const char* op, const Pool2dShape& s, const void* x, void* y, int64_t* indices,
             const std::string& algorithm) {
  run(q, op, max_list, &Max::fwd, Pass::fwd, algorithm, s, x, y, indices);
}

void max_bwd(const Queue& q, const char* op, const Pool2dShape& s, const void* dy, const int64_t* indices, void* dx,
             const std::string& algorithm) {
  run(q, op, max_list, &Max::bwd, Pass::bwd_input, algorithm, s, dy, indices, dx);
}

void avg_fwd(const Queue& q, const char* op, const Pool2dShape& s, const void* x, void* y,
             const std::string& algorithm) {
  run(q, op, avg_list, &Avg::fwd, Pass::fwd, algorithm, s, x, y);
}

void avg_bwd(const Queue& q, const char* op, const Pool2dShape& s, const void* dy, void* dx,
             const std::string& algorithm) {
  run(q, op, avg_list, &Avg::bwd, Pass::bwd_input, algorithm, s, dy, dx);
}

void unpool_fwd(const Queue& q, const char* op, const Pool2dShape& s, const void* x, const int64_t* indices, void* y,
                const std::string& algorithm) {
  run(q, op, unpool_list, &Unpool::fwd, Pass::fwd, algorithm, s, x, indices, y);
}

void unpool_bwd(const Queue& q, const char* op, const Pool2dShape& s, const void* dy, const int64_t* indices, void* dx,
                const std::string& algorithm) {
  run(q, op, unpool_list, &Unpool::bwd, Pass::bwd_input, algorithm, s, dy, indices, dx);
}

std::vector<Answer> ask_max(const Pool2dShape& s, Pass pass, Ask what) { return ask_all(max_list, s, pass, what); }
std::vector<Answer> ask_avg(const Pool2dShape& s, Pass pass, Ask what) { return ask_all(avg_list, s, pass, what); }
std::vector<Answer> ask_unpool(const Pool2dShape& s, Pass pass, Ask what) {
  return ask_all(unpool_list, s, pass, what);
}
std::vector<std::string> max_algorithms() { return names_of(max_list); }
std::vector<std::string> avg_algorithms() { return names_of(avg_list); }
std::vector<std::string> unpool_algorithms() { return names_of(unpool_list); }

}  // namespace pyconv::cuda::pool2d

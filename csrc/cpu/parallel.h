// Threads: torch's own pool, reached through one hook so that the kernels know no torch. The hook has the signature of
// torch_parallel_for of the LibTorch stable ABI; bindings.cpp sets it, the C++ tests set one over std::thread.
#pragma once
#include <cstdint>
#include <stdexcept>

namespace pyconv {

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelHook = int (*)(int64_t begin, int64_t end, int64_t grain, RangeBody, void* context);

extern ParallelHook parallel_hook;  // serial until set

// Splits [0, n) into ranges of at least `grain` and calls body(begin, end) for each. What a range computes must not
// depend on where it was cut: results are identical for any number of threads.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  if (n <= grain) return body(int64_t(0), n);
  const RangeBody call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  if (parallel_hook(0, n, grain, call, const_cast<Body*>(&body)) != 0) {
    throw std::runtime_error("pyconv: a parallel region failed");
  }
}

}  // namespace pyconv

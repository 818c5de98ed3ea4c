// Threads: torch's own pool, reached through one hook so that the kernels know no torch. The hook has the signature of
// torch_parallel_for of the LibTorch stable ABI; bindings.cpp sets it, the C++ tests set one over std::thread.
#pragma once
#include <cstdint>
#include <stdexcept>

namespace pyconv {

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelHook = int (*)(int64_t begin, int64_t end, int64_t grain, RangeBody, void* context);

extern ParallelHook parallel_hook;  // serial until set
extern int64_t (*threads_hook)();   // of the pool; 1 until set

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

// How many threads a parallel_for may use. It may choose how work is cut, never the order in which a sum is taken.
inline int64_t threads() { return threads_hook(); }

// Into how many parts to cut each of `items` pieces of work so that all threads have as much to do: one if there are
// plenty.
inline int64_t parts_of(int64_t items) {
  if (items == 0 || items >= 8 * threads()) return 1;
  int64_t a = items, b = threads();  // threads() / gcd(items, threads())
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return threads() / a;
}

}  // namespace pyconv

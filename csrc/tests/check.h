// What the C++ tests share: threads of their own in the place of torch's pool, buffers that end where the tensor ends
// (so that AddressSanitizer sees one step beyond), and the exit code for an ISA this CPU lacks.
#pragma once
#include <algorithm>
#include <cstdio>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace pyconv {

constexpr int skipped = 77;  // ctest's SKIP_RETURN_CODE

inline int run_on_three_threads(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  const int64_t share = std::max((end - begin + 2) / 3, grain);
  std::vector<std::thread> threads;
  for (int64_t at = begin; at < end; at += share) {
    threads.emplace_back([=] { body(at, std::min(at + share, end), context); });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

// False where PYCONV_ISA names an instruction set this CPU lacks.
inline bool set_up() {
  parallel_hook = run_on_three_threads;
  threads_hook = [] { return int64_t(3); };
  try {
    isa();
  } catch (const std::invalid_argument& error) {
    std::puts(error.what());
    return false;
  }
  return true;
}

template <class T>
T as(double v) {
  return narrow<T>(static_cast<float>(v));
}
template <>
inline double as<double>(double v) {
  return v;
}
template <>
inline float as<float>(double v) {
  return static_cast<float>(v);
}

template <class T>
class Typed {
 public:
  explicit Typed(size_t n, size_t alignment = 16)
      : values_(static_cast<T*>(::operator new[](n * sizeof(T), std::align_val_t(alignment))), Free{alignment}) {}
  explicit Typed(const std::vector<double>& from) : Typed(from.size()) {
    for (size_t i = 0; i < from.size(); i++) values_[i] = as<T>(from[i]);
  }
  T* data() { return values_.get(); }
  const T* data() const { return values_.get(); }

 private:
  struct Free {
    size_t alignment;
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t(alignment)); }
  };
  std::unique_ptr<T[], Free> values_;
};

}  // namespace pyconv

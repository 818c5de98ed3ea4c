// What launchers ask of operands: their types and whether memory allows 16 bytes at once. Host code.
#pragma once
#include <initializer_list>

#include "common/shape.h"

namespace pyconv::cuda {

// Whether all are aligned to 16 bytes; null is.
inline bool aligned(std::initializer_list<const void*> operands) {
  for (const void* p : operands) {
    if (reinterpret_cast<uintptr_t>(p) % 16) return false;
  }
  return true;
}

template <class T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}

// f(T()) with the C++ type of a dtype whose sums are floats: any but float64. Returns what f does, the error of a launch.
template <class F>
int with_float_sums(DType dtype, const F& f) {
  return dtype == DType::f32 ? f(float()) : dtype == DType::bf16 ? f(bf16()) : f(f16());
}

}  // namespace pyconv::cuda

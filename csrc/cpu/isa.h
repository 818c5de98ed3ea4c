// The instruction set in use: the best this CPU has, or PYCONV_ISA, or what set_isa() was told. The only cpuid.
#pragma once
#include <string>
#include <vector>

namespace pyconv {

enum class Isa { portable, avx2, avx512, avx512_bf16 };

Isa isa();
const char* name_of(Isa isa);
std::vector<std::string> available_isas();  // widest last
void set_isa(const std::string& name);      // throws std::invalid_argument with the reason

// The instance of `function` for the ISA in use, of a kernel compiled through cpu/for_each_isa.inc; and of one that is
// compiled for avx512_bf16 too, for operands of type `dtype`.
#if defined(__x86_64__)
#define PYCONV_PER_ISA(function)                                          \
  (::pyconv::isa() >= ::pyconv::Isa::avx512 ? &::pyconv::avx512::function \
   : ::pyconv::isa() == ::pyconv::Isa::avx2 ? &::pyconv::avx2::function   \
                                            : &::pyconv::portable::function)
#define PYCONV_PER_ISA_OR_BF16(dtype, function)                                                                       \
  (::pyconv::isa() == ::pyconv::Isa::avx512_bf16 && dtype == ::pyconv::DType::bf16 ? &::pyconv::avx512_bf16::function \
                                                                                   : PYCONV_PER_ISA(function))
#else
#define PYCONV_PER_ISA(function) (&::pyconv::portable::function)
#define PYCONV_PER_ISA_OR_BF16(dtype, function) PYCONV_PER_ISA(function)
#endif

}  // namespace pyconv

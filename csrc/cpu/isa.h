// The instruction set in use: the best this CPU has, or PYCONV_ISA, or what set_isa() was told. The only cpuid.
#pragma once
#include <string>
#include <vector>

namespace pyconv {

enum class Isa { portable, avx2, avx512 };

Isa isa();
const char* name_of(Isa isa);
std::vector<std::string> available_isas();  // widest last
void set_isa(const std::string& name);      // throws std::invalid_argument with the reason

// The instance of `function` for the ISA in use, of a kernel compiled through cpu/for_each_isa.inc.
#if defined(__x86_64__)
#define PYCONV_PER_ISA(function)                                          \
  (::pyconv::isa() == ::pyconv::Isa::avx512 ? &::pyconv::avx512::function \
   : ::pyconv::isa() == ::pyconv::Isa::avx2 ? &::pyconv::avx2::function   \
                                            : &::pyconv::portable::function)
#else
#define PYCONV_PER_ISA(function) (&::pyconv::portable::function)
#endif

}  // namespace pyconv

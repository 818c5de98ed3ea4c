#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/parallel.h"

namespace pyconv {
namespace {

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
  if (isa == Isa::avx512) {
    return cpu_has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
#endif
  return isa == Isa::portable;
}

Isa named(const std::string& name) {
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (name != name_of(isa)) continue;
    if (!cpu_has(isa)) throw std::invalid_argument("pyconv: this CPU has no " + name);
    return isa;
  }
  throw std::invalid_argument("pyconv: there is no ISA \"" + name + "\"; there are portable, avx2, avx512");
}

Isa best() {
  if (cpu_has(Isa::avx512)) return Isa::avx512;
  return cpu_has(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

Isa& current() {
  static Isa isa = [] {
    const char* asked = std::getenv("PYCONV_ISA");
    return asked && *asked ? named(asked) : best();
  }();
  return isa;
}

int serial(int64_t begin, int64_t end, int64_t, RangeBody body, void* context) {
  body(begin, end, context);
  return 0;
}

}  // namespace

ParallelHook parallel_hook = serial;
int64_t (*threads_hook)() = [] { return int64_t(1); };

Isa isa() { return current(); }

const char* name_of(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable"; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (cpu_has(isa)) names.emplace_back(name_of(isa));
  }
  return names;
}

void set_isa(const std::string& name) { current() = named(name); }

}  // namespace pyconv

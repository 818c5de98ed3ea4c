#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/parallel.h"

namespace pyconv {
namespace {

constexpr Isa all[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

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
  if (isa == Isa::avx512_bf16) return cpu_has(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#endif
  return isa == Isa::portable;
}

Isa named(const std::string& name) {
  for (Isa isa : all) {
    if (name != name_of(isa)) continue;
    if (!cpu_has(isa)) throw std::invalid_argument("pyconv: this CPU has no " + name);
    return isa;
  }
  throw std::invalid_argument("pyconv: there is no ISA \"" + name +
                              "\"; there are portable, avx2, avx512, avx512_bf16");
}

Isa best() {
  Isa widest = Isa::portable;
  for (Isa isa : all) {
    if (cpu_has(isa)) widest = isa;
  }
  return widest;
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

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : all) {
    if (cpu_has(isa)) names.emplace_back(name_of(isa));
  }
  return names;
}

void set_isa(const std::string& name) { current() = named(name); }

}  // namespace pyconv

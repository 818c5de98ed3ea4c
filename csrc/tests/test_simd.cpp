// The vocabulary of cpu/simd.h on every ISA this program was built for, lane by lane, beside the scalar conversions of
// common/dtype.h; and those beside arithmetic in double.
#include <cmath>
#include <cstdio>

#include "tests/check.h"

#define PYCONV_KERNEL "tests/simd_words.h"
#include "cpu/for_each_isa.inc"

using namespace pyconv;

namespace {

// Every float16 widens to sign * mantissa * 2^exponent and narrows back to itself; so does every bfloat16.
int round_trips() {
  int bad = 0;
  for (int bits = 0; bits < 0x10000; bits++) {
    const f16 h = {static_cast<uint16_t>(bits)};
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float v = widen(h);
    if (exponent == 31) {
      bad += mantissa ? v == v : !std::isinf(v);
    } else {
      const double expected = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
      bad += v != (bits & 0x8000 ? -expected : expected) || narrow<f16>(v).bits != bits;
    }
    const bf16 b = {static_cast<uint16_t>(bits)};
    const float w = widen(b);
    bad += w == w && narrow<bf16>(w).bits != bits;
  }
  return bad;
}

// Halfway between two neighbours rounds to the even one, a hair above or below to the nearer.
int roundings() {
  int bad = 0;
  for (int bits = 0; bits < 0x7bff; bits++) {
    const float low = widen(f16{static_cast<uint16_t>(bits)}), high = widen(f16{static_cast<uint16_t>(bits + 1)});
    const float half = low + (high - low) / 2;
    bad += narrow<f16>(half).bits != bits + (bits & 1);
    bad += narrow<f16>(std::nextafter(half, low)).bits != bits;
    bad += narrow<f16>(std::nextafter(half, high)).bits != bits + 1;
  }
  bad += narrow<f16>(65519.f).bits != 0x7bff || narrow<f16>(65520.f).bits != 0x7c00;
  bad += narrow<bf16>(1.00390625f).bits != 0x3f80 || narrow<bf16>(1.01171875f).bits != 0x3f82;
  return bad;
}

}  // namespace

int main() {
  if (!set_up()) return skipped;
  const int bad = round_trips() + roundings() + PYCONV_PER_ISA(simd_words)();
  std::printf("%d wrong on %s\n", bad, name_of(isa()));
  return bad != 0;
}

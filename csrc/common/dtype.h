// Storage types and the types they are summed in: bf16 and f16 are read, widened to float, summed in float and
// rounded once, to nearest even, when stored.
#pragma once
#include <cstdint>
#include <cstring>

namespace pyconv {

enum class DType { f64, f32, bf16, f16 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double widen(double v) { return v; }
inline float widen(float v) { return v; }
inline float widen(bf16 v) { return float_from_bits(uint32_t(v.bits) << 16); }
inline float widen(f16 v) {
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude << 13));  // inf, NaN
  // Moving the 15 bits into a float's place scales by 2^-112; the product undoes it, subnormals included.
  return float_from_bits(sign | bits_of(float_from_bits(magnitude << 13) * 0x1p112f));
}

template <class T>
T narrow(float v);  // round to nearest even

template <>
inline bf16 narrow<bf16>(float v) {
  const uint32_t bits = bits_of(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};  // NaN stays NaN
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

template <>
inline f16 narrow<f16>(float v) {
  const uint32_t bits = bits_of(v);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};   // NaN
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and above round to inf
  if (magnitude < 0x38800000u) {                                    // below 2^-14: let the adder round
    return {uint16_t(sign | (bits_of(float_from_bits(magnitude) + 0.5f) - bits_of(0.5f)))};
  }
  return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13))};
}

inline void store(double* p, double v) { *p = v; }
inline void store(float* p, float v) { *p = v; }
inline void store(bf16* p, float v) { *p = narrow<bf16>(v); }
inline void store(f16* p, float v) { *p = narrow<f16>(v); }

// The type in which products of T are summed.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulate<T>::type;

// Calls f(T()) with the C++ type of `dtype`: the only switch over storage types.
template <class F>
void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64:
      return f(double());
    case DType::f32:
      return f(float());
    case DType::bf16:
      return f(bf16());
    case DType::f16:
      return f(f16());
  }
}

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "float64";
    case DType::f32:
      return "float32";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
  }
  return "?";
}

inline int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

}  // namespace pyconv

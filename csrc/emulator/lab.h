// How pyconv.lab launches a kernel of somebody else's, whose parameters it learns from the kernel's type: PYCONV_LAB(name),
// behind the kernel, exports what it takes and a launch by the addresses of its arguments, as cudaLaunchKernel does.
#pragma once
#include <string>
#include <type_traits>
#include <utility>

#include "emulator/words.h"

namespace pyconv::emulator {

template <class T>
struct NameOf {
  static constexpr const char* text = nullptr;  // of no type the lab knows
};
#define PYCONV_NAME(type, name)               \
  template <>                                 \
  struct NameOf<type> {                       \
    static constexpr const char* text = name; \
  };
PYCONV_NAME(float, "float32")
PYCONV_NAME(double, "float64")
PYCONV_NAME(bf16, "bfloat16")
PYCONV_NAME(f16, "float16")
PYCONV_NAME(int8_t, "int8")
PYCONV_NAME(uint8_t, "uint8")
PYCONV_NAME(int16_t, "int16")
PYCONV_NAME(int32_t, "int32")
PYCONV_NAME(uint32_t, "uint32")
PYCONV_NAME(int64_t, "int64")
PYCONV_NAME(long long, "int64")
PYCONV_NAME(bool, "bool")
#undef PYCONV_NAME

// "in float32 ", "out float32 " or "value int32 " for each parameter.
template <class... Parameters>
std::string parameters_of(void (*)(Parameters...)) {
  std::string text;
  const auto add = [&]<class P>(P*) {
    using Target = std::remove_pointer_t<P>;
    const char* name = NameOf<std::remove_cv_t<Target>>::text;
    text += !std::is_pointer_v<P> ? "value " : std::is_const_v<Target> ? "in " : "out ";
    text += std::string(name ? name : "?") + ' ';
  };
  (add(static_cast<std::remove_cv_t<Parameters>*>(nullptr)), ...);
  return text;
}

template <class... Parameters, size_t... i>
int launch_at(void (*kernel)(Parameters...), const unsigned* size, size_t shared_bytes, void** arguments,
              std::index_sequence<i...>) {
  return cuda::launch(kernel, dim3{size[0], size[1], size[2]}, dim3{size[3], size[4], size[5]}, shared_bytes, nullptr,
                      *static_cast<std::remove_cv_t<Parameters>*>(arguments[i])...);
}
template <class... Parameters>
int launch_at(void (*kernel)(Parameters...), const unsigned* size, size_t shared_bytes, void** arguments) {
  return launch_at(kernel, size, shared_bytes, arguments, std::index_sequence_for<Parameters...>());
}

}  // namespace pyconv::emulator

// A variable of the file and not of the function: what guards the latter is atomic, and the checker has no atomics.
#define PYCONV_LAB(kernel)                                                                                             \
  static const std::string pyconv_lab_text_##kernel = pyconv::emulator::parameters_of(kernel);                         \
  extern "C" __attribute__((visibility("default"))) const char* pyconv_lab_parameters_##kernel() {                     \
    return pyconv_lab_text_##kernel.c_str();                                                                           \
  }                                                                                                                    \
  extern "C" __attribute__((visibility("default"))) int pyconv_lab_launch_##kernel(const unsigned* size, size_t bytes, \
                                                                                   void** values) {                    \
    return pyconv::emulator::launch_at(kernel, size, bytes, values);                                                   \
  }

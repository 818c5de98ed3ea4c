// In the place of NVIDIA's runtime: what nvcc's host code asks of it, as far as pyconv does. A launch becomes a call of
// tests/ptx.py, which runs the kernel's PTX; all rules of a launch that a GPU would enforce are enforced here.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace {

struct Size {
  unsigned x, y, z;
};
struct Configuration {
  Size grid, block;
  size_t shared_bytes;
  void* stream;
};
using Launch = int(const char* name, const Size*, const Size*, size_t shared_bytes, void** arguments);
using Operand = void(const char* name, const void* data, int64_t bytes, int writable);

std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> all;
  return all;
}
std::map<const void*, int> opted_in;
Configuration configured;
int last_error = 0;
Launch* launch;
Operand* operand;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void pyconv_ptx_connect(Launch* a, Operand* b) { launch = a, operand = b; }
EXPORT void pyconv_emulator_operand(const char* name, const void* data, int64_t bytes, int writable) {
  operand(name, data, bytes, writable);
}

EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT char __cudaInitModule(void**) { return 1; }
EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                                   int*) {
  names()[host] = name;
}
EXPORT unsigned __cudaPushCallConfiguration(Size grid, Size block, size_t shared_bytes, void* stream) {
  configured = {grid, block, shared_bytes, stream};
  return 0;
}
EXPORT int __cudaPopCallConfiguration(Size* grid, Size* block, size_t* shared_bytes, void** stream) {
  *grid = configured.grid, *block = configured.block;
  *shared_bytes = configured.shared_bytes, *stream = configured.stream;
  return 0;
}
EXPORT int cudaFuncSetAttribute(const void* kernel, int attribute, int value) {
  constexpr int dynamic_shared_bytes = 8;
  if (attribute == dynamic_shared_bytes) opted_in[kernel] = value;
  return 0;
}
EXPORT int cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  return error;
}
EXPORT const char* cudaGetErrorString(int error) { return error == 719 ? "tests/ptx.py has the reason" : "refused"; }
EXPORT int cudaLaunchKernel(const void* kernel, Size grid, Size block, void** arguments, size_t shared_bytes, void*) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  const bool valid = threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x >= 1 && grid.x <= 0x7fffffff &&
                     grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535;
  const size_t allowed = opted_in.count(kernel) ? size_t(opted_in[kernel]) : 48 << 10;
  if (!valid || shared_bytes > allowed || shared_bytes > 99 << 10) return last_error = 1;
  return last_error = launch(names()[kernel].c_str(), &grid, &block, shared_bytes, arguments);
}
EXPORT int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return 0;
}
EXPORT int __cudaLaunchKernel(const void* kernel, Size grid, Size block, void** arguments, size_t shared_bytes,
                              void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

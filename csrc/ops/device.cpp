// Devices: the library, the stream and the memory of a call.
#include "ops/device.h"

#include <dlfcn.h>

#include <cstring>

namespace pyconv {

const cuda::Library* gpu_library = nullptr;
const cuda::Library* emulated_library = nullptr;

namespace {

// torch's current stream of a device. Found by name: a build of pyconv serves torch with and without CUDA.
void* current_stream(int32_t device) {
  using Get = AOTITorchError(int32_t, void**);
  static Get* const get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch_cuda ? reinterpret_cast<Get*>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  if (!get || get(device, &stream) != 0)
    throw std::runtime_error("pyconv: torch does not tell its current CUDA stream");
  return stream;
}

int64_t bytes_of(const Tensor& t) { return t.numel() * t.element_size(); }

}  // namespace

Device::Device(const Tensor& like) : like_(like) {
  if (like.is_cuda()) {
    if (!gpu_library) {
      throw std::runtime_error(
          "pyconv has no CUDA kernels in this build; move the tensors to the CPU, or see `python -m pyconv info`");
    }
    library_ = gpu_library;
    guard_.emplace(like.get_device_index());
    stream_ = current_stream(like.get_device_index());
  } else {
    library_ = emulated_library;
    if (library_ && library_->operand) library_->operand(nullptr, nullptr, 0, 0);  // forget the last call's
  }
}

Device::~Device() {
  if (library_ && library_->operand) library_->operand(nullptr, nullptr, 0, 0);
}

const void* Device::in(const char* name, const Tensor& t) const {
  const void* data = t.const_data_ptr();
  if (library_ && library_->operand) library_->operand(name, data, bytes_of(t), 0);
  return data;
}

void* Device::out(const char* name, Tensor& t) const {
  void* data = t.mutable_data_ptr();
  if (library_ && library_ == emulated_library && !t.is_cuda()) std::memset(data, 0xff, bytes_of(t));
  if (library_ && library_->operand) library_->operand(name, data, bytes_of(t), 1);
  return data;
}

void* Device::allocate(void* device, int64_t bytes) {
  Device& self = *static_cast<Device*>(device);
  Tensor scratch = torch::stable::new_empty(self.like_, {bytes}, ScalarType::Byte);
  self.scratch_.push_back(scratch);
  return self.out("workspace", scratch);
}

}  // namespace pyconv

// Where a call runs: on the CPU's kernels, on a GPU's, or, inside pyconv.cuda_emulator(), on the GPU's kernels emulated.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <vector>

#include "cuda/library.h"
#include "ops/tensor.h"

namespace pyconv {

// Set by Python: what CUDA tensors run on, and what CPU tensors run on instead of the CPU's kernels. Null: nothing.
extern const cuda::Library* gpu_library;
extern const cuda::Library* emulated_library;

class Device {
 public:
  // Of the operand `like`; makes its GPU the current one. Throws where a GPU is asked for and there are no kernels.
  explicit Device(const Tensor& like);
  ~Device();
  Device(const Device&) = delete;

  bool cuda() const { return library_ != nullptr; }

  // An operand's memory. The emulator hears its name and extent; an output it is given is full of NaNs.
  const void* in(const char* name, const Tensor& t) const;
  const void* in(const char* name, const std::optional<Tensor>& t) const { return t ? in(name, *t) : nullptr; }
  void* out(const char* name, Tensor& t) const;

  // Calls on_cuda(queue, arguments...) or on_cpu(arguments...).
  template <class OnCuda, class OnCpu, class... Arguments>
  void run(OnCuda* on_cuda, OnCpu* on_cpu, const Arguments&... arguments) {
    if (!library_) return on_cpu(arguments...);
    on_cuda(cuda::Queue{library_, stream_, allocate, this}, arguments...);
  }

 private:
  static void* allocate(void* device, int64_t bytes);

  const cuda::Library* library_ = nullptr;
  void* stream_ = nullptr;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  const Tensor& like_;
  std::vector<Tensor> scratch_;  // lives as long as the call; torch's allocator keeps it for the stream
};

}  // namespace pyconv

// The CUDA half is a shared object of its own, so that one build of pyconv serves machines with and without it: this is the
// table of what it exports. The same table is exported by the emulator, made of the same sources.
#pragma once
#include <string>

#include "common/launch.h"
#include "common/shape.h"

namespace pyconv::cuda {

// What a launcher gets besides its operands: scratch memory of the size that its kernel's list entry asked for, and the
// stream, a cudaStream_t.
struct Place {
  void* workspace;
  void* stream;
};

// Launchers return 0 or a cudaError_t. Operands are as in csrc/cpu: dense, of the shape's type and layout, written whole.
using Conv2dFwd = int(const Place&, const Conv2dShape&, const void* x, const void* w, const Epilogue&, void* y);
using Conv2dBwdInput = int(const Place&, const Conv2dShape&, const void* dy, const void* w, void* dx);
using Conv2dBwdWeight = int(const Place&, const Conv2dShape&, const void* dy, const void* x, void* dw);
using MaxPool2dFwd = int(const Place&, const Pool2dShape&, const void* x, void* y, int64_t* indices);
using AvgPool2d = int(const Place&, const Pool2dShape&, const void* from, void* to);
using IndexedPool2d = int(const Place&, const Pool2dShape&, const void* from, const int64_t* indices, void* to);
using BatchNormTrain = int(const Place&, const NormShape&, const void* x, const Affine&, const Epilogue&, void* y,
                           void* mean, void* var);
using BatchNormEval = int(const Place&, const NormShape&, const void* x, const Statistics&, const Affine&,
                          const Epilogue&, void* y);
using BatchNormBwd = int(const Place&, const NormShape&, const Upstream&, const void* x, const Statistics&,
                         const void* weight, const Gradients&);

// LAUNCHER(type, name): every entry point of the shared object, exported as pyconv_cuda_<name>.
#define PYCONV_CUDA_LAUNCHERS(LAUNCHER)                      \
  LAUNCHER(Conv2dFwd, conv2d_reference_fwd)                  \
  LAUNCHER(Conv2dBwdInput, conv2d_reference_bwd_input)       \
  LAUNCHER(Conv2dBwdWeight, conv2d_reference_bwd_weight)     \
  LAUNCHER(Conv2dFwd, conv2d_implicit_gemm_fwd)              \
  LAUNCHER(Conv2dBwdInput, conv2d_implicit_gemm_bwd_input)   \
  LAUNCHER(Conv2dBwdWeight, conv2d_implicit_gemm_bwd_weight) \
  LAUNCHER(Conv2dFwd, conv2d_tensor_cores_fwd)               \
  LAUNCHER(Conv2dBwdInput, conv2d_tensor_cores_bwd_input)    \
  LAUNCHER(Conv2dBwdWeight, conv2d_tensor_cores_bwd_weight)  \
  LAUNCHER(Conv2dFwd, conv2d_depthwise_fwd)                  \
  LAUNCHER(Conv2dBwdInput, conv2d_depthwise_bwd_input)       \
  LAUNCHER(Conv2dBwdWeight, conv2d_depthwise_bwd_weight)     \
  LAUNCHER(Conv2dFwd, conv2d_direct_fwd)                     \
  LAUNCHER(Conv2dBwdInput, conv2d_direct_bwd_input)          \
  LAUNCHER(Conv2dBwdWeight, conv2d_direct_bwd_weight)        \
  LAUNCHER(MaxPool2dFwd, max_pool2d_reference_fwd)           \
  LAUNCHER(IndexedPool2d, max_pool2d_reference_bwd)          \
  LAUNCHER(AvgPool2d, avg_pool2d_reference_fwd)              \
  LAUNCHER(AvgPool2d, avg_pool2d_reference_bwd)              \
  LAUNCHER(MaxPool2dFwd, max_pool2d_packs_fwd)               \
  LAUNCHER(IndexedPool2d, max_pool2d_packs_bwd)              \
  LAUNCHER(AvgPool2d, avg_pool2d_packs_fwd)                  \
  LAUNCHER(AvgPool2d, avg_pool2d_packs_bwd)                  \
  LAUNCHER(IndexedPool2d, max_unpool2d_reference_fwd)        \
  LAUNCHER(IndexedPool2d, max_unpool2d_reference_bwd)        \
  LAUNCHER(BatchNormTrain, batch_norm_reference_train)       \
  LAUNCHER(BatchNormEval, batch_norm_reference_eval)         \
  LAUNCHER(BatchNormBwd, batch_norm_reference_bwd)           \
  LAUNCHER(BatchNormTrain, batch_norm_welford_train)         \
  LAUNCHER(BatchNormEval, batch_norm_welford_eval)           \
  LAUNCHER(BatchNormBwd, batch_norm_welford_bwd)

struct Library {
#define PYCONV_FIELD(type, name) type* name;
  PYCONV_CUDA_LAUNCHERS(PYCONV_FIELD)
#undef PYCONV_FIELD
  const char* (*error)(int number);  // what went wrong, in words
  void (*note)(LaunchNote*);         // from now on told of every launch, which then does not run; null: they run
  // Told of every operand before a launch, where the library is the checking emulator; else null.
  void (*operand)(const char* name, const void* data, int64_t bytes, int writable);
};

extern "C" {
#define PYCONV_DECLARE(type, name) __attribute__((visibility("default"))) type pyconv_cuda_##name;
PYCONV_CUDA_LAUNCHERS(PYCONV_DECLARE)
#undef PYCONV_DECLARE
__attribute__((visibility("default"))) const char* pyconv_cuda_error(int number);
__attribute__((visibility("default"))) void pyconv_cuda_note(LaunchNote* note);
}

// The library in the shared object at `path`, loaded once; std::runtime_error where there is none.
const Library& load(const std::string& path);

// Where a call goes: whose kernels, on which stream, and how it gets scratch memory.
struct Queue {
  const Library* library;
  void* stream;
  void* (*allocate)(void* owner, int64_t bytes);
  void* owner;

  Place place(int64_t workspace_bytes) const {
    return {workspace_bytes ? allocate(owner, workspace_bytes) : nullptr, stream};
  }
};

}  // namespace pyconv::cuda

// From a list of kernels to a launch: chooses, asks for the workspace that the chosen one needs, launches, checks.
#pragma once
#include "common/kernel_list.h"
#include "cuda/library.h"

namespace pyconv::cuda {

// The kernels of an op; `launcher` is the pass of a Kernel, itself an entry of the Library.
template <class Kernel, size_t n, class Launcher, class Shape, class... Arguments>
void run(const Queue& q, const char* name, const Kernel (&list)[n], Launcher* Library::* Kernel::* launcher, Pass pass,
         const std::string& algorithm, const Shape& s, const Arguments&... arguments) {
  const std::string op = std::string(name) + " on CUDA";
  const Kernel& kernel = choose(op.c_str(), list, s, pass, algorithm);
  const Place at = q.place(kernel.workspace ? kernel.workspace(s, pass) : 0);
  const int error = (q.library->*(kernel.*launcher))(at, s, arguments...);
  if (error == 0) return;
  throw std::runtime_error(op + ": kernel " + kernel.name + ": CUDA error " + std::to_string(error) + ": " +
                           q.library->error(error));
}

}  // namespace pyconv::cuda

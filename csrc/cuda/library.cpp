// Finds the entry points of a shared object. Kernels are never called from here.
#include "cuda/library.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <stdexcept>

namespace pyconv::cuda {
namespace {

template <class Function>
void find(void* handle, const std::string& path, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(handle, name));
  if (!function)
    throw std::runtime_error("pyconv: " + path + " has no " + name + "; it is of another version of pyconv");
}

}  // namespace

const Library& load(const std::string& path) {
  static std::map<std::string, std::unique_ptr<Library>> loaded;
  std::unique_ptr<Library>& library = loaded[path];
  if (library) return *library;
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw std::runtime_error(std::string("pyconv: the CUDA kernels could not be loaded: ") + dlerror());
  auto fresh = std::make_unique<Library>();
#define PYCONV_FIND(type, name) find(handle, path, "pyconv_cuda_" #name, fresh->name);
  PYCONV_CUDA_LAUNCHERS(PYCONV_FIND)
#undef PYCONV_FIND
  find(handle, path, "pyconv_cuda_error", fresh->error);
  find(handle, path, "pyconv_cuda_note", fresh->note);
  fresh->operand = reinterpret_cast<decltype(fresh->operand)>(dlsym(handle, "pyconv_emulator_operand"));
  library = std::move(fresh);
  return *library;
}

}  // namespace pyconv::cuda

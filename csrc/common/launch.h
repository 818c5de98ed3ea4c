// What a launch asks of a GPU, and who is told of it instead, where somebody wants to know what would run: explain().
#pragma once
#include <cstddef>

namespace pyconv {

struct Launch {
  const void* kernel;  // its address in the shared object
  unsigned grid[3], block[3];
  size_t shared_bytes;
};
using LaunchNote = void(const Launch&);

// Of one shared object; null where launches are to run.
inline LaunchNote* launch_note = nullptr;

// Whether a launch is told of, and must not run.
template <class Kernel, class Size>
bool noted(Kernel* kernel, const Size& grid, const Size& block, size_t shared_bytes) {
  if (!launch_note) return false;
  launch_note(
      {reinterpret_cast<const void*>(kernel), {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes});
  return true;
}

}  // namespace pyconv

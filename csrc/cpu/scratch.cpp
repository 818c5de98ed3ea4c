#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace pyconv {
namespace {

struct Buffers {
  void* data[scratch_slots] = {};
  size_t bytes[scratch_slots] = {};
  ~Buffers() {
    for (void* p : data) std::free(p);
  }
};

}  // namespace

void* scratch(int slot, size_t bytes) {
  thread_local Buffers buffers;
  if (buffers.bytes[slot] < bytes) {
    std::free(buffers.data[slot]);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffers.data[slot] = std::aligned_alloc(64, rounded);
    buffers.bytes[slot] = buffers.data[slot] ? rounded : 0;
    if (!buffers.data[slot]) throw std::bad_alloc();
  }
  return buffers.data[slot];
}

}  // namespace pyconv

#include "cpu/scratch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace pyconv {
namespace {

std::atomic<size_t> questions{0}, asked_since{0};

struct Buffers {
  void* data[scratch_slots] = {};
  size_t bytes[scratch_slots] = {};
  size_t asked[scratch_slots] = {};  // the largest request since question number `question`
  size_t question = 0;
  ~Buffers() {
    for (void* p : data) std::free(p);
  }
};

}  // namespace

void* scratch(int slot, size_t bytes) {
  thread_local Buffers buffers;
  if (const size_t question = questions.load(std::memory_order_relaxed); buffers.question != question) {
    buffers.question = question;
    std::fill_n(buffers.asked, scratch_slots, 0);
  }
  if (buffers.asked[slot] < bytes) {
    asked_since += bytes - buffers.asked[slot];
    buffers.asked[slot] = bytes;
  }
  if (buffers.bytes[slot] < bytes) {
    std::free(buffers.data[slot]);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffers.data[slot] = std::aligned_alloc(64, rounded);
    buffers.bytes[slot] = buffers.data[slot] ? rounded : 0;
    if (!buffers.data[slot]) throw std::bad_alloc();
  }
  return buffers.data[slot];
}

size_t scratch_asked() {
  questions++;
  return asked_since.exchange(0);
}

}  // namespace pyconv

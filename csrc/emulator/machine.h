// The inside of the emulator: one fiber per CUDA thread, one block at a time, one thread of the operating system. A launch
// is the same in every run: the order in which threads run is a function of Settings alone.
#pragma once
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "emulator/words.h"

namespace pyconv::emulator {

constexpr int max_threads = 1024, max_warps = 32, lanes = 32;

// Which runnable thread goes next.
enum class Order : int { ascending, descending, random };

struct Settings {
  Order order = Order::ascending;
  uint64_t seed = 1;               // of Order::random
  bool copies_late = true;         // cp.async copies at the last legal moment, the wait for its group; else at issue
  size_t shared_limit = 99 << 10;  // bytes a block may ask for; the least that sm_80 to sm_120 all have
};
extern Settings settings;

// One cp.async, issued and not yet waited for.
struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool wanted;  // else zeros are written and nothing is read
  uint32_t group;
  void* site;
};

struct Fiber {
  Index3 thread;
  int number, lane, warp;  // number = thread.x + blockDim.x * (thread.y + blockDim.y * thread.z)
  uint32_t turn;           // collectives so far: their parity chooses a slot
  uint32_t group;          // of copies, committed so far
  std::vector<Copy> copies;
};

// What a lane brings to a collective and takes away. A lane has two, so that a fast one may enter the next collective
// while a slow one still reads the last.
struct alignas(16) Slot {
  unsigned char in[48], out[16];
};

// Lanes of a warp that wait for each other.
struct Collective {
  uint32_t mask, arrived;  // mask == 0: free
  const char* name;
  std::source_location place;
  Slot* slot[lanes];
};

struct Warp {
  uint32_t full, live, ready;  // lanes that exist, that have not returned, that could run now
  uint32_t epoch;              // how many times the whole warp has met in __syncwarp
  Collective collective[4];
  Slot slot[lanes][2];
};

struct Block {
  void (*body)(void*);
  void* arguments;
  char* shared;
  size_t shared_bytes;
  int threads, warps, live;
  int waiting;     // threads in the barrier
  uint32_t epoch;  // barriers passed
  int votes[2];    // of a barrier, by the parity of its epoch
  std::source_location barrier;
  bool failed;
  Warp warp[max_warps];
};
extern Block block;
extern Fiber* running;  // null outside a launch

// Switches to another fiber of the block, by the order of the settings; the caller must have made itself not ready.
void park();
// Ends the launch with this sentence.
[[noreturn]] void fail(const std::string& what);
std::string text_of(const std::source_location& place);
std::string text_of_thread(int number);
bool in_stacks(const void* address);

// __shared__ variables of all kernels of this library.
struct Range {
  char* begin;
  size_t bytes;
  bool has(const void* p) const { return p >= begin && p < begin + bytes; }
};
Range static_shared();

// What watches a launch: check.cpp, in the checked build.
enum Access : int { reads = 0, writes = 1, copied = 2 };
struct Watcher {
  void (*launch)();
  void (*block_begin)();
  void (*block_end)();
  void (*barrier)();
  void (*access)(void* site, const void* address, int bytes, int kind, int thread);
};
extern Watcher watcher;

}  // namespace pyconv::emulator

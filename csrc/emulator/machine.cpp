// A launch: blocks one after the other, and in each the threads in the order of the settings, until each has returned.
#include "emulator/machine.h"

#include <sys/mman.h>

#include <bit>
#include <cstdlib>
#include <mutex>

#include "emulator/fiber.h"

// Made by the linker where there is such a section.
extern "C" {
extern char __start_pyconv_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_pyconv_shared[] __attribute__((weak, visibility("hidden")));
}

pyconv::emulator::Index3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace pyconv::emulator {

Settings settings;
Block block;
Fiber* running;
Watcher watcher;

namespace {

constexpr size_t stack_bytes = 64 << 10;

Context outside, contexts[max_threads];
Fiber fibers[max_threads];
char* stacks;
uint64_t random_state;
std::string failure;

uint32_t random() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return uint32_t(random_state >> 11);
}

// The next fiber that is ready, or null. In order, a warp is left only when none of its lanes is ready.
Fiber* next() {
  const int first = settings.order == Order::random ? int(random() % block.warps) : running ? running->warp : 0;
  for (int i = 0; i < block.warps; i++) {
    const int w = (settings.order == Order::descending ? first - i + block.warps : first + i) % block.warps;
    const uint32_t ready = block.warp[w].ready;
    if (!ready) continue;
    if (settings.order == Order::ascending) return &fibers[w * lanes + std::countr_zero(ready)];
    if (settings.order == Order::descending) return &fibers[w * lanes + 31 - std::countl_zero(ready)];
    const int turn = random() & 31;
    return &fibers[w * lanes + ((std::countr_zero(std::rotr(ready, turn)) + turn) & 31)];
  }
  return nullptr;
}

void go(Fiber* to) {  // null: out of the block
  Fiber* from = running;
  if (to == from) return;
  running = to;
  if (to) threadIdx = to->thread;
  switch_to(from ? contexts[from->number] : outside, to ? contexts[to->number] : outside);
}

std::string deadlock() {
  std::string text = "deadlock: no thread can run;";
  if (block.waiting) {
    text += " " + std::to_string(block.waiting) + " of " + std::to_string(block.live) +
            " threads wait in the barrier at " + text_of(block.barrier) + ";";
  }
  for (int w = 0; w < block.warps; w++) {
    for (const Collective& c : block.warp[w].collective) {
      if (!c.mask) continue;
      text += " warp " + std::to_string(w) + ": " + std::to_string(std::popcount(c.arrived)) + " of " +
              std::to_string(std::popcount(c.mask)) + " lanes wait in " + c.name + " at " + text_of(c.place) + ";";
    }
  }
  text.pop_back();
  return text;
}

void open_barrier() {
  for (int w = 0; w < block.warps; w++) block.warp[w].ready |= block.warp[w].live;
  block.waiting = 0;
  block.epoch++;
  if (watcher.barrier) watcher.barrier();
}

// The life of a fiber: the kernel, once for every block.
void thread_main() {
  for (;;) {
    block.body(block.arguments);
    Warp& warp = block.warp[running->warp];
    const uint32_t bit = 1u << running->lane;
    if (block.waiting) {
      fail("barrier divergence: " + text_of_thread(running->number) + " returned while " +
           std::to_string(block.waiting) + " threads wait at " + text_of(block.barrier));
    }
    for (const Collective& c : warp.collective) {
      if (c.mask & bit) {
        fail(std::string(c.name) + " at " + text_of(c.place) + ": lane " + std::to_string(running->lane) +
             ", which its mask names, has returned");
      }
    }
    warp.live &= ~bit;
    warp.ready &= ~bit;
    if (--block.live == 0) {
      go(nullptr);
    } else if (Fiber* other = next()) {
      go(other);
    } else {
      fail(deadlock());
    }
  }
}

void begin(const Index3& where) {
  blockIdx = where;
  block.live = block.threads;
  block.waiting = 0;
  block.epoch = 0;
  for (int w = 0; w < block.warps; w++) {
    Warp& warp = block.warp[w];
    const int count = block.threads - lanes * w;
    warp.full = warp.live = warp.ready = count >= lanes ? ~0u : (1u << count) - 1;
    warp.epoch = 0;
    for (Collective& c : warp.collective) c.mask = 0;
  }
  for (int i = 0; i < block.threads; i++) {
    fibers[i].group = 0;
    fibers[i].copies.clear();
  }
  // What no thread has written is a NaN of every floating type.
  if (block.shared_bytes) std::memset(block.shared, 0xff, block.shared_bytes);
  if (const Range own = static_shared(); own.bytes) std::memset(own.begin, 0xff, own.bytes);
}

bool valid(const Index3& grid, const Index3& size, size_t shared_bytes) {
  const uint64_t threads = uint64_t(size.x) * size.y * size.z;
  return threads >= 1 && threads <= max_threads && size.z <= 64 && grid.x >= 1 && grid.x <= 0x7fffffffu &&
         grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 && shared_bytes <= settings.shared_limit;
}

std::string text_of(const Index3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

void prepare_fibers(const Index3& size) {
  if (!stacks) {
    void* memory = mmap(nullptr, max_threads * stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<char*>(memory);
  }
  for (int i = 0; i < block.threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.number = i;
    fiber.lane = i % lanes;
    fiber.warp = i / lanes;
    fiber.turn = 0;
    fiber.thread = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    prepare(contexts[i], stacks + i * stack_bytes, stack_bytes, thread_main);
  }
}

}  // namespace

#if defined(__x86_64__)
__attribute__((naked, noinline)) void switch_stacks(Context* /*rdi*/, Context /*rsi*/) {
  asm volatile(
      "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15;"
      "mov %rsp, (%rdi); mov %rsi, %rsp;"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}
#endif

std::string text_of(const std::source_location& place) {
  std::string file = place.file_name();
  const size_t root = file.rfind("csrc/");
  return (root == std::string::npos ? file : file.substr(root)) + ":" + std::to_string(place.line());
}

std::string text_of_thread(int number) {
  return "thread " + text_of(fibers[number].thread) + " of block " + text_of(blockIdx);
}

bool in_stacks(const void* address) {
  return stacks && address >= stacks && address < stacks + max_threads * stack_bytes;
}

Range static_shared() { return {__start_pyconv_shared, size_t(__stop_pyconv_shared - __start_pyconv_shared)}; }

const char* failure_text() { return failure.c_str(); }

void fail(const std::string& what) {
  failure = what;
  block.failed = true;
  go(nullptr);
  __builtin_unreachable();
}

void park() {
  Fiber* other = next();
  if (!other) fail(deadlock());
  go(other);
}

int barrier(Vote vote, int predicate, std::source_location place) {
  if (block.live != block.threads) {
    fail("barrier divergence: " + text_of_thread(running->number) + " waits at " + text_of(place) + " after " +
         std::to_string(block.threads - block.live) + " threads have returned");
  }
  int& votes = block.votes[block.epoch & 1];
  if (block.waiting == 0) {
    block.barrier = place;
    votes = vote == Vote::all;
  } else if (place.line() != block.barrier.line() || place.column() != block.barrier.column() ||
             std::strcmp(place.file_name(), block.barrier.file_name()) != 0) {
    fail("barrier divergence: " + text_of_thread(running->number) + " waits at " + text_of(place) + ", others at " +
         text_of(block.barrier));
  }
  if (vote == Vote::any) votes |= predicate != 0;
  if (vote == Vote::all) votes &= predicate != 0;
  if (vote == Vote::count) votes += predicate != 0;
  if (++block.waiting == block.live) {
    open_barrier();
    if (settings.order == Order::random) park();
  } else {
    block.warp[running->warp].ready &= ~(1u << running->lane);
    park();
  }
  return votes;
}

void* shared_memory(size_t bytes) {
  if (bytes > block.shared_bytes) {
    fail("the kernel uses " + std::to_string(bytes) + " bytes of shared memory and was launched with " +
         std::to_string(block.shared_bytes));
  }
  return block.shared;
}

void require_aligned(const void* address, size_t bytes, std::source_location place) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) [[likely]]
    return;
  fail("misaligned access of " + std::to_string(bytes) + " bytes at " + text_of(place) + " by " +
       text_of_thread(running->number));
}

int launch(const Index3& grid, const Index3& size, size_t shared_bytes, void (*body)(void*), void* arguments) {
  static std::mutex one_at_a_time;
  const std::lock_guard guard(one_at_a_time);
  failure.clear();
  if (!valid(grid, size, shared_bytes)) {
    failure = "invalid launch: grid " + text_of(grid) + ", block " + text_of(size) + ", " +
              std::to_string(shared_bytes) + " bytes of shared memory";
    return 9;  // cudaErrorInvalidConfiguration
  }
  // Fresh memory for every launch, a page of it unreadable behind the end would be better still: check.cpp sees more.
  static std::vector<unsigned char> shared;
  shared.resize(shared_bytes + 128);
  block.shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 127) & ~uintptr_t(127));
  block.shared_bytes = shared_bytes;
  block.body = body;
  block.arguments = arguments;
  block.threads = int(size.x * size.y * size.z);
  block.warps = (block.threads + lanes - 1) / lanes;
  block.failed = false;
  blockDim = {size.x, size.y, size.z};
  gridDim = {grid.x, grid.y, grid.z};
  random_state = settings.seed * 0x9e3779b97f4a7c15u | 1;
  prepare_fibers(size);
  if (watcher.launch) watcher.launch();
  for (unsigned z = 0; z < grid.z; z++) {
    for (unsigned y = 0; y < grid.y; y++) {
      for (unsigned x = 0; x < grid.x; x++) {
        begin({x, y, z});
        if (watcher.block_begin) watcher.block_begin();
        running = nullptr;
        if (settings.order == Order::descending) running = &fibers[block.threads - 1];
        Fiber* first = next();
        running = nullptr;
        go(first);
        if (watcher.block_end) watcher.block_end();
        if (block.failed) return 719;  // cudaErrorLaunchFailure
      }
    }
  }
  return 0;
}

}  // namespace pyconv::emulator

extern "C" {
__attribute__((visibility("default"))) const char* pyconv_emulator_error() { return pyconv::emulator::failure_text(); }
__attribute__((visibility("default"))) void pyconv_emulator_configure(int order, uint64_t seed, int copies_late) {
  pyconv::emulator::settings.order = static_cast<pyconv::emulator::Order>(order);
  pyconv::emulator::settings.seed = seed;
  pyconv::emulator::settings.copies_late = copies_late != 0;
}
}

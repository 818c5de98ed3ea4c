// What a kernel must not do to memory, seen at every access: touch what is nobody's, read what nobody wrote, write an
// input, or race. Two accesses race if one writes, they are of different threads, and neither a barrier, nor a __syncwarp of
// their common warp, lies between; threads of different blocks are never ordered within a launch.
#include "emulator/check.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <map>

namespace pyconv::emulator {
namespace {

constexpr int granule = 2;  // bytes with one record, the smallest type there is

// Who touched something last, and when.
struct Stamp {
  uint32_t block = 0, barriers = 0, warp_syncs = 0, site = 0;
  uint16_t thread = 0;
};

// A second reader is kept if it is of another warp: one reader a barrier orders must not hide one that nothing does.
struct Record {
  Stamp writer, reader[2];
};

struct Operand {
  std::string name;
  char* data;
  size_t bytes;
  bool writable;
  std::vector<Record> records;  // of what can be written
};

std::vector<Operand> operands;
size_t last_operand = 0;
std::vector<Record> shared_records;
uint32_t block_count = 0, first_block = 1;  // blocks so far, and the first of this launch
char *stack_low, *stack_high;               // of the thread that launched
std::map<std::string, int> findings;

char* base() {
  static char* const address = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&base), &info);
    return static_cast<char*>(info.dli_fbase);
  }();
  return address;
}

// Whether p lies in what this library may write: its variables, and not its constants.
bool is_variable(const char* p) {
  static const std::vector<Range> writable = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* object, size_t, void* out) {
          for (int i = 0; i < object->dlpi_phnum && reinterpret_cast<char*>(object->dlpi_addr) == base(); i++) {
            const auto& part = object->dlpi_phdr[i];
            if (part.p_type != PT_LOAD || !(part.p_flags & PF_W)) continue;
            static_cast<std::vector<Range>*>(out)->push_back({base() + part.p_vaddr, size_t(part.p_memsz)});
          }
          return 0;
        },
        &found);
    return found;
  }();
  for (const Range& range : writable) {
    if (range.has(p)) return true;
  }
  return false;
}

uint32_t site_of(void* return_address) { return uint32_t(static_cast<char*>(return_address) - base()); }

// kind, site, other site, in words: one line of the report, said once.
void find(const char* kind, uint32_t site, uint32_t other, const std::string& words) {
  const std::string key = std::string(kind) + '\t' + std::to_string(site) + '\t' + std::to_string(other);
  for (auto& [text, count] : findings) {
    if (text.compare(0, key.size() + 1, key + '\t') == 0) {
      count++;
      return;
    }
  }
  findings[key + '\t' + words] = 1;
}

bool before(const Stamp& a, const Stamp& b) {
  if (a.block != b.block) return false;
  if (a.thread == b.thread || a.barriers < b.barriers) return true;
  return a.thread / lanes == b.thread / lanes && a.warp_syncs < b.warp_syncs;
}

void race(const char* how, const Stamp& a, const Stamp& b, const std::string& name, size_t offset) {
  find("race", b.site, a.site,
       std::string(how) + " byte " + std::to_string(offset) + " of " + name + ": " + text_of_thread(b.thread) +
           ", after thread " + std::to_string(a.thread) + (a.block == b.block ? "" : " of another block") +
           " and with nothing between");
}

void record(std::vector<Record>& records, size_t offset, int bytes, int kind, const Stamp& now, Memory memory,
            const std::string& name) {
  const uint32_t oldest = memory == Memory::shared ? block_count : first_block;  // before that, all is ordered
  for (size_t i = offset / granule; i <= (offset + bytes - 1) / granule; i++) {
    Record& r = records[i];
    const bool fresh = r.writer.block >= oldest;
    if (kind & writes) {
      if (fresh && !before(r.writer, now)) {
        race("written twice:", r.writer, now, name, i * granule);
      }
      for (const Stamp& reader : r.reader) {
        if (reader.block >= oldest && !before(reader, now)) race("read, then written:", reader, now, name, i * granule);
      }
      r.writer = now;
      continue;
    }
    if (memory == Memory::shared ? !fresh : r.writer.block == 0) {
      find("uninitialised", now.site, 0,
           "byte " + std::to_string(i * granule) + " of " + name + " is read by " + text_of_thread(now.thread) +
               " before anything is written there");
    } else if (fresh && !before(r.writer, now)) {
      race("written, then read:", r.writer, now, name, i * granule);
    }
    const auto stale = [&](const Stamp& s) { return s.block != now.block || s.barriers != now.barriers; };
    Stamp(&reader)[2] = r.reader;
    if (reader[0].thread == now.thread || stale(reader[0])) {
      reader[0] = now;
    } else if (stale(reader[1]) || reader[1].thread / lanes == reader[0].thread / lanes) {
      reader[1] = now;
    }
  }
}

Operand* operand_at(const char* p) {
  for (size_t i = 0; i < operands.size(); i++) {
    const size_t j = (last_operand + i) % operands.size();
    if (p >= operands[j].data && p < operands[j].data + operands[j].bytes) {
      last_operand = j;
      return &operands[j];
    }
  }
  return nullptr;
}

// What a kernel may touch without having been given it: its own stack, the launch's arguments, built-in variables, and
// constants of this library.
bool is_its_own(const char* p) {
  if (in_stacks(p) || (p >= stack_low && p < stack_high)) return true;
  const auto in = [p](const auto& variable) {
    return p >= reinterpret_cast<const char*>(&variable) && p < reinterpret_cast<const char*>(&variable + 1);
  };
  if (in(threadIdx) || in(blockIdx) || in(blockDim) || in(gridDim)) return true;
  Dl_info info;
  return dladdr(p, &info) && info.dli_fbase == base() && !is_variable(p);
}

std::string neighbour(const char* p) {
  const auto near = [p](const char* data, size_t bytes, const std::string& name) -> std::string {
    const char* end = data + bytes;
    if (p < data && data - p < 65536) return std::to_string(data - p) + " bytes before " + name;
    if (p >= end && p - end < 65536) return std::to_string(p - end) + " bytes past the end of " + name;
    return "";
  };
  for (const Operand& o : operands) {
    const std::string text = near(o.data, o.bytes, o.name);
    if (!text.empty()) return text;
  }
  for (const Range& shared : {Range{block.shared, block.shared_bytes}, static_shared()}) {
    const std::string text = shared.bytes ? near(shared.begin, shared.bytes, "shared memory") : "";
    if (!text.empty()) return text;
  }
  return "far from every operand";
}

// A wild access could end the process: the launch ends before it is made.
[[noreturn]] void out_of_bounds(uint32_t site, int bytes, int kind, int thread, const std::string& where) {
  const std::string words = std::string(kind & writes ? "a write" : "a read") + " of " + std::to_string(bytes) +
                            " bytes " + where + " by " + text_of_thread(thread);
  find("out of bounds", site, 0, words);
  fail("out of bounds: " + words);
}

void note(void* from, const void* address, int bytes, int kind, int thread) {
  const char* p = static_cast<const char*>(address);
  if (!running || in_stacks(p)) return;
  const uint32_t site = site_of(from);
  const Stamp now = {block_count, block.epoch, block.warp[thread / lanes].epoch, site, uint16_t(thread)};
  size_t before = 0;  // bytes of shared memory, the launch's and then the variables'
  for (const Range& shared : {Range{block.shared, block.shared_bytes}, static_shared()}) {
    if (shared.has(p)) {
      if (p + bytes > shared.begin + shared.bytes)
        out_of_bounds(site, bytes, kind, thread, "across the end of shared memory");
      const size_t offset = before + size_t(p - shared.begin);
      record(shared_records, offset, bytes, kind, now, Memory::shared, "shared memory");
      count_traffic(site, Memory::shared, offset, bytes, kind, thread);
      return;
    }
    before = (shared.bytes + 127) / 128 * 128;
  }
  if (Operand* o = operand_at(p)) {
    const size_t offset = size_t(p - o->data);
    if (offset + bytes > o->bytes) out_of_bounds(site, bytes, kind, thread, "across the end of " + o->name);
    if ((kind & writes) && !o->writable) {
      find("input written", site, 0, o->name + " is written by " + text_of_thread(thread));
    } else if (o->writable) {
      record(o->records, offset, bytes, kind, now, Memory::global, o->name);
    }
    count_traffic(site, Memory::global, reinterpret_cast<uintptr_t>(p), bytes, kind, thread);
    return;
  }
  if (!is_its_own(p)) out_of_bounds(site, bytes, kind, thread, neighbour(p));
}

void begin_launch() {
  first_block = block_count + 1;
  shared_records.assign((block.shared_bytes + 128 + static_shared().bytes) / granule + 1, {});
  pthread_attr_t attributes;
  void* low;
  size_t bytes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &low, &bytes);
  pthread_attr_destroy(&attributes);
  stack_low = static_cast<char*>(low);
  stack_high = stack_low + bytes;
}

[[maybe_unused]] const bool watching = [] {
  watcher = {begin_launch, [] { block_count++; }, flush_traffic, flush_traffic, note};
  return true;
}();

}  // namespace
}  // namespace pyconv::emulator

using namespace pyconv::emulator;

#define PYCONV_EXPORT extern "C" __attribute__((visibility("default")))

// An operand of the launches that follow; a null name forgets all of them.
PYCONV_EXPORT void pyconv_emulator_operand(const char* name, const void* data, int64_t bytes, int writable) {
  if (!name) return operands.clear();
  if (bytes == 0) return;
  char* start = const_cast<char*>(static_cast<const char*>(data));
  operands.push_back({name, start, size_t(bytes), writable != 0, {}});
  if (writable) operands.back().records.resize(size_t(bytes) / granule + 1);
}

// Lines "kind, site, other site, words, times", tabs between; forgets them.
PYCONV_EXPORT const char* pyconv_emulator_findings() {
  static std::string text;
  text.clear();
  for (const auto& [line, count] : findings) text += line + '\t' + std::to_string(count) + '\n';
  findings.clear();
  return text.c_str();
}

PYCONV_EXPORT const char* pyconv_emulator_traffic() {
  static std::string text;
  text = take_traffic();
  return text.c_str();
}

// --- what the compiler calls

#define PYCONV_NOTE(address, bytes, kind) \
  if (running) note(__builtin_return_address(0), address, int(bytes), kind, running->number)
#define PYCONV_SIZE(n)                                                            \
  extern "C" void __tsan_read##n(void* p) { PYCONV_NOTE(p, n, reads); }           \
  extern "C" void __tsan_write##n(void* p) { PYCONV_NOTE(p, n, writes); }         \
  extern "C" void __tsan_unaligned_read##n(void* p) { PYCONV_NOTE(p, n, reads); } \
  extern "C" void __tsan_unaligned_write##n(void* p) { PYCONV_NOTE(p, n, writes); }
PYCONV_SIZE(1)
PYCONV_SIZE(2)
PYCONV_SIZE(4)
PYCONV_SIZE(8)
PYCONV_SIZE(16)
extern "C" {
void __tsan_read_range(void* p, size_t n) { PYCONV_NOTE(p, n, reads); }
void __tsan_write_range(void* p, size_t n) { PYCONV_NOTE(p, n, writes); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void*, void*) {}
}

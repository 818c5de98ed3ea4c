// What each source line asks of memory, counted as the hardware would: the n-th time lanes of a warp pass a line, between two
// barriers, is one request. Global memory moves 32-byte sectors; shared memory serves 32 banks of 4 bytes, a request of 8
// or 16 bytes per lane in two or four parts, and each part as many times as its busiest bank has different words.
#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_map>

#include "emulator/check.h"

namespace pyconv::emulator {
namespace {

struct Noted {
  uint32_t site;
  uint16_t kind, bytes;
  Memory memory;
  uint64_t address;
};

struct Request {
  Noted first;
  int count;
  uint64_t address[lanes];
};

struct Line {
  uint64_t requests = 0, lanes = 0, cost = 0, least = 0;  // cost in sectors or passes
};

std::vector<Noted> noted[max_threads];
std::map<std::tuple<uint32_t, Memory, int, int>, Line> lines;  // by site, memory, kind and bytes

template <class Values>
size_t distinct(Values& values) {
  std::sort(values.begin(), values.end());
  return std::unique(values.begin(), values.end()) - values.begin();
}

// Sectors that hold the request's bytes, and how few could.
void count_sectors(const Request& r, Line& line) {
  std::vector<uint64_t> sectors, pieces;
  for (int i = 0; i < r.count; i++) {
    const uint64_t end = r.address[i] + r.first.bytes;
    for (uint64_t s = r.address[i] / 32; s * 32 < end; s++) sectors.push_back(s);
    for (uint64_t p = r.address[i] / 2; p * 2 < end; p++) pieces.push_back(p);
  }
  line.cost += distinct(sectors);
  line.least += (distinct(pieces) * 2 + 31) / 32;
}

void count_passes(const Request& r, Line& line) {
  const int together = r.first.bytes <= 4 ? 32 : r.first.bytes == 8 ? 16 : 8;
  for (int part = 0; part < r.count; part += together) {
    std::vector<uint64_t> words;
    for (int i = part; i < std::min(part + together, r.count); i++) {
      for (uint64_t w = r.address[i] / 4; w * 4 < r.address[i] + r.first.bytes; w++) words.push_back(w);
    }
    words.resize(distinct(words));
    int in_bank[32] = {};
    for (uint64_t w : words) in_bank[w % 32]++;
    line.cost += *std::max_element(in_bank, in_bank + 32);
    line.least++;
  }
}

void add(const Request& r) {
  Line& line = lines[{r.first.site, r.first.memory, r.first.kind, r.first.bytes}];
  line.requests++;
  line.lanes += r.count;
  if (r.first.memory == Memory::global) {
    count_sectors(r, line);
  } else {
    count_passes(r, line);
  }
}

}  // namespace

void count_traffic(uint32_t site, Memory memory, uint64_t address, int bytes, int kind, int thread) {
  noted[thread].push_back({site, uint16_t(kind & writes), uint16_t(bytes), memory, address});
}

void flush_traffic() {
  std::unordered_map<uint64_t, int> times, index;
  std::vector<Request> requests;
  for (int w = 0; w < block.warps; w++) {
    index.clear();
    requests.clear();
    for (int t = w * lanes; t < std::min((w + 1) * lanes, block.threads); t++) {
      times.clear();
      for (const Noted& a : noted[t]) {
        const uint64_t line = uint64_t(a.site) << 2 | uint64_t(a.memory) << 1 | a.kind;
        const auto [at, fresh] = index.try_emplace(line << 24 | uint64_t(times[line]++), int(requests.size()));
        if (fresh) requests.push_back({a, 0, {}});
        Request& r = requests[at->second];
        if (r.count < lanes) r.address[r.count++] = a.address;
      }
      noted[t].clear();
    }
    for (const Request& r : requests) add(r);
  }
}

// Lines "site shared writes bytes requests lanes cost least"; forgets them.
std::string take_traffic() {
  std::string text;
  for (const auto& [key, line] : lines) {
    const auto& [site, memory, kind, bytes] = key;
    for (uint64_t v : {uint64_t(site), uint64_t(memory == Memory::shared), uint64_t(kind), uint64_t(bytes),
                       line.requests, line.lanes, line.cost, line.least}) {
      text += std::to_string(v) + ' ';
    }
    text.back() = '\n';
  }
  lines.clear();
  return text;
}

}  // namespace pyconv::emulator

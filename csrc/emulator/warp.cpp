// What the lanes of a warp do together: meet, shuffle, vote, multiply matrices; and what a lane asks for later: copies.
#include <bit>

#include "emulator/machine.h"

namespace pyconv::emulator {
namespace {

// Lanes of a mask meet here. Each leaves its operands in a slot; the last to come computes every lane's result.
struct Meeting {
  Collective* last;  // null for all but the last lane
  Slot* mine;
};

bool same(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

Collective& find_or_open(Warp& warp, uint32_t mask, const char* name, const std::source_location& place) {
  const auto here = [&] { return std::string(name) + " at " + text_of(place); };
  for (Collective& c : warp.collective) {
    if (c.mask == mask) {
      if (c.name == name && same(c.place, place)) return c;
      fail("warp divergence: " + here() + ", while other lanes of the mask are in " + c.name + " at " +
           text_of(c.place));
    }
    if (c.mask & mask) fail(here() + ": its mask overlaps that of " + c.name + " at " + text_of(c.place));
  }
  for (Collective& c : warp.collective) {
    if (c.mask) continue;
    c.mask = mask;
    c.arrived = 0;
    c.name = name;
    c.place = place;
    return c;
  }
  fail(here() + ": more than four groups of lanes wait at once");
}

template <class In>
Meeting meet(uint32_t mask, const char* name, const In& in, const std::source_location& place) {
  static_assert(sizeof(In) <= sizeof(Slot::in), "operands fit a slot");
  Warp& warp = block.warp[running->warp];
  const uint32_t bit = 1u << running->lane;
  if (!(mask & bit)) {
    fail(std::string(name) + " at " + text_of(place) + ": lane " + std::to_string(running->lane) +
         " is not in its own mask");
  }
  if (mask & ~warp.live) {
    fail(std::string(name) + " at " + text_of(place) + ": the mask names lanes that have returned or do not exist");
  }
  Collective& c = find_or_open(warp, mask, name, place);
  Slot* slot = &warp.slot[running->lane][running->turn++ & 1];
  std::memcpy(slot->in, &in, sizeof in);
  c.slot[running->lane] = slot;
  c.arrived |= bit;
  if (c.arrived == c.mask) return {&c, slot};
  warp.ready &= ~bit;
  park();
  return {nullptr, slot};
}

void release(Collective& c) {
  block.warp[running->warp].ready |= c.mask;
  c.mask = 0;
}

template <class In>
In in_of(const Collective& c, int lane) {
  In in;
  std::memcpy(&in, c.slot[lane]->in, sizeof in);
  return in;
}

template <class Out>
Out out_of(const Meeting& m) {
  Out out;
  std::memcpy(&out, m.mine->out, sizeof out);
  return out;
}

// body(lane) for every lane of the mask.
template <class Body>
void for_lanes(uint32_t mask, const Body& body) {
  for (; mask; mask &= mask - 1) body(std::countr_zero(mask));
}

float element(Fragment type, uint32_t bits) {
  if (type == Fragment::tf32) return float_from_bits(bits & ~0x1fffu);  // of 19 bits; the others are not looked at
  return type == Fragment::bf16 ? widen(bf16{uint16_t(bits)}) : widen(f16{uint16_t(bits)});
}

struct MmaIn {
  uint32_t a[4], b[2];
  float c[4];
};

// PTX ISA, "Matrix fragments for mma.m16n8k16": with g = lane / 4 and t = lane % 4,
//   A register r: row g + 8*(r&1), columns 2t and 2t+1, + 8*(r>>1);  B: rows 2t and 2t+1, + 8*r, column g
//   C and D register r: row g + 8*(r>>1), column 2t + (r&1)
// and mma.m16n8k8 of tf32 likewise, with one value in a register: columns of A and rows of B are t, + 4*(r>>1) and + 4*r.
struct Matrices {
  float a[16][16], b[16][8], c[16][8];
};

void gather(Matrices& m, Fragment type, int lane, const MmaIn& in) {
  const int g = lane >> 2, t = lane & 3, values = type == Fragment::tf32 ? 1 : 2;
  for (int h = 0; h < values; h++) {
    for (int r = 0; r < 4; r++) {
      m.a[g + 8 * (r & 1)][values * (t + 4 * (r >> 1)) + h] = element(type, in.a[r] >> (16 * h));
    }
    for (int r = 0; r < 2; r++) m.b[values * (t + 4 * r) + h][g] = element(type, in.b[r] >> (16 * h));
  }
  for (int r = 0; r < 4; r++) m.c[g + 8 * (r >> 1)][2 * t + (r & 1)] = in.c[r];
}

void finish(const Copy& copy) {
  if (watcher.access) {
    if (copy.wanted) watcher.access(copy.site, copy.from, copy.bytes, reads | copied, running->number);
    watcher.access(copy.site, copy.to, copy.bytes, writes | copied, running->number);
  }
  if (copy.wanted) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  } else {
    std::memset(copy.to, 0, copy.bytes);
  }
}

}  // namespace

void sync_warp(uint32_t mask, std::source_location place) {
  const Meeting m = meet(mask & block.warp[running->warp].full, "__syncwarp", 0, place);
  if (!m.last) return;
  Warp& warp = block.warp[running->warp];
  if (m.last->mask == warp.full) warp.epoch++;
  release(*m.last);
}

uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int lane, std::source_location place) {
  struct In {
    uint64_t value;
    int lane;
  };
  const Meeting m = meet(mask, "a shuffle", In{value, lane}, place);
  if (m.last) {
    for_lanes(m.last->mask, [&](int l) {
      const int asked = in_of<In>(*m.last, l).lane;
      int from = l ^ asked;
      if (kind == Shuffle::from) from = asked & 31;
      if (kind == Shuffle::up) from = l - asked;
      if (kind == Shuffle::down) from = l + asked;
      if (from < 0 || from > 31) from = l;
      if (!(m.last->mask >> from & 1)) {
        fail("a shuffle at " + text_of(place) + ": lane " + std::to_string(l) + " reads lane " + std::to_string(from) +
             ", which is not in the mask");
      }
      std::memcpy(m.last->slot[l]->out, m.last->slot[from]->in, sizeof(uint64_t));
    });
    release(*m.last);
  }
  return out_of<uint64_t>(m);
}

uint32_t ballot(uint32_t mask, int predicate, std::source_location place) {
  const Meeting m = meet(mask, "a ballot", predicate, place);
  if (m.last) {
    uint32_t votes = 0;
    for_lanes(m.last->mask, [&](int l) { votes |= uint32_t(in_of<int>(*m.last, l) != 0) << l; });
    for_lanes(m.last->mask, [&](int l) { std::memcpy(m.last->slot[l]->out, &votes, sizeof votes); });
    release(*m.last);
  }
  return out_of<uint32_t>(m);
}

void mma(Fragment type, float* d, const uint32_t* a, const uint32_t* b, std::source_location place) {
  MmaIn in;
  std::memcpy(in.a, a, sizeof in.a);
  std::memcpy(in.b, b, sizeof in.b);
  std::memcpy(in.c, d, sizeof in.c);
  const Meeting m = meet(~0u, "mma.sync", in, place);
  if (m.last) {
    Matrices x;
    for (int l = 0; l < lanes; l++) gather(x, type, l, in_of<MmaIn>(*m.last, l));
    const int terms = type == Fragment::tf32 ? 8 : 16;
    for (int row = 0; row < 16; row++) {
      for (int k = 0; k < terms; k++) {
        for (int column = 0; column < 8; column++) x.c[row][column] += x.a[row][k] * x.b[k][column];
      }
    }
    for (int l = 0; l < lanes; l++) {
      float out[4];
      for (int r = 0; r < 4; r++) out[r] = x.c[(l >> 2) + 8 * (r >> 1)][2 * (l & 3) + (r & 1)];
      std::memcpy(m.last->slot[l]->out, out, sizeof out);
    }
    release(*m.last);
  }
  std::memcpy(d, m.mine->out, 4 * sizeof(float));
}

// ldmatrix.x4: lanes 8i to 8i+7 bring the addresses of the rows of matrix i, 8 x 8 of 16 bits.
void load_matrices(uint32_t* d, bool transposed, const void* row, std::source_location place) {
  struct In {
    const void* row;
    void* site;
  };
  const Meeting m = meet(~0u, "ldmatrix", In{row, __builtin_return_address(0)}, place);
  if (m.last) {
    for (int i = 0; i < 4; i++) {
      uint16_t matrix[8][8];
      for (int r = 0; r < 8; r++) {
        const In in = in_of<In>(*m.last, i * 8 + r);
        require_aligned(in.row, 16, place);
        if (watcher.access) watcher.access(in.site, in.row, 16, reads, running->warp * lanes + i * 8 + r);
        std::memcpy(matrix[r], in.row, 16);
      }
      for (int l = 0; l < lanes; l++) {
        const int g = l >> 2, t = l & 3;
        const uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
        const uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
        const uint32_t both = low | high << 16;
        std::memcpy(m.last->slot[l]->out + 4 * i, &both, sizeof both);
      }
    }
    release(*m.last);
  }
  std::memcpy(d, m.mine->out, 16);
}

void copy_async(void* to, const void* from, int bytes, bool wanted, std::source_location place) {
  require_aligned(to, bytes, place);
  if (wanted) require_aligned(from, bytes, place);
  const Copy copy{to, from, bytes, wanted, running->group, __builtin_return_address(0)};
  if (settings.copies_late) {
    running->copies.push_back(copy);
  } else {
    finish(copy);
  }
}

void copy_async_commit() { running->group++; }

// All but the `newest` committed groups are there.
void copy_async_wait(int newest) {
  std::vector<Copy>& copies = running->copies;
  size_t done = 0;
  while (done < copies.size() && copies[done].group + newest < running->group) finish(copies[done++]);
  copies.erase(copies.begin(), copies.begin() + done);
}

}  // namespace pyconv::emulator

// Working memory of a kernel call. Each thread keeps one buffer per slot and only ever grows it: a fresh buffer of
// some MB costs more in page faults (1.3 us per 4 KB, measured) than most layers cost in arithmetic.
#pragma once
#include <cstddef>

namespace pyconv {

constexpr int scratch_slots = 5;

// At least `bytes`, aligned to 64, contents undefined, valid until this thread asks for the same slot again.
void* scratch(int slot, size_t bytes);

// What all threads together have asked for since the last question: the largest request of each slot, summed. For
// explain(); meaningless while calls run beside each other.
size_t scratch_asked();

}  // namespace pyconv

// The checking emulator: every load and store of a kernel comes through note(). Kernels are compiled with
// -fsanitize=thread, which puts a call before each; check.cpp answers those calls in the place of libtsan.
#pragma once
#include <cstdint>
#include <string>

#include "emulator/machine.h"

namespace pyconv::emulator {

enum class Memory { shared, global };

// Adds an access to what its source line did. `address` is an offset into shared memory, or an address.
void count_traffic(uint32_t site, Memory memory, uint64_t address, int bytes, int kind, int thread);
// Turns what was noted since the last barrier into requests of whole warps.
void flush_traffic();
std::string take_traffic();

}  // namespace pyconv::emulator

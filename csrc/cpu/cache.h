#pragma once
#include <cstdint>

namespace pyconv {

// Of the last-level cache that the first core sees; 32 MB where Linux does not say. (sysconf believes the host, not the
// virtual machine: 384 MB for 32.) A test may set it.
extern int64_t last_cache_bytes;

}  // namespace pyconv

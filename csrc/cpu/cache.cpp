#include "cpu/cache.h"

#include <cstdio>

namespace pyconv {

int64_t last_cache_bytes = [] {
  long kilobytes = 0;
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%ldK", &kilobytes) != 1) kilobytes = 0;
    std::fclose(file);
  }
  return int64_t(kilobytes > 0 ? kilobytes : 32 << 10) << 10;
}();

}  // namespace pyconv

#include <atomic>
#include <chrono>
#include <cstdint>

#include "common/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/roofline.h"

#define PYCONV_KERNEL "cpu/peak.h"
#define PYCONV_KERNEL_FOR_BF16
#include "cpu/for_each_isa.inc"

namespace pyconv {

double measured_flops(DType dtype, int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto burst = dtype == DType::f64    ? PYCONV_PER_ISA(peak::fma_f64)
                     : dtype == DType::bf16 ? PYCONV_PER_ISA_OR_BF16(dtype, peak::fma_bf16)
                                            : PYCONV_PER_ISA(peak::fma_f32);
  std::atomic<int64_t> done{0};
  const Clock::time_point start = Clock::now();
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      do {
        done += static_cast<int64_t>(burst(10000));
      } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
    }
  });
  return static_cast<double>(done) / std::chrono::duration<double>(Clock::now() - start).count();
}

double round_trip_nanoseconds(double seconds) {
  using Clock = std::chrono::steady_clock;
  alignas(128) std::atomic<int64_t> ball{0};
  std::atomic<bool> over{false};
  int64_t trips = 0;
  double elapsed = 0;
  parallel_for(2, 1, [&](int64_t begin, int64_t end) {
    if (end - begin > 1) return;  // one thread: nobody to play with
    if (begin == 0) {
      const Clock::time_point start = Clock::now();
      while (elapsed < seconds) {
        for (int i = 0; i < 1000; i++, trips++) {
          ball.store(2 * trips + 1, std::memory_order_release);
          int64_t patience = int64_t(1) << 28;
          while (ball.load(std::memory_order_acquire) != 2 * trips + 2 && --patience > 0) {
          }
          if (patience == 0) break;
        }
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      }
      over = true;
    } else {
      int64_t seen = 0;
      while (!over) {
        const int64_t now = ball.load(std::memory_order_acquire);
        if (now > seen && now % 2 == 1) ball.store(seen = now + 1, std::memory_order_release);
      }
    }
  });
  return trips ? elapsed / static_cast<double>(trips) * 1e9 : 0;
}

}  // namespace pyconv

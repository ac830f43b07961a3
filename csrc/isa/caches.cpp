// SPDX-License-Identifier: Apache-2.0
// Reads the second-level cache's size from cpuid. Compiled for the oldest processor.
#include "caches.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace slipstream {
namespace {

constexpr int64_t kUnknown = 1024 * 1024, kLeast = 256 * 1024, kMost = 4096 * 1024;

#if defined(__x86_64__)
// Both makers describe each cache alike: Intel in leaf 4 ("deterministic cache parameters"), AMD in leaf 0x8000001D.
int64_t told_by(unsigned leaf) {
  for (unsigned index = 0; index < 8; ++index) {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(leaf, index, &eax, &ebx, &ecx, &edx)) return 0;
    const unsigned type = eax & 31, level = (eax >> 5) & 7;
    if (type == 0) return 0;
    if (level != 2) continue;
    const int64_t ways = (ebx >> 22) + 1, partitions = ((ebx >> 12) & 1023) + 1, line = (ebx & 4095) + 1;
    const int64_t threads = ((eax >> 14) & 4095) + 1;  // that share it; two of them may be one core's
    return ways * partitions * line * (static_cast<int64_t>(ecx) + 1) / (threads > 2 ? threads / 2 : 1);
  }
  return 0;
}

int64_t told() {
  const int64_t intel = told_by(4);
  return intel > 0 ? intel : told_by(0x8000001du);
}
#else
int64_t told() { return 0; }
#endif

int64_t read_size() {
  const int64_t bytes = told();
  if (bytes <= 0) return kUnknown;
  return bytes < kLeast ? kLeast : bytes > kMost ? kMost : bytes;
}

std::atomic<int64_t> in_use{read_size()};

}  // namespace

int64_t second_level_cache() { return in_use.load(std::memory_order_relaxed); }

void set_second_level_cache(int64_t bytes) { in_use.store(bytes, std::memory_order_relaxed); }

}  // namespace slipstream

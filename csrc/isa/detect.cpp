// SPDX-License-Identifier: Apache-2.0
// What the processor has (cpuid) and what the kernel grants (xgetbv, arch_prctl). Compiled for the oldest processor.
#include "level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace slipstream {

#if defined(__x86_64__)
namespace {

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

bool bit(unsigned word, int position) { return (word >> position) & 1u; }

// The register state that the kernel saves on a context switch (XCR0).
uint64_t saved_state() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives a process the tile registers only on request: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool tile_data_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Level detect() {
  const Registers one = cpuid(1, 0);
  if (!bit(one.ecx, 27)) return Level::baseline;  // OSXSAVE: xgetbv may be used
  const uint64_t state = saved_state();
  const Registers seven = cpuid(7, 0), seven_one = cpuid(7, 1);

  constexpr uint64_t kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 0x60000;
  const bool avx2 = (state & kAvxState) == kAvxState && bit(one.ecx, 12) /* fma */ && bit(one.ecx, 29) /* f16c */ &&
                    bit(seven.ebx, 5);
  if (!avx2) return Level::baseline;
  const bool avx512 = (state & kAvx512State) == kAvx512State && bit(seven.ebx, 16) /* f */ && bit(seven.ebx, 17) /* dq */ &&
                      bit(seven.ebx, 28) /* cd */ && bit(seven.ebx, 30) /* bw */ && bit(seven.ebx, 31) /* vl */;
  if (!avx512) return Level::avx2;
  if (!bit(seven.ecx, 11)) return Level::avx512;
  if (!bit(seven_one.eax, 5)) return Level::avx512_vnni;
  const bool amx = (state & kTileState) == kTileState && bit(seven.edx, 22) /* bf16 */ && bit(seven.edx, 24) /* tile */ &&
                   bit(seven.edx, 25) /* int8 */;
  if (!bit(seven.edx, 23)) return Level::avx512_bf16;
  return amx && tile_data_granted() ? Level::amx : Level::avx512_fp16;
}

bool made_by_intel() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx && ecx == signature_INTEL_ecx &&
         edx == signature_INTEL_edx;
}

}  // namespace
bool has_avx_vnni() { return best_level() >= Level::avx2 && bit(cpuid(7, 1).eax, 4); }

#else
namespace {
Level detect() { return Level::baseline; }
bool made_by_intel() { return false; }
}  // namespace
bool has_avx_vnni() { return false; }
#endif

Level best_level() {
  static const Level level = detect();
  return level;
}

Level default_level() {
  static const bool intel = made_by_intel();
  const Level best = best_level();
  return best == Level::avx512_fp16 && !intel ? Level::avx512_bf16 : best;
}

}  // namespace slipstream

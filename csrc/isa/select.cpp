// SPDX-License-Identifier: Apache-2.0
// Level names, and the one place that says which table is in use.
#include <atomic>

#include "level.h"

namespace slipstream {

const char* name_of(Level level) {
  static const char* const names[kLevelCount] = {
      "baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16_widened", "avx512_bf16", "avx512_fp16", "amx", "amx_emulated", "avx2_plain"};
  return names[static_cast<int>(level)];
}

namespace {

#if defined(__x86_64__)
const KernelTable* const tables[kLevelCount] = {
    &table_baseline, &table_avx2, &table_avx512, &table_avx512_vnni, &table_avx512_bf16_widened, &table_avx512_bf16, &table_avx512_fp16,
    &table_amx, &table_amx_emulated, &table_avx2};
#else
const KernelTable* const tables[kLevelCount] = {&table_baseline, nullptr, nullptr, nullptr, nullptr,
                                                nullptr,         nullptr, nullptr, &table_amx_emulated, nullptr};
#endif

std::atomic<int> active{-1};

}  // namespace

bool runs_here(Level level) {
  if (level == Level::avx2_plain) return best_level() >= Level::avx2;
  return level == Level::amx_emulated || level <= best_level();
}

Level active_level() {
  const int level = active.load(std::memory_order_relaxed);
  return level < 0 ? default_level() : static_cast<Level>(level);
}

bool set_level(Level level) {
  if (!runs_here(level)) return false;
  active.store(static_cast<int>(level), std::memory_order_relaxed);
  return true;
}

const KernelTable& table() {
  const Level level = active_level();
#if defined(__x86_64__)
  static const bool avx_vnni = has_avx_vnni();
  if (level == Level::avx2 && avx_vnni) return table_avx2_vnni;
#endif
  return *tables[static_cast<int>(level)];
}

}  // namespace slipstream

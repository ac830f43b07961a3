// SPDX-License-Identifier: Apache-2.0
// The levels of instruction sets, in ascending order; each includes all before it.
#pragma once

#include "table.h"

namespace slipstream {

enum class Level : int32_t { baseline, avx2, avx512, avx512_vnni, avx512_bf16_widened, avx512_bf16, avx512_fp16, amx, amx_emulated, avx2_plain };
constexpr int32_t kLevelCount = 10;

const char* name_of(Level level);

// The highest level that the processor has and the kernel grants. `amx_emulated` is never found: it runs the tile kernels
// on plain C++ tiles, so that they can be tested where there is no AMX, and has to be asked for; so has `avx2_plain`, which is avx2 as it
// is without AVX-VNNI.
Level best_level();

// The level to use where none is asked for: best_level(), but for avx512_fp16 where dot products of bfloat16 are as fast and sum in
// float32, which is on all but Intel's processors. There one dot product takes two cycles, in which four multiply-adds of
// float32 or float16 can start (measured: 0.085, 0.175 and 0.378 TFLOP/s a core); Zen 4 starts one each cycle, at the price of
// one multiply-add.
Level default_level();

// Whether the processor multiplies int8 in 256-bit registers (AVX-VNNI): some have it without AVX-512, some AVX-512 without it.
bool has_avx_vnni();

// Whether this machine can run a level.
bool runs_here(Level level);

// The level in use: default_level() until set_level() is called. set_level returns false, and changes nothing, when the machine
// cannot run that level.
Level active_level();
bool set_level(Level level);

const KernelTable& table();

}  // namespace slipstream

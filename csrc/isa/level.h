// SPDX-License-Identifier: Apache-2.0
// The levels of instruction sets, in ascending order; each includes all before it.
#pragma once

#include "table.h"

namespace slipstream {

enum class Level : int32_t { baseline, avx2, avx512, avx512_vnni, avx512_bf16_widened, avx512_bf16, amx, amx_emulated };
constexpr int32_t kLevelCount = 8;

const char* name_of(Level level);

// The highest level that the processor has and the kernel grants. `amx_emulated` is never found: it runs the tile kernels
// on plain C++ tiles, so that they can be tested where there is no AMX, and has to be asked for.
Level best_level();

// The level to use where none is asked for: best_level(), but for avx512_bf16 on Intel processors of Sapphire Rapids' kind and
// later. One dot product of bfloat16 keeps them two cycles, in which they could start four multiply-adds of float32 (measured:
// 0.085 against 0.170 TFLOP/s a core); Zen 4 starts one each cycle, at the price of one multiply-add. So bfloat16 is widened there.
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

// SPDX-License-Identifier: Apache-2.0
// How much of the caches a thread may count on. Blocks are chosen by it; what they compute never depends on it.
#pragma once

#include <cstdint>

namespace slipstream {

// Bytes of the second-level cache that a core has, or its share of one that more cores have together; 1 MiB where the processor
// does not tell. Between 256 KiB and 4 MiB.
int64_t second_level_cache();

// Counts on so many bytes from now on, for tests and measurements.
void set_second_level_cache(int64_t bytes);

}  // namespace slipstream

// SPDX-License-Identifier: Apache-2.0
// What the kernels go by: which instruction sets this machine runs and which are in use, and the size of the cache that blocks fit.
#include <torch/csrc/stable/library.h>

#include <string>

#include "../isa/level.h"

namespace slipstream {
namespace {

// "best", "default" or "active" -> its name. torch's stable operators take and return strings by value.
std::string level(std::string which) {
  return name_of(which == "best" ? best_level() : which == "default" ? default_level() : active_level());
}

// False when the name is unknown or the machine cannot run it.
bool use_level(std::string name) {
  for (int i = 0; i < kLevelCount; ++i) {
    if (name == name_of(static_cast<Level>(i))) return set_level(static_cast<Level>(i));
  }
  return false;
}

// What bfloat16 weights become in the active level: "bfloat16" where nothing is scaled. `of` is "winograd", or "linear" for all else.
std::string scaled_type(std::string of) {
  const ElementType type = (of == "winograd" ? table().winograd_scaling : table().scaling).type;
  return type == ElementType::float16 ? "float16" : type == ElementType::int16 ? "int16" : "bfloat16";
}

int64_t cache_in_use() { return second_level_cache(); }

void use_cache(int64_t bytes) {
  STD_TORCH_CHECK(bytes > 0, "bytes: not the size of a cache");
  set_second_level_cache(bytes);
}

}  // namespace

STABLE_TORCH_LIBRARY(slipstream, library) {
  library.def("level(str which) -> str");
  library.def("use_level(str name) -> bool");
  library.def("scaled_type(str of) -> str");
  library.def("second_level_cache() -> int");
  library.def("use_second_level_cache(int bytes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CompositeExplicitAutograd, library) {
  library.impl("level", TORCH_BOX(&level));
  library.impl("use_level", TORCH_BOX(&use_level));
  library.impl("scaled_type", TORCH_BOX(&scaled_type));
  library.impl("second_level_cache", TORCH_BOX(&cache_in_use));
  library.impl("use_second_level_cache", TORCH_BOX(&use_cache));
}

}  // namespace slipstream

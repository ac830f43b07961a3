// SPDX-License-Identifier: Apache-2.0
// slipstream::levels and slipstream::set_level: which instruction sets this machine runs, and which are in use.
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

}  // namespace

STABLE_TORCH_LIBRARY(slipstream, library) {
  library.def("level(str which) -> str");
  library.def("use_level(str name) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CompositeExplicitAutograd, library) {
  library.impl("level", TORCH_BOX(&level));
  library.impl("use_level", TORCH_BOX(&use_level));
}

}  // namespace slipstream

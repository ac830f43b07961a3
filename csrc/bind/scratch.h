// SPDX-License-Identifier: Apache-2.0
// Scratch memory of a thread: grows, is kept between calls, and is given back when the thread ends.
#pragma once

#include <cstdlib>
#include <new>

namespace slipstream {

class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  // At least `bytes` bytes at a 64-byte boundary, contents undefined; valid until the next call on this thread.
  void* take(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(4096, size_);
      if (!memory_) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

inline Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

}  // namespace slipstream

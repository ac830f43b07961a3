// SPDX-License-Identifier: Apache-2.0
// Work in rounds, each cut into parts, where a round may begin when the one before is done. Threads take the parts; there may be
// fewer threads than parts, down to one, and none is waited for that has not taken a part.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace slipstream {

class Turns {
 public:
  explicit Turns(int64_t parts) : parts_(parts), next_(new Next[static_cast<size_t>(parts)]) {}

  // Takes part in all rounds and returns when the last is done. `first` is the part that this thread asks for first: as long as
  // every thread is on time each gets the same part in each round, and finds its share of the weights in its own cache.
  template <typename Work>
  void take_part(int64_t rounds, int64_t first, const Work& work) {
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t complete = (round + 1) * parts_;
      for (int64_t i = 0; i < parts_ && done_.load(std::memory_order_relaxed) < complete; ++i) {
        const int64_t part = (first + i) % parts_;
        int64_t expected = round;
        if (!next_[part].round.compare_exchange_strong(expected, round + 1, std::memory_order_relaxed)) continue;
        work(round, part);
        done_.fetch_add(1, std::memory_order_release);
      }
      wait_for(complete);
    }
  }

 private:
  // The others are about to finish; where they have lost their processor, this one is given back.
  void wait_for(int64_t complete) const {
    constexpr int kSpins = 2000;  // some 50 us
    for (int spins = 0; done_.load(std::memory_order_acquire) < complete; ++spins) {
#if defined(__x86_64__)
      if (spins < kSpins) {
        __builtin_ia32_pause();
        continue;
      }
#endif
      std::this_thread::yield();
    }
  }

  struct alignas(64) Next {
    std::atomic<int64_t> round{0};
  };
  int64_t parts_;
  std::unique_ptr<Next[]> next_;
  alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace slipstream

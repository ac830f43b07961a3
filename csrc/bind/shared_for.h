// SPDX-License-Identifier: Apache-2.0
// Work over torch's threads, of which one that is done early helps the others: cores are not equally fast where another tenant
// has the other half of one, where a process takes one for a while, or where they are of two kinds.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <memory>

namespace slipstream {

// A run of a share, in eighths of it. A share is taken as a half, a quarter and two eighths: a thread on time keeps what it
// reads in its caches for long, and what is left at the end for others to take is little.
struct Run {
  int64_t from, to;
  int64_t begin(int64_t size) const { return (size * from + 7) / 8; }
  int64_t end(int64_t size) const { return (size * to + 7) / 8; }
};
constexpr Run kWholeShare{0, 8};
constexpr Run kRuns[] = {{0, 4}, {4, 6}, {6, 7}, {7, 8}};
constexpr int kRunsOfAShare = 4;

// Multiplications that repay waking another thread: a core does about 100 of them a nanosecond at best, waking takes about 5 us.
constexpr int64_t kProductsWorthAThread = 250'000;

inline int64_t threads_for(int64_t work, int64_t worth_a_thread) {
  const int64_t wanted = work / worth_a_thread + 1;
  if (wanted == 1) return 1;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  return wanted < threads ? wanted : threads;
}

// Whether an eighth of such a share is worth as much as waking a thread.
inline bool is_worth_cutting(int64_t share_work, int64_t worth_a_thread) { return share_work >= 8 * worth_a_thread; }

// Calls work(share, run) for all runs of all shares, or once for each share where it is not to be cut. Each thread begins with
// its own share; who takes which run changes from call to call, so a result must not depend on it.
template <typename Work>
void share_out(int64_t shares, bool cut, const Work& work) {
  if (shares == 1) return work(int64_t{0}, kWholeShare);
  if (!cut) {
    torch::stable::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t share = begin; share < end; ++share) work(share, kWholeShare);
    });
    return;
  }
  struct alignas(64) Taken {
    std::atomic<bool> run[kRunsOfAShare] = {};
  };
  const std::unique_ptr<Taken[]> taken(new Taken[static_cast<size_t>(shares)]);
  torch::stable::parallel_for(0, shares, 1, [&](int64_t begin, int64_t) {
    for (int64_t i = 0; i < shares; ++i) {
      const int64_t share = (begin + i) % shares;
      for (int r = 0; r < kRunsOfAShare; ++r) {
        std::atomic<bool>& mine = taken[static_cast<size_t>(share)].run[r];
        if (mine.load(std::memory_order_relaxed) || mine.exchange(true, std::memory_order_relaxed)) continue;
        work(share, kRuns[r]);
      }
    }
  });
}

// Calls work(begin, end) for ranges that together are [0, size), of which one costs `unit` and `worth_a_thread` repays waking
// another thread.
template <typename Work>
void shared_for(int64_t size, int64_t unit, int64_t worth_a_thread, const Work& work) {
  if (size <= 0) return;
  const int64_t threads = threads_for(size * unit, worth_a_thread), shares = size < threads ? size : threads;
  share_out(shares, is_worth_cutting(size * unit / shares, worth_a_thread), [&](int64_t share, Run run) {
    const int64_t first = size * share / shares, length = size * (share + 1) / shares - first;
    const int64_t begin = first + run.begin(length), end = first + run.end(length);
    if (begin < end) work(begin, end);
  });
}

}  // namespace slipstream

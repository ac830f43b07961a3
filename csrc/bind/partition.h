// SPDX-License-Identifier: Apache-2.0
// How a rectangle of outputs is split over threads.
#pragma once

#include "../isa/level.h"
#include "../kernels/linear.h"
#include "shared_for.h"

namespace slipstream {

struct Grid {
  int64_t by_rows = 1, by_panels = 1;
  int64_t size() const { return by_rows * by_panels; }
};

// What parts cost besides their products, against a row's product with a panel. Copying an element of x costs as much as so many
// of its multiplications; a panel comes from memory, or another core's cache, in the time of so many rows. Tiles multiply faster.
struct PartCosts {
  double copy_panels, fetch_rows;
};
inline PartCosts part_costs() { return table().linear_split ? PartCosts{2, 32} : PartCosts{0.5, 16}; }

// The grid of at most `threads` parts whose largest part costs least: a part copies its own rows of x and fetches its own panels.
inline Grid choose_grid(int64_t m, int64_t panels, int64_t threads) {
  const PartCosts costs = part_costs();
  Grid best;
  double best_cost = -1;
  for (int64_t rows = 1; rows <= threads && rows <= m; ++rows) {
    int64_t columns = threads / rows;
    if (columns > panels) columns = panels;
    if (columns < 1) columns = 1;
    const double part_rows = static_cast<double>((m + rows - 1) / rows);
    const double part_panels = static_cast<double>((panels + columns - 1) / columns);
    const double cost = part_rows * (part_panels + costs.copy_panels) + costs.fetch_rows * part_panels;
    if (best_cost < 0 || cost < best_cost * 0.999) {
      best_cost = cost;
      best.by_rows = rows;
      best.by_panels = columns;
    }
  }
  return best;
}

inline LinearPart part_of(const Grid& grid, int64_t index, int64_t m, int64_t panels) {
  const int64_t r = index / grid.by_panels, p = index % grid.by_panels;
  return {m * r / grid.by_rows, m * (r + 1) / grid.by_rows, panels * p / grid.by_panels, panels * (p + 1) / grid.by_panels};
}

// How small the runs of a part may get. A run of rows reads the part's weights again, a run of panels its rows of x.
struct LeastRun {
  int64_t rows, panels;
};

// Of a linear. A weight that stays in the second-level cache is read again for nothing, another in the time that some dozens of
// rows take; tiles take more of both in less time.
inline LeastRun least_run(int64_t weight_bytes) {
  const int64_t stays_in_cache = second_level_cache() / 2;
  if (table().linear_split) return {64, 16};
  return {weight_bytes <= stays_in_cache ? 12 : 48, 2};
}

// All m rows and all panels of a result, shared out to torch's threads.
class Partition {
 public:
  Partition(int64_t m, int64_t panels, int64_t work, int64_t worth_a_thread, const LeastRun& least)
      : m_(m), panels_(panels), grid_(choose_grid(m, panels, threads_for(work, worth_a_thread))) {
    const int64_t rows = m / grid_.by_rows, columns = panels / grid_.by_panels;
    const bool long_enough = rows >= 8 * least.rows || columns >= 8 * least.panels;
    cut_ = long_enough && grid_.size() > 1 && is_worth_cutting(work / grid_.size(), worth_a_thread);
    along_rows_ = rows >= 8 * least.rows || columns < 8 * least.panels;
  }

  // Whether who computes a part of a row computes all of it.
  bool keeps_rows_whole() const { return grid_.by_panels == 1 && (!cut_ || along_rows_); }

  // Calls kernel(part) for parts that together are everything.
  template <typename Kernel>
  void run(const Kernel& kernel) const {
    share_out(grid_.size(), cut_, [&](int64_t index, Run run) { kernel(run_of(part_of(grid_, index, m_, panels_), run)); });
  }

 private:
  // Which run of a part, cut along the rows where there are many, else along the panels.
  LinearPart run_of(LinearPart part, Run run) const {
    const int64_t rows = part.m_end - part.m_begin, panels = part.panel_end - part.panel_begin;
    if (along_rows_) return {part.m_begin + run.begin(rows), part.m_begin + run.end(rows), part.panel_begin, part.panel_end};
    return {part.m_begin, part.m_end, part.panel_begin + run.begin(panels), part.panel_begin + run.end(panels)};
  }

  int64_t m_, panels_;
  Grid grid_;
  bool cut_, along_rows_;
};

template <typename Kernel>
void for_parts(int64_t m, int64_t panels, int64_t work, int64_t worth_a_thread, const LeastRun& least, const Kernel& kernel) {
  Partition(m, panels, work, worth_a_thread, least).run(kernel);
}

}  // namespace slipstream

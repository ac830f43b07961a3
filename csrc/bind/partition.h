// SPDX-License-Identifier: Apache-2.0
// How a rectangle of outputs is split over threads.
#pragma once

#include "../kernels/linear.h"

namespace slipstream {

struct Grid {
  int64_t by_rows = 1, by_panels = 1;
  int64_t size() const { return by_rows * by_panels; }
};

// The grid of at most `threads` parts whose largest part costs least. A part copies its own rows of x first; copying an element
// costs about as much as two of its multiplications by a panel. Ties go to fewer splits of the rows, where the parts of the
// weight that threads read are disjoint.
inline Grid choose_grid(int64_t m, int64_t panels, int64_t threads) {
  constexpr double kCopyPanels = 2;
  Grid best;
  double best_cost = -1;
  for (int64_t rows = 1; rows <= threads && rows <= m; ++rows) {
    int64_t columns = threads / rows;
    if (columns > panels) columns = panels;
    if (columns < 1) columns = 1;
    const double part_rows = static_cast<double>((m + rows - 1) / rows);
    const double part_panels = static_cast<double>((panels + columns - 1) / columns);
    const double cost = part_rows * (part_panels + kCopyPanels);
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

}  // namespace slipstream

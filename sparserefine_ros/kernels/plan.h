// SPDX-License-Identifier: Apache-2.0
// Topology: the expansion of a low-resolution mask, index maps, and tables of linked rows.
//
// An index map has one int32 per cell of the grid plus a border of one cell: the row of the site
// there, or the number of sites for "none".

#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace sr {

struct Grid {
  int64_t height, width;
  int64_t pitch() const { return width + 2; }
  int64_t picture() const { return (height + 2) * pitch(); }
  int64_t cell(int64_t batch, int64_t row, int64_t column) const {
    return batch * picture() + (row + 1) * pitch() + column + 1;
  }
};

struct Place {
  int64_t batch, row, column;
};

// The places of sites, of which most lie in the row of the one before.
class Places {
 public:
  explicit Places(const Grid &grid) : grid_(grid) {}

  Place operator()(int64_t site) {
    if (uint64_t(site - start_) >= uint64_t(grid_.width)) {
      const int64_t line = site / grid_.width;
      batch_ = line / grid_.height, row_ = line - batch_ * grid_.height;
      start_ = line * grid_.width;
    }
    return {batch_, row_, site - start_};
  }

 private:
  const Grid grid_;
  int64_t start_ = INT64_MIN / 2, batch_ = 0, row_ = 0;  // of the row
};

static void index_map(const int64_t *sites, int64_t count, int64_t batches, const Grid &grid,
                      int32_t *map, int64_t threads) {
  const int64_t cells = batches * grid.picture();
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < cells; ++i) map[i] = int32_t(count);
    Places places(grid);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < count; ++n) {
      const Place p = places(sites[n]);
      map[grid.cell(p.batch, p.row, p.column)] = int32_t(n);
    }
  }
}

// table[n, tap]: the site at place + tap - 1; taps count rows first.
static void same_table(const int64_t *sites, int64_t count, const Grid &grid, const int32_t *map,
                       int32_t *table, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Places places(grid);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < count; ++n) {
      const Place p = places(sites[n]);
      const int32_t *centre = map + grid.cell(p.batch, p.row, p.column);
      for (int64_t tap = 0; tap < 9; ++tap)
        table[n * 9 + tap] = centre[(tap % 3 - 1) * grid.pitch() + tap / 3 - 1];
    }
  }
}

// Coarse sites any of whose 3x3 window is active, ascending; returns how many.
static int64_t strided_sites(const int64_t *sites, int64_t count, int64_t batches, const Grid &fine,
                             const Grid &coarse, int64_t *out) {
  std::vector<uint8_t> active(size_t(batches * coarse.height * coarse.width));
  Places places(fine);
  for (int64_t n = 0; n < count; ++n) {
    const Place p = places(sites[n]);
    uint8_t *picture = active.data() + p.batch * coarse.height * coarse.width;
    for (int64_t r = std::max<int64_t>(0, (p.row - 1) >> 1); r <= p.row >> 1; ++r)
      for (int64_t c = std::max<int64_t>(0, (p.column - 1) >> 1); c <= p.column >> 1; ++c)
        if (r < coarse.height && c < coarse.width) picture[r * coarse.width + c] = 1;
  }
  int64_t found = 0;
  for (size_t i = 0; i < active.size(); ++i) {
    out[found] = int64_t(i);
    found += active[i];
  }
  return found;
}

// table[m, tap]: the fine site at 2 * place + tap.
static void down_table(const int64_t *coarse_sites, int64_t count, const Grid &coarse,
                       const Grid &fine, const int32_t *fine_map, int32_t *table,
                       int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Places places(coarse);
#pragma omp for schedule(static)
    for (int64_t m = 0; m < count; ++m) {
      const Place p = places(coarse_sites[m]);
      const int32_t *corner = fine_map + fine.cell(p.batch, 2 * p.row, 2 * p.column);
      for (int64_t tap = 0; tap < 9; ++tap)
        table[m * 9 + tap] = corner[(tap % 3) * fine.pitch() + tap / 3];
    }
  }
}

// Fine rows by parity, at 2 * (row odd) + (column odd), and the coarse sites that each draws on. Even
// coordinates meet taps 0 and 2, odd ones tap 1 only; the coarse site reached through tap t from
// coordinate f is (f - t) / 2. `found` says how many there are of each.
static void up_tables(const int64_t *fine_sites, int64_t count, const Grid &fine,
                      const Grid &coarse, const int32_t *coarse_map, int64_t *const *rows,
                      int32_t *const *tables, int64_t *found, int64_t threads) {
  const auto parity_of = [](const Place &p) { return 2 * (p.row & 1) + (p.column & 1); };
  // Each part knows where its rows begin once all have counted theirs.
  struct Part {
    int64_t rows[4] = {};
  };
  std::vector<Part> parts(size_t(threads + 1));
  const auto begin_of = [&](int64_t part) { return count * part / threads; };
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < threads; ++part) {
      Places places(fine);
      for (int64_t n = begin_of(part); n < begin_of(part + 1); ++n)
        ++parts[size_t(part + 1)].rows[parity_of(places(fine_sites[n]))];
    }
#pragma omp single
    for (size_t part = 1; part < parts.size(); ++part)
      for (int parity = 0; parity < 4; ++parity)
        parts[part].rows[parity] += parts[part - 1].rows[parity];
#pragma omp for schedule(static)
    for (int64_t part = 0; part < threads; ++part) {
      Places places(fine);
      Part at = parts[size_t(part)];
      for (int64_t n = begin_of(part); n < begin_of(part + 1); ++n) {
        const Place p = places(fine_sites[n]);
        const int64_t parity = parity_of(p), m = at.rows[parity]++;
        const int64_t row_taps = 2 - (p.row & 1), column_taps = 2 - (p.column & 1);
        const int32_t *cell = coarse_map + coarse.cell(p.batch, p.row >> 1, p.column >> 1);
        int32_t *links = tables[parity] + m * row_taps * column_taps;
        for (int64_t c = 0; c < column_taps; ++c)
          for (int64_t r = 0; r < row_taps; ++r) *links++ = cell[-r * coarse.pitch() - c];
        rows[parity][m] = n;
      }
    }
  }
  std::copy_n(parts.back().rows, 4, found);
}

// Full-resolution pixels of the active blocks, row by row; returns how many.
static int64_t expand_mask(const uint8_t *mask, int64_t low_height, int64_t low_width,
                           int64_t height, int64_t width, int64_t *pixels, int64_t *low_pixels) {
  std::vector<int64_t> column_of(static_cast<size_t>(width)), columns(static_cast<size_t>(width));
  for (int64_t x = 0; x < width; ++x) column_of[size_t(x)] = x * low_width / width;
  int64_t found = 0, previous = -1, selected = 0;
  for (int64_t y = 0; y < height; ++y) {
    const int64_t low_row = y * low_height / height;
    const uint8_t *line = mask + low_row * low_width;
    if (low_row != previous) {
      selected = 0;
      for (int64_t x = 0; x < width; ++x) {
        columns[size_t(selected)] = x;
        selected += line[column_of[size_t(x)]];
      }
      previous = low_row;
    }
    for (int64_t i = 0; i < selected; ++i) {
      const int64_t x = columns[size_t(i)];
      pixels[found] = y * width + x;
      low_pixels[found++] = low_row * low_width + column_of[size_t(x)];
    }
  }
  return found;
}

}  // namespace sr

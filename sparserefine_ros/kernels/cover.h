// SPDX-License-Identifier: Apache-2.0
// Covers sites with few tiles of 4x4 places.

#pragma once

#include <vector>

#include "plan.h"
#include "tiles.h"

namespace sr {

// The sites that no tile has yet, band by band: as many lines of a picture as a tile is high.
class Bands {
 public:
  Bands(const int64_t *sites, int64_t count, const Grid &grid)
      : sites_(sites), count_(count), width_(grid.width),
        // Between pictures there are empty lines: no tile lies in two.
        picture_(grid.height + SIDE + (-grid.height & (SIDE - 1))), places_(grid),
        rows_(size_t(LINES * pitch()), int32_t(count)), waiting_(size_t(pitch())) {}

  // On to the next band with sites; false when there is none.
  bool advance() {
    line_ += SIDE;
    uint8_t any = 0;
    for (uint8_t &lines : waiting_) any |= lines >>= SIDE;
    if (!any && next_ == count_) return false;
    if (!any) line_ = line_of(places_(sites_[next_])) / SIDE * SIDE;
    for (; next_ < count_; ++next_) {
      const Place p = places_(sites_[next_]);
      const int64_t line = line_of(p) - line_;
      if (line >= SIDE + REST) break;
      row_at(line, p.column) = int32_t(next_);
      waiting_[size_t(p.column)] |= uint8_t(1 << line);
    }
    return true;
  }

  // The first column, from some column on, with a site of the band; the width when there is none.
  int64_t find(int64_t column) const {
    while (column < width_ && !(waiting_[size_t(column)] & BAND)) ++column;
    return column;
  }

  // Takes the sites of the tile that begins at a column, and at the first line of the band with a
  // site there. Below, it reaches into the next band.
  void take(int64_t column, int32_t *tile) {
    uint8_t lines = 0;
    for (int64_t c = column; c < column + SIDE; ++c) lines |= waiting_[size_t(c)] & BAND;
    int64_t first = 0;
    while (!(lines >> first & 1)) ++first;
    for (int64_t c = column; c < column + SIDE; ++c) {
      waiting_[size_t(c)] &= uint8_t(~(BAND << first));
      for (int64_t line = first; line < first + SIDE; ++line) {
        int32_t &row = row_at(line, c);
        *tile++ = row;
        row = int32_t(count_);
      }
    }
  }

 private:
  // Lines below a band that its tiles reach into, and lines that are kept.
  static constexpr int64_t REST = SIDE - 1, LINES = 2 * SIDE;
  static constexpr uint8_t BAND = (1 << SIDE) - 1;

  int64_t pitch() const { return width_ + SIDE; }
  int64_t line_of(const Place &p) const { return p.batch * picture_ + p.row; }
  int32_t &row_at(int64_t line, int64_t column) {
    return rows_[size_t((line_ + line) % LINES * pitch() + column)];
  }

  const int64_t *sites_;
  const int64_t count_, width_, picture_;
  Places places_;                 // of those that come in
  int64_t next_ = 0;              // which of them
  int64_t line_ = -SIDE;          // the first of the band
  std::vector<int32_t> rows_;     // [LINES, pitch], lines one after another in turn; `count` for "none"
  std::vector<uint8_t> waiting_;  // [pitch], a bit for each line of the band and of the rest
};

// tiles[t]: rows of the sites of one tile, `count` for "none"; returns how many tiles there are,
// which is no more than `count`. Sites are distinct and ascending. Each tile begins where a band has
// the first sites that no tile had: edges of a region, of whichever slope, take fewer so than on a
// grid.
static int64_t tiles_of(const int64_t *sites, int64_t count, const Grid &grid, int32_t *tiles) {
  Bands bands(sites, count, grid);
  int64_t found = 0;
  while (bands.advance())
    for (int64_t c = bands.find(0); c < grid.width; c = bands.find(c))
      bands.take(c, tiles + found++ * TILE);
  return found;
}

}  // namespace sr

// SPDX-License-Identifier: Apache-2.0
// The tiles of 4x4 places that Winograd's convolution works on, the patches of inputs around them,
// and the transforms of both. Where the tiles lie, `cover.h` says.
//
// Taps, places of a patch and of a tile count rows first, like the taps of the tables: a place of a
// patch is 6 * column + row, an output of a tile 4 * column + row.

#pragma once

#include <cstdint>

#include "lanes.h"

namespace sr {

constexpr int SIDE = 4, TILE = SIDE * SIDE;
constexpr int REACH = SIDE + 2, PATCH = REACH * REACH;

// Points at which polynomials are evaluated, beside their negatives, 0 and infinity. They are exact in
// binary and give half the error of 1 and 2.
constexpr float NEAR = 0.75f, FAR = 1.5f;

// Rows of the inputs around a tile. What no output of the tile draws on may stay "none".
static inline void find_patch(const int32_t *tile, int64_t count, const int32_t *table,
                              int32_t none, int32_t (&patch)[PATCH]) {
  const auto take_around = [&](int o) {
    const int32_t *links = table + int64_t(tile[o]) * 9;
    for (int tap = 0; tap < 9; ++tap)
      patch[(o / SIDE + tap / 3) * REACH + o % SIDE + tap % 3] = links[tap];
  };
  constexpr int CORNERS[] = {0, SIDE - 1, TILE - SIDE, TILE - 1};
  bool whole = true;
  for (int o : CORNERS) whole &= tile[o] < count;
  if (whole) {  // the corners see all of the patch
    for (int o : CORNERS) take_around(o);
    return;
  }
  for (int32_t &place : patch) place = none;
  for (int o = 0; o < TILE; ++o)
    if (tile[o] < count) take_around(o);
}

static inline void transform(const Lanes (&d)[REACH], Lanes (&t)[REACH]) {
  const Lanes near_even = d[4] - FAR * FAR * d[2], near_odd = NEAR * (d[3] - FAR * FAR * d[1]);
  const Lanes far_even = d[4] - NEAR * NEAR * d[2], far_odd = FAR * (d[3] - NEAR * NEAR * d[1]);
  constexpr float SUM = NEAR * NEAR + FAR * FAR, PRODUCT = NEAR * NEAR * FAR * FAR;
  t[0] = PRODUCT * d[0] - SUM * d[2] + d[4];
  t[1] = near_even + near_odd, t[2] = near_even - near_odd;
  t[3] = far_even + far_odd, t[4] = far_even - far_odd;
  t[5] = PRODUCT * d[1] - SUM * d[3] + d[5];
}

static inline void transform_back(const Lanes (&m)[REACH], Lanes (&y)[SIDE]) {
  const Lanes near_sum = m[1] + m[2], far_sum = m[3] + m[4];
  const Lanes near_rest = NEAR * (m[1] - m[2]), far_rest = FAR * (m[3] - m[4]);
  y[0] = m[0] + near_sum + far_sum;
  y[1] = near_rest + far_rest;
  y[2] = NEAR * NEAR * near_sum + FAR * FAR * far_sum;
  y[3] = NEAR * NEAR * near_rest + FAR * FAR * far_rest + m[5];
}

}  // namespace sr

// SPDX-License-Identifier: Apache-2.0
// Convolutions 3x3 by Winograd's F(4x4, 3x3): the outputs of a tile of 4x4 places take 36 products
// for each input channel instead of 144. (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2016, section 4.3.) Polynomials are evaluated at 0, infinity and the points below, which
// are exact in binary and give half the error of 1 and 2.
//
// Tiles begin at coordinates that are multiples of four. Taps, places of a patch and of a tile count
// rows first, like the taps of the tables: a place of a patch is 6 * column + row, an output of a
// tile 4 * column + row.

#pragma once

#include <algorithm>
#include <vector>

#include "convolve.h"
#include "plan.h"

namespace sr {

constexpr int SIDE = 4, TILE = SIDE * SIDE;
constexpr int REACH = SIDE + 2, PATCH = REACH * REACH;

constexpr float NEAR = 0.75f, FAR = 1.5f;

// Channels come in multiples of it.
constexpr int GROUP = 16;

// Tiles in work at once, which share a visit of the weights: a multiple of those multiplied together.
constexpr int64_t MOST_TILES = 48;

// Weights, in words, that no cache holds.
constexpr int64_t LARGE = 1 << 20;

// tiles[t]: rows of the sites of one tile, `count` for "none"; returns how many tiles there are,
// which is no more than `count`. They come in the order of their first sites.
static int64_t tiles_of(const int64_t *sites, int64_t count, const Grid &grid, int32_t *tiles) {
  // The last tile of each column of tiles, and the row of tiles that it is of.
  struct Last {
    int64_t band = -1, tile = 0;
  };
  std::vector<Last> columns(size_t((grid.width + SIDE - 1) / SIDE));
  const int64_t bands = (grid.height + SIDE - 1) / SIDE;
  int64_t found = 0;
  for (int64_t n = 0; n < count; ++n) {
    const Place p = place(sites[n], grid);
    const int64_t band = p.batch * bands + p.row / SIDE;
    Last &last = columns[size_t(p.column / SIDE)];
    if (last.band != band) {
      last = {band, found++};
      for (int o = 0; o < TILE; ++o) tiles[last.tile * TILE + o] = int32_t(count);
    }
    tiles[last.tile * TILE + p.column % SIDE * SIDE + p.row % SIDE] = int32_t(n);
  }
  return found;
}

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

// One source's patch of a tile, transformed, at `out` [PATCH, step].
static inline void transform_patch(const SrSource &s, const int32_t (&patch)[PATCH], float *out,
                                   int64_t step) {
  const float *input[PATCH];
  for (int p = 0; p < PATCH; ++p)
    input[p] = patch[p] < s.rows ? s.features + int64_t(patch[p]) * s.pitch : s.none;
  for (int64_t i = 0; i < s.channels; i += LANES) {
    Lanes half[REACH][REACH];
    for (int column = 0; column < REACH; ++column) {
      Lanes d[REACH];
      for (int row = 0; row < REACH; ++row) d[row] = load(input[column * REACH + row] + i);
      transform(d, half[column]);
    }
    for (int row = 0; row < REACH; ++row) {
      Lanes d[REACH], t[REACH];
      for (int column = 0; column < REACH; ++column) d[column] = half[column][row];
      transform(d, t);
      for (int column = 0; column < REACH; ++column)
        store(out + (column * REACH + row) * step + i, t[column]);
    }
  }
}

// Words by which the places of a patch are shifted against one another: evenly spaced, they would
// meet in a few sets of the first-level cache.
constexpr int64_t SHIFT = 16;

// Where a thread does its work; kept from call to call, for fresh memory costs more than the work.
struct Workshop {
  std::vector<float> patches;       // by source [PATCH, tiles, channels]
  std::vector<float> products;      // [PATCH, tiles, WIDTH * LANES]
  std::vector<float> sums;          // of the rows
  int64_t rows[MOST_TILES * TILE];  // of the output, those that exist, tile by tile
  int64_t row_count;

  // With room for a tile of rows more, which are worked on in vain.
  void prepare(const SrConvolution &c, int64_t tiles) {
    int64_t words = 0;
    for (int64_t i = 0; i < c.source_count; ++i)
      words += PATCH * (tiles * c.sources[i].channels + SHIFT) + 8 * c.sources[i].channels;
    if (int64_t(patches.size()) < words) patches.resize(size_t(words));
    products.resize(size_t(PATCH * ((MOST_TILES + 8) * MOST_WIDTH * LANES + SHIFT)));
    sums.resize(size_t(sums_size(MOST_TILES * TILE)));
  }
};

struct WinogradChunk {
  const SrConvolution &c;
  Workshop &shop;
  const int32_t *tiles;
  const int64_t count, per_chunk;

  int64_t step(const SrSource &s) const { return per_chunk * s.channels + SHIFT; }
  template <int WIDTH>
  float *products(int place) const {
    return shop.products.data() + place * ((MOST_TILES + 8) * WIDTH * LANES + SHIFT);
  }

  // Transforms the inputs.
  void enter() const {
    shop.row_count = 0;
    for (int64_t t = 0; t < count; ++t) {
      const int32_t *tile = tiles + t * TILE;
      for (int o = 0; o < TILE; ++o)
        if (tile[o] < c.count) shop.rows[shop.row_count++] = tile[o];
      float *out = shop.patches.data();
      const int32_t *table = nullptr;
      int32_t patch[PATCH] = {};
      for (int64_t i = 0; i < c.source_count; ++i) {
        const SrSource &s = c.sources[i];
        if (!s.winograd) continue;
        if (s.table != table) find_patch(tile, c.count, table = s.table, int32_t(s.rows), patch);
        transform_patch(s, patch, out + t * s.channels, step(s));
        out += PATCH * step(s);
      }
    }
  }

  // Asks for the memory that the columns will be written to, so that it is there in time. (Rows of
  // the output are sites: `c.rows` is null.)
  template <int WIDTH>
  void prefetch(int64_t column) const {
    const auto ask = [](const void *at, int64_t bytes) {
      for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(static_cast<const char *>(at) + i, 1);
    };
    for (int64_t i = 0; i < shop.row_count; ++i) {
      const int64_t row = shop.rows[i];
      if (c.raw) ask(c.raw + row * c.raw_pitch + column, 4 * WIDTH * LANES);
      for (const SrActivation &a : c.activations) {
        const int64_t size = a.bfloat16 ? 2 : 4;
        if (a.out)
          ask(static_cast<char *>(a.out) + (row * a.pitch + column) * size, size * WIDTH * LANES);
      }
    }
  }

  template <int WIDTH>
  void run(int64_t column) const {
    constexpr int ROWS = tile_rows<WIDTH>();
    prefetch<WIDTH>(column);
    for (int place = 0; place < PATCH; ++place)
      for (int64_t first = 0; first < count; first += ROWS)
        multiply<ROWS, WIDTH>(place, first, column);
    leave<WIDTH>(column);
    convolve_columns<WIDTH>(c, {shop.rows, 0, shop.row_count}, column, shop.sums.data(), true);
  }

  // One place of ROWS tiles, over all sources.
  template <int ROWS, int WIDTH>
  void multiply(int place, int64_t first, int64_t column) const {
    const int64_t start = column / BLOCK * BLOCK, left = c.outputs - start;
    const int64_t stride = left < BLOCK ? left : BLOCK;
    Lanes sum[ROWS][WIDTH] = {};
    const float *patches = shop.patches.data();
    for (int64_t k = 0; k < c.source_count; ++k) {
      const SrSource &s = c.sources[k];
      if (!s.winograd) continue;
      const float *input[ROWS];
      for (int r = 0; r < ROWS; ++r)
        input[r] = patches + place * step(s) + (first + r) * s.channels;
      const float *weights =
          s.weights + (start * PATCH + place * stride) * s.channels + column - start;
      // Whole groups of channels: a loop that short would be left by a wrong guess every time.
      for (int64_t group = 0; group < s.channels; group += GROUP) {
#pragma GCC unroll 16
        for (int i = 0; i < GROUP; ++i, weights += stride) {
          Lanes w[WIDTH];
          for (int v = 0; v < WIDTH; ++v) w[v] = load(weights + v * LANES);
          for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < WIDTH; ++v) sum[r][v] += w[v] * input[r][group + i];
        }
      }
      patches += PATCH * step(s);
    }
    float *out = products<WIDTH>(place) + first * WIDTH * LANES;
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < WIDTH; ++v) store(out + (r * WIDTH + v) * LANES, sum[r][v]);
  }

  // Transforms the products back, into the sums of the rows that exist.
  template <int WIDTH>
  void leave(int64_t column) const {
    float *sums = shop.sums.data();
    for (int64_t t = 0; t < count; ++t) {
      const int32_t *tile = tiles + t * TILE;
      for (int v = 0; v < WIDTH; ++v) {
        Lanes half[REACH][SIDE], y[SIDE][SIDE];
        for (int column = 0; column < REACH; ++column) {
          Lanes m[REACH];
          for (int row = 0; row < REACH; ++row)
            m[row] = load(products<WIDTH>(column * REACH + row) + (t * WIDTH + v) * LANES);
          transform_back(m, half[column]);
        }
        for (int row = 0; row < SIDE; ++row) {
          Lanes m[REACH], back[SIDE];
          for (int column = 0; column < REACH; ++column) m[column] = half[column][row];
          transform_back(m, back);
          for (int column = 0; column < SIDE; ++column) y[column][row] = back[column];
        }
        const Lanes bias = c.bias ? load(c.bias + column + v * LANES) : Lanes{};
        float *to = sums + v * LANES;
        for (int o = 0; o < TILE; ++o)
          if (tile[o] < c.count) store(to, y[o / SIDE][o % SIDE] + bias), to += WIDTH * LANES;
      }
      for (int o = 0; o < TILE; ++o) sums += tile[o] < c.count ? WIDTH * LANES : 0;
    }
  }
};

// How a convolution is divided: into chunks of tiles, and those into ranges of columns.
struct Division {
  int64_t per_chunk, chunks, ranges, columns;

  explicit Division(const SrConvolution &c) {
    int64_t words = 0;
    for (int64_t i = 0; i < c.source_count; ++i)
      if (c.sources[i].winograd) words += PATCH * c.sources[i].channels * c.outputs;
    // Fewer tiles where the threads would not get several chunks each; but weights that are too
    // large for a cache are read as seldom as can be, and the threads share the columns.
    const bool large = words > LARGE;
    constexpr int64_t ROWS = tile_rows<MOST_WIDTH>();
    const int64_t fair = large ? MOST_TILES : c.tile_count / (4 * c.threads) + ROWS;
    per_chunk = std::min(fair / ROWS * ROWS, MOST_TILES);
    chunks = (c.tile_count + per_chunk - 1) / per_chunk;
    const int64_t blocks = (c.outputs + BLOCK - 1) / BLOCK;
    ranges = large ? std::min((2 * c.threads + chunks - 1) / chunks, blocks) : 1;
    columns = (blocks + ranges - 1) / ranges * BLOCK;
  }
};

static void convolve_by_tiles(const SrConvolution &c) {
  const Division d(c);
  const int64_t parts = d.chunks * d.ranges;
#pragma omp parallel num_threads(c.threads) if (parts > 1)
  {
    static thread_local Workshop shop;
    shop.prepare(c, d.per_chunk);
    int64_t entered = -1;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t begin = i / d.ranges * d.per_chunk, left = c.tile_count - begin;
      const int64_t count = std::min(left, d.per_chunk), column = i % d.ranges * d.columns;
      const WinogradChunk chunk{c, shop, c.tiles + begin * TILE, count, d.per_chunk};
      if (entered != begin) chunk.enter();
      entered = begin;
      by_columns(column, std::min(column + d.columns, c.outputs), chunk);
    }
  }
}

static void convolve(const SrConvolution &c) {
  if (c.tiles && c.tile_count)
    convolve_by_tiles(c);
  else
    convolve_directly(c);
}

}  // namespace sr

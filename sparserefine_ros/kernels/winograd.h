// SPDX-License-Identifier: Apache-2.0
// Convolutions 3x3 by Winograd's F(2x2, 3x3): the outputs of a tile of 2x2 places take 16 products
// for each input channel instead of 36. (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2016, section 4.1.)
//
// Tiles begin at even coordinates. Those of a mask that was expanded from half the resolution are
// all full. Taps, places of a patch and of a tile count rows first, like the taps of the tables: a
// place of a patch is 4 * column + row, an output of a tile 2 * column + row.

#pragma once

#include <vector>

#include "convolve.h"
#include "plan.h"

namespace sr {

constexpr int PATCH = 16, TILE = 4;

// Channels come in multiples of it.
constexpr int GROUP = 16;

// Tiles in work at once; so many share a visit of the weights, which are too large for a cache.
constexpr int64_t MOST_TILES = 48;

// tiles[t]: rows of the sites of one tile, `count` for "none"; returns how many tiles there are.
// The table is that of `same_table`. A tile is found at its first site.
static int64_t tiles_of(const int64_t *sites, int64_t count, const Grid &grid, const int32_t *table,
                        int32_t *tiles) {
  const int32_t none = int32_t(count);
  int64_t found = 0;
  for (int64_t n = 0; n < count; ++n) {
    const Place p = place(sites[n], grid);
    const int32_t *near = table + n * 9, row = int32_t(n);
    int32_t *tile = tiles + found * TILE;
    const bool left = near[1] < none, above = near[3] < none;
    if (p.row & 1) {
      const bool beside = near[p.column & 1 ? 0 : 6] < none;
      if (above || beside || (p.column & 1 && left)) continue;
      tile[0] = tile[2] = none;
      tile[1] = p.column & 1 ? none : row;
      tile[3] = p.column & 1 ? row : near[7];
    } else if (p.column & 1) {
      if (left) continue;
      tile[0] = none, tile[1] = near[2], tile[2] = row, tile[3] = near[5];
    } else {
      tile[0] = row, tile[1] = near[5], tile[2] = near[7], tile[3] = near[8];
    }
    ++found;
  }
  return found;
}

// Rows of the inputs around a tile. What no output of the tile draws on stays "none".
static inline void find_patch(const int32_t *tile, int64_t count, const int32_t *table,
                              int32_t none, int32_t (&patch)[PATCH]) {
  const auto take_around = [&](int o) {
    const int32_t *links = table + int64_t(tile[o]) * 9;
    for (int tap = 0; tap < 9; ++tap)
      patch[(o / 2 + tap / 3) * 4 + o % 2 + tap % 3] = links[tap];
  };
  if (tile[0] < count && tile[1] < count && tile[2] < count && tile[3] < count) {
    // Two opposite corners see all but the other two corners of the patch.
    take_around(0), take_around(3);
    patch[3] = table[int64_t(tile[1]) * 9 + 2];
    patch[12] = table[int64_t(tile[2]) * 9 + 6];
    return;
  }
  for (int32_t &place : patch) place = none;
  for (int o = 0; o < TILE; ++o)
    if (tile[o] < count) take_around(o);
}

static inline void transform(const Lanes (&d)[4], Lanes (&t)[4]) {
  t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
}

static inline void transform_back(const Lanes (&m)[4], Lanes (&y)[2]) {
  y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
}

// One source's patch of a tile, transformed, at `out` [PATCH, step].
static inline void transform_patch(const SrSource &s, const int32_t (&patch)[PATCH], float *out,
                                   int64_t step) {
  const float *input[PATCH];
  for (int p = 0; p < PATCH; ++p)
    input[p] = patch[p] < s.rows ? s.features + int64_t(patch[p]) * s.pitch : s.none;
  for (int64_t i = 0; i < s.channels; i += LANES) {
    Lanes half[4][4];
    for (int column = 0; column < 4; ++column) {
      Lanes d[4];
      for (int row = 0; row < 4; ++row) d[row] = load(input[column * 4 + row] + i);
      transform(d, half[column]);
    }
    for (int row = 0; row < 4; ++row) {
      Lanes t[4];
      transform({half[0][row], half[1][row], half[2][row], half[3][row]}, t);
      for (int column = 0; column < 4; ++column)
        store(out + (column * 4 + row) * step + i, t[column]);
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
  void prepare(const SrConvolution &c) {
    int64_t words = 0;
    for (int64_t i = 0; i < c.source_count; ++i)
      words += PATCH * (MOST_TILES * c.sources[i].channels + SHIFT) + 8 * c.sources[i].channels;
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
        Lanes half[4][2], y[2][2];
        for (int j = 0; j < 4; ++j) {
          Lanes m[4];
          for (int i = 0; i < 4; ++i)
            m[i] = load(products<WIDTH>(j * 4 + i) + (t * WIDTH + v) * LANES);
          transform_back(m, half[j]);
        }
        for (int i = 0; i < 2; ++i) {
          Lanes back[2];
          transform_back({half[0][i], half[1][i], half[2][i], half[3][i]}, back);
          y[0][i] = back[0], y[1][i] = back[1];
        }
        const Lanes bias = c.bias ? load(c.bias + column + v * LANES) : Lanes{};
        float *to = sums + v * LANES;
        for (int o = 0; o < TILE; ++o)
          if (tile[o] < c.count) store(to, y[o / 2][o % 2] + bias), to += WIDTH * LANES;
      }
      for (int o = 0; o < TILE; ++o) sums += tile[o] < c.count ? WIDTH * LANES : 0;
    }
  }
};

static void convolve_by_tiles(const SrConvolution &c) {
  // Fewer where the threads would not get several chunks each.
  const int64_t fair = c.tile_count / (4 * c.threads) / 8 * 8 + 8;
  const int64_t per_chunk = fair < MOST_TILES ? fair : MOST_TILES;
  const int64_t chunks = (c.tile_count + per_chunk - 1) / per_chunk;
#pragma omp parallel num_threads(c.threads) if (chunks > 1)
  {
    static thread_local Workshop shop;
    shop.prepare(c);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t begin = i * per_chunk, left = c.tile_count - begin;
      const int64_t count = left < per_chunk ? left : per_chunk;
      const WinogradChunk chunk{c, shop, c.tiles + begin * TILE, count, per_chunk};
      chunk.enter();
      by_columns(c.outputs, chunk);
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

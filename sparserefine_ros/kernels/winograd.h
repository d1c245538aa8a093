// SPDX-License-Identifier: Apache-2.0
// Convolutions 3x3 by Winograd's F(4x4, 3x3): the outputs of a tile of 4x4 places take 36 products
// for each input channel instead of 144. (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2016, section 4.3.)

#pragma once

#include <algorithm>
#include <vector>

#include "direct.h"
#include "tiles.h"

namespace sr {

// Channels come in multiples of it.
constexpr int GROUP = 16;

// Words of a cache line.
constexpr int64_t LINE = 16;

// Weights, in words, that the second-level cache does not hold, and that no cache holds.
constexpr int64_t MIDDLING = 1 << 18, LARGE = 1 << 20;

// Tiles in work at once, which share a visit of the weights. What becomes of TILES stays in the
// second-level cache; they are a multiple of those multiplied together, however wide. Where the
// weights are large, there are about MANY_TILES and at most MOST_TILES.
constexpr int64_t TILES = 24, MANY_TILES = 48, MOST_TILES = MANY_TILES + MANY_TILES / 2;

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

// Memory aligned as vectors are, so that none lies across two cache lines.
class Memory {
 public:
  // Room for so many words at least.
  void grow(int64_t words) {
    const size_t vectors = size_t((words + LANES - 1) / LANES);
    if (vectors_.size() < vectors) vectors_.resize(vectors);
  }
  float *data() { return reinterpret_cast<float *>(vectors_.data()); }

 private:
  std::vector<Lanes> vectors_;
};

// Where a thread does its work; kept from call to call, for fresh memory costs more than the work.
struct Workshop {
  Memory patches;                   // by source [PATCH, tiles, channels]
  Memory products;                  // [PATCH, tiles, WIDTH * LANES]
  Memory sums;                      // of the rows
  int64_t rows[MOST_TILES * TILE];  // of the output, those that exist, tile by tile
  int64_t row_count;

  // With room for a tile of rows more, which are worked on in vain.
  void prepare(const SrConvolution &c, int64_t tiles) {
    int64_t words = 0;
    for (int64_t i = 0; i < c.source_count; ++i)
      words += PATCH * (tiles * c.sources[i].channels + SHIFT) + 8 * c.sources[i].channels;
    patches.grow(words);
    products.grow(PATCH * ((tiles + 8) * MOST_WIDTH * LANES + SHIFT));
    sums.grow(sums_size(tiles * TILE));
  }
};

struct WinogradChunk {
  const SrConvolution &c;
  Workshop &shop;
  const int32_t *tiles;
  const int64_t count, per_chunk;
  const int64_t coming;  // tiles behind these that the thread will probably work on next

  int64_t step(const SrSource &s) const { return per_chunk * s.channels + SHIFT; }
  template <int WIDTH>
  float *products(int place) const {
    return shop.products.data() + place * ((per_chunk + 8) * WIDTH * LANES + SHIFT);
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

  // What is needed later is asked for in as many parts as there are places, beside the products of
  // each: the memory that the columns will be written to, and the inputs of the tiles behind these.
  template <int WIDTH>
  void run(int64_t column) const {
    constexpr int ROWS = tile_rows<WIDTH>();
    for (int place = 0; place < PATCH; ++place) {
      if (column == 0) prefetch_inputs(place);
      prefetch_outputs<WIDTH>(place, column);
      multiply<ROWS, WIDTH>(place, column);
    }
    leave<WIDTH>(column);
    convolve_columns<WIDTH>(c, {shop.rows, 0, shop.row_count}, column, shop.sums.data(), true);
  }

  // (Inlined, as in `source.h`. Rows of the output are sites: `c.rows` is null.)
  template <int WIDTH>
  __attribute__((always_inline)) void prefetch_outputs(int place, int64_t column) const {
    const auto ask = [&](const void *to, int64_t first, int64_t size) __attribute__((always_inline)) {
      const char *at = static_cast<const char *>(to) + (first + column) * size;
      for (int64_t i = 0; i < size * WIDTH * LANES; i += 64) __builtin_prefetch(at + i, 1, 2);
    };
    const int64_t end = share_of(shop.row_count, place + 1, PATCH);
    for (int64_t i = share_of(shop.row_count, place, PATCH); i < end; ++i) {
      const int64_t row = shop.rows[i];
      if (c.residual) ask(c.residual, row * c.residual_pitch, 4);
      if (c.raw && c.raw != c.residual) ask(c.raw, row * c.raw_pitch, c.raw_bfloat16 ? 2 : 4);
      for (const SrActivation &a : c.activations)
        if (a.out) ask(a.out, row * a.pitch, a.bfloat16 ? 2 : 4);
    }
  }

  __attribute__((always_inline)) void prefetch_inputs(int place) const {
    const int32_t *site = tiles + (count + share_of(coming, place, PATCH)) * TILE;
    const int32_t *end = tiles + (count + share_of(coming, place + 1, PATCH)) * TILE;
    for (; site < end; ++site)
      for (int64_t i = 0; i < c.source_count && *site < c.count; ++i) {
        const SrSource &s = c.sources[i];
        const float *row = s.features + *site * s.pitch;
        for (int64_t at = 0; at < s.channels; at += LINE) __builtin_prefetch(row + at, 0, 2);
      }
  }

  // One place of all tiles, over all sources: as many channels at a time as have their weights stay
  // in the first-level cache. Meanwhile the next weights are asked for.
  template <int ROWS, int WIDTH>
  void multiply(int place, int64_t column) const {
    constexpr int64_t MOST = RESIDENT / (WIDTH * LANES) / GROUP * GROUP;
    const int64_t start = column / BLOCK * BLOCK, left = c.outputs - start;
    const int64_t stride = left < BLOCK ? left : BLOCK;
    const int64_t turns = (count + ROWS - 1) / ROWS;
    const float *patches = shop.patches.data();
    bool started = false;
    for (int64_t k = 0; k < c.source_count; ++k) {
      const SrSource &s = c.sources[k];
      if (!s.winograd) continue;
      const bool distant = PATCH * s.channels * c.outputs > MIDDLING;
      const int64_t lines = distant ? (WIDTH * LANES + turns - 1) / turns : 0;
      const float *input = patches + place * step(s);
      const float *weights =
          s.weights + (start * PATCH + place * stride) * s.channels + column - start;
      for (int64_t rest = s.channels; rest > 0; rest -= MOST, input += MOST) {
        const int64_t channels = std::min(rest, MOST);
        const float *next = weights + channels * stride;
        const float *ahead = next;
        for (int64_t first = 0; first < count; first += ROWS) {
          float *out = products<WIDTH>(place) + first * WIDTH * LANES;
          multiply_tiles<ROWS, WIDTH>(input + first * s.channels, s.channels, weights, stride,
                                      channels, ahead, lines, out, started);
          ahead += channels / GROUP * lines * LINE;
        }
        weights = next;
        started = true;
      }
      patches += PATCH * step(s);
    }
  }

  // One place of ROWS tiles: `out` [ROWS, WIDTH * LANES], from `started` on added to, is the product
  // of inputs [ROWS, pitch] and weights [channels, stride]; `lines` for each group of channels are
  // asked for.
  template <int ROWS, int WIDTH>
  static inline void multiply_tiles(const float *input, int64_t pitch, const float *weights,
                                    int64_t stride, int64_t channels, const float *ahead,
                                    int64_t lines, float *out, bool started) {
    Lanes sum[ROWS][WIDTH];
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < WIDTH; ++v)
        sum[r][v] = started ? load(out + (r * WIDTH + v) * LANES) : Lanes{};
    // Whole groups of channels: a loop that short would be left by a wrong guess every time.
    for (int64_t group = 0; group < channels; group += GROUP) {
      for (int64_t i = 0; i < lines; ++i, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 16
      for (int i = 0; i < GROUP; ++i, weights += stride) {
        Lanes w[WIDTH];
        for (int v = 0; v < WIDTH; ++v) w[v] = load(weights + v * LANES);
        for (int r = 0; r < ROWS; ++r)
          for (int v = 0; v < WIDTH; ++v) sum[r][v] += w[v] * input[r * pitch + group + i];
      }
    }
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
        const Lanes added = bias(c, column + v * LANES);
        float *to = sums + v * LANES;
        for (int o = 0; o < TILE; ++o)
          if (tile[o] < c.count) store(to, y[o / SIDE][o % SIDE] + added), to += WIDTH * LANES;
      }
      for (int o = 0; o < TILE; ++o) sums += tile[o] < c.count ? WIDTH * LANES : 0;
    }
  }
};

// How a convolution is divided: into chunks of tiles, and those into ranges of columns.
struct Division {
  int64_t per_chunk, chunks, ranges, columns;

  Division(const SrConvolution &c, int64_t threads) {
    int64_t words = 0;
    for (int64_t i = 0; i < c.source_count; ++i)
      if (c.sources[i].winograd) words += PATCH * c.sources[i].channels * c.outputs;
    // Weights that are too large for a cache are read as seldom as can be, and the threads share the
    // columns. Of other chunks each thread gets several, if they must be smaller.
    const bool large = words > LARGE;
    constexpr int64_t ROWS = tile_rows<MOST_WIDTH>();
    static_assert(TILES % ROWS == 0 && MOST_TILES % ROWS == 0);
    const int64_t turns = std::max<int64_t>((c.tile_count + MANY_TILES / 2) / MANY_TILES, 1);
    const int64_t even = (c.tile_count + turns * ROWS - 1) / (turns * ROWS) * ROWS;
    const int64_t fair = (c.tile_count / (4 * threads) + ROWS) / ROWS * ROWS;
    per_chunk = large ? even : std::min(fair, TILES);
    chunks = (c.tile_count + per_chunk - 1) / per_chunk;
    const int64_t blocks = (c.outputs + BLOCK - 1) / BLOCK;
    ranges = large ? blocks : 1;
    columns = large ? BLOCK : blocks * BLOCK;
  }

  int64_t count() const { return chunks * ranges; }
};

// Called by all threads.
static void convolve_by_tiles(const SrConvolution &c, int64_t threads, Shares &shares) {
  const Division d(c, threads);
  static thread_local Workshop shop;
  shop.prepare(c, d.per_chunk);
  int64_t entered = -1;
  for (int64_t i; shares.take(i);) {
    const int64_t begin = i / d.ranges * d.per_chunk, left = c.tile_count - begin;
    const int64_t count = std::min(left, d.per_chunk), column = i % d.ranges * d.columns;
    const int64_t coming = d.ranges > 1 ? 0 : std::min(left - count, d.per_chunk);
    const WinogradChunk chunk{c, shop, c.tiles + begin * TILE, count, d.per_chunk, coming};
    if (entered != begin) chunk.enter();
    entered = begin;
    by_columns(column, std::min(column + d.columns, c.outputs), chunk);
  }
}

// One step after another. The threads stay together: to wake them takes longer than some steps.
static void convolve(const SrStep *first, int64_t count, int64_t threads) {
  std::vector<SrStep> steps;
  for (const SrStep *step = first; step < first + count; ++step) {
    const bool by_tiles = step->parts->tile_count;
    steps.push_back({step->parts, step->part_count, by_tiles ? nullptr : step->then});
    if (by_tiles && step->then) steps.push_back({step->then, 1, nullptr});
  }
  std::vector<Shares> shares;
  bool divided = false;
  for (const SrStep &step : steps) {
    const int64_t chunks = step.parts->tile_count ? Division(*step.parts, threads).count()
                                                  : Chunks(step, threads).count;
    shares.emplace_back(chunks, threads);
    divided |= chunks > 1;
  }
#pragma omp parallel num_threads(threads) if (divided)
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].parts->tile_count)
      convolve_by_tiles(*steps[i].parts, threads, shares[i]);
    else
      convolve_directly(steps[i], threads, shares[i]);
#pragma omp barrier
  }
}

}  // namespace sr

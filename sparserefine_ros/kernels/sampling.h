// SPDX-License-Identifier: Apache-2.0
// What the refiner sees: of each selected pixel the maps of its block, and its own colours.

#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

extern "C" {

// Some channels of the rows.
struct SrMap {
  const float *values;    // [channels, size]
  const int64_t *places;  // [blocks], of `size`
  int64_t channels, size;
  int64_t column;  // of the rows, the first of these channels
};

// Three channels of the rows: the pixels' bytes, looked up.
struct SrColours {
  const uint8_t *image;    // [pixels, 3]
  const int64_t *pixels;   // [rows], of the image
  const float *tables;     // [3, 256], for each column of the rows
  int64_t channels[3];     // of the image, for each column
  const int64_t *columns;  // first of three, each time they are wanted
  int64_t times;
};
}

namespace sr {

// The cells that are active, in order, and which of them each pixel's is; returns how many there are.
static int64_t find_blocks(const uint8_t *mask, int64_t cells, const int64_t *pixel_cells,
                           int64_t count, int64_t *blocks, int32_t *block_of, int64_t threads) {
  std::vector<int32_t> number(static_cast<size_t>(cells));
  int64_t found = 0;
  for (int64_t i = 0; i < cells; ++i) {
    number[size_t(i)] = int32_t(found);
    blocks[found] = i;
    found += mask[i] != 0;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < count; ++n) block_of[n] = number[size_t(pixel_cells[n])];
  return found;
}

static inline void convert(const float *from, int64_t count, float *to) {
  std::copy_n(from, count, to);
}

static inline void convert(const float *from, int64_t count, uint16_t *to) {
  const int64_t whole = count / LANES * LANES, rest = count - whole;
  for (int64_t i = 0; i < whole; i += LANES) store_bfloat16(to + i, load(from + i));
  float last[LANES] = {};
  uint16_t rounded[LANES];
  std::memcpy(last, from + whole, size_t(rest) * sizeof(float));
  store_bfloat16(rounded, load(last));
  std::memcpy(to + whole, rounded, size_t(rest) * sizeof(uint16_t));
}

// Rows [blocks, pitch] of the maps, with zeros where there is none.
template <typename Value>
static void sample_rows(const SrMap *maps, int64_t map_count, int64_t blocks, int64_t pitch,
                        Value *rows, int64_t threads) {
  // Blocks that are read from a channel one after another, while their rows are in the cache.
  constexpr int64_t TOGETHER = 32;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> some(static_cast<size_t>(TOGETHER * pitch));
#pragma omp for schedule(static)
    for (int64_t first = 0; first < blocks; first += TOGETHER) {
      const int64_t count = std::min(TOGETHER, blocks - first);
      for (const SrMap *map = maps; map < maps + map_count; ++map)
        for (int64_t channel = 0; channel < map->channels; ++channel) {
          const float *const values = map->values + channel * map->size;
          float *to = some.data() + map->column + channel;
          // What the next blocks read is asked for: of neighbours, sixteen share a cache line.
          const int64_t end = std::min(first + 2 * TOGETHER, blocks);
          for (int64_t i = first + TOGETHER + 15; i < end; i += 16)
            __builtin_prefetch(values + map->places[i]);
          for (int64_t i = 0; i < count; ++i, to += pitch) *to = values[map->places[first + i]];
        }
      convert(some.data(), count * pitch, rows + first * pitch);
    }
  }
}

// To each of `count` rows of `out` its block's row, and its colours.
template <typename Value>
static void repeat_rows(const Value *rows, int64_t pitch, const int32_t *block_of, int64_t count,
                        const SrColours &colours, Value *out, int64_t threads) {
  Value looked_up[3][256];
  if (colours.times) convert(colours.tables, 3 * 256, looked_up[0]);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < count; ++n) {
    Value *const to = out + n * pitch;
    std::memcpy(to, rows + block_of[n] * pitch, size_t(pitch) * sizeof(Value));
    for (int64_t i = 0; i < colours.times; ++i) {
      const uint8_t *const pixel = colours.image + 3 * colours.pixels[n];
      for (int c = 0; c < 3; ++c)
        to[colours.columns[i] + c] = looked_up[c][pixel[colours.channels[c]]];
    }
  }
}

}  // namespace sr
